"""From the kernel's error to the stored event, beside bare readers of the same channels.

The clock is the injector's: CLOCK_REALTIME before it writes to `trigger_fs_error`. A bare reader is
a Python process that does nothing but read its fanotify group, or /dev/kmsg, and decode what it
reads; the daemon's time is when it wrote the event into its database, as its API tells it.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.bench import daemon, scene, summary, table, wait_until
from fswatchd.devno import Devno
from fswatchd.drill import scene as building
from fswatchd.drill import ve
from fswatchd.drill.control import ControlServer
from fswatchd.drill.scene import TARGET
from fswatchd.kernel import fanotify, kmsg, loop

_TRIALS = 300
_PAUSE_S = 0.05


def run(trials: int = _TRIALS) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    with scene() as paths:
        building.build_host(paths, 4 << 30)
        building.build_ve(
            paths, TARGET, size_bytes=128 << 20, files=300, features=[], options="errors=continue"
        )
        control = ControlServer(paths.control)
        config = f'mode = "observe"\nves = ["{paths.directory}/ve.d"]\n'
        (paths.directory / "ve.d").mkdir()
        (paths.directory / "ve.d" / "t.toml").write_text(
            f'[[ve]]\nname = "target"\ncgroup = "{paths.cgroup(TARGET)}"\n'
            f'volume = [{{ image = "{paths.image(TARGET)}" }}]\n'
        )
        with daemon(paths, config) as (client, _):
            subprocess.run(ve.command("start", paths.spec(TARGET)), check=True)
            wait_until(lambda: _known(client))
            status = paths.image(TARGET).stat()
            (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
            name = os.path.basename(device)
            measured = {
                "fanotify": _inject(name, "quiet", "0", trials, lambda w: _bare_fanotify(paths, w)),
                "kmsg": _inject(name, "logged", "1000000", trials, lambda w: _bare_kmsg(name, w)),
            }
            wait_until(lambda: len(_stored(client, "kmsg", "logged")) >= trials)
            stored = {
                # The second round moved fanotify too: its events come after those of the first.
                "fanotify": _stored(client, "fanotify", "")[:trials],
                "kmsg": _stored(client, "kmsg", "logged"),
            }
        subprocess.run(ve.command("kill", paths.spec(TARGET)), check=True)
        control.close()
    result: dict[str, Any] = {}
    rows = []
    for source, (injected, bare) in measured.items():
        ours = [(at - start) / 1e9 for start, at in zip(injected, stored[source], strict=True)]
        theirs = [(at - start) / 1e9 for start, at in zip(injected, bare, strict=True)]
        found = {"stored_and_attributed_ms": summary(ours), "bare_reader_ms": summary(theirs)}
        ratio = found["stored_and_attributed_ms"]["median"] / found["bare_reader_ms"]["median"]
        result[source] = {**found, "ratio_of_medians": round(ratio, 2)}
        rows += [
            (f"{source}: bare reader in Python", *_cells(found["bare_reader_ms"]), ""),
            (
                f"{source}: fswatchd, stored with its VE",
                *_cells(found["stored_and_attributed_ms"]),
                round(ratio, 2),
            ),
        ]
    heads = ("", "n", "median", "p99", "max", "ratio of medians")
    return result, table("Kernel error to stored event (ms)", heads, rows)


def _cells(values: dict[str, Any]) -> tuple[object, ...]:
    return tuple(values[key] for key in ("n", "median", "p99", "max"))


def _known(client: Any) -> bool:
    return any(v["name"] == "target" and v["filesystems"] for v in client.get("/v1/status")["ves"])


def _inject(
    device: str, text: str, burst: str, trials: int, bare_reader: Callable[[int], None]
) -> tuple[list[int], list[int]]:
    """Trigger errors, `burst` lines of the log at most; when each was injected, and when the bare
    reader had it."""
    sysfs = Path(f"/sys/fs/ext4/{device}")
    (sysfs / "err_ratelimit_burst").write_text(burst)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        bare_reader(writer)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"R"
    injected, bare = [], []
    trigger = os.open(sysfs / "trigger_fs_error", os.O_WRONLY)
    for _ in range(trials):
        start = time.time_ns()
        os.write(trigger, text.encode())
        injected.append(start)
        bare.append(int.from_bytes(os.read(reader, 8), "little"))
        time.sleep(_PAUSE_S)
    os.close(trigger)
    os.close(reader)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return injected, bare


def _bare_fanotify(paths: Any, writer: int) -> None:
    group = fanotify.init_errors()
    # The VE's root, through its init process: the bench made both.
    pids = Path("/sys/fs/cgroup").glob(f"**{paths.cgroup(TARGET)}/cgroup.procs")
    init = next(pids).read_text().split()[0]
    root = os.open(f"/proc/{init}/root", os.O_RDONLY | os.O_DIRECTORY)
    fanotify.mark_superblock(group, root)
    os.close(root)
    os.write(writer, b"R")
    while True:
        select.select([group], [], [])
        fanotify.parse(os.read(group, 4096))
        os.write(writer, time.time_ns().to_bytes(8, "little"))


def _bare_kmsg(device: str, writer: int) -> None:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    os.write(writer, b"R")
    while True:
        select.select([log], [], [])
        text = kmsg.parse(os.read(log, 8192)).text
        if f"(device {device})" in text and text.endswith("logged"):
            os.write(writer, time.time_ns().to_bytes(8, "little"))


def _stored(client: Any, source: str, text: str) -> list[int]:
    found, cursor = [], 0
    while page := client.get("/v1/events", since=cursor)["events"]:
        cursor = page[-1]["cursor"]
        for event in page:
            if event["source"] == source and event["ves"] and event["detail"].endswith(text):
                moment = datetime.fromisoformat(event["stored"])
                found.append(int(moment.timestamp() * 1e6) * 1000)
    return found
