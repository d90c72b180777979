"""How the daemon grows with the node: 10, 100 and 1,000 VEs of five mounts each.

A VE is a process in a mount namespace and a cgroup of its own: a tmpfs as its root, an ext4 on a
loop image, a directory of that bound to a second place, and two more tmpfs. Nothing of the node's
mounts is left in it, as in a container that has changed its root by pivot_root(2).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import attribution
from bench.bench import daemon, percentile, scene, summary, table, wait_until
from bench.idle import cpu_s, rss_mb
from fswatchd.devno import Devno
from fswatchd.drill.paths import ScenePaths
from fswatchd.kernel import cgroup, loop, syscalls

SIZES = (10, 100, 1000)
_MOUNTS = 5
_STARTS = 3
_NEW = 30
_EVENTS = 100
_PAUSE_S = 0.05


class Ve:
    """One VE: its image, its declaration, and its process while it runs."""

    def __init__(self, paths: ScenePaths, number: int) -> None:
        self.name = f"ve{number:04d}"
        self.image = paths.directory / f"{self.name}.img"
        self.group = f"{paths.name}-{self.name}"
        self._root = paths.directory / "root"
        self.pid = 0
        with self.image.open("xb") as file:
            file.truncate(4 << 20)
        argv = ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-N", "64", str(self.image)]
        subprocess.run(argv, check=True)
        (paths.directory / "ve.d" / f"{self.name}.toml").write_text(
            f'[[ve]]\nname = "{self.name}"\ncgroup = "/{self.group}"\n'
            f'volume = [{{ image = "{self.image}", mountpoint = "/data" }}]\n'
        )

    def start(self) -> None:
        """Run it, and return when its last mount is there."""
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                self._become_ve()
                os.write(writer, b"R")
                while True:
                    signal.pause()
            os._exit(1)
        os.close(writer)
        assert os.read(reader, 1) == b"R", f"{self.name} does not start"
        os.close(reader)

    def end(self) -> None:
        """Kill it."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    @property
    def device(self) -> str:
        """The name of its loop device."""
        status = self.image.stat()
        (found,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
        return os.path.basename(found)

    def _become_ve(self) -> None:
        directory = cgroup.hierarchies()[0] / self.group
        directory.mkdir()
        (directory / "cgroup.procs").write_text(str(os.getpid()))
        image = os.open(self.image, os.O_RDWR)
        device, held = loop.attach(image, autoclear=True)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
        root = self._root
        syscalls.mount("tmpfs", str(root), "tmpfs", 0, "size=1m")
        for name in ("old", "data", "srv", "tmp", "run"):
            (root / name).mkdir()
        syscalls.mount(device, f"{root}/data", "ext4", 0, "errors=continue")
        os.close(held)
        os.close(image)
        (root / "data/srv").mkdir(exist_ok=True)
        syscalls.mount(f"{root}/data/srv", f"{root}/srv", None, 4096, None)  # MS_BIND
        syscalls.mount("tmpfs", f"{root}/tmp", "tmpfs", 0, "size=1m")
        syscalls.mount("tmpfs", f"{root}/run", "tmpfs", 0, "size=1m")
        syscalls.pivot_root(str(root), f"{root}/old")
        os.chdir("/")
        syscalls.umount("/old", syscalls.MNT_DETACH)


def run(
    sizes: tuple[int, ...] = SIZES, seconds: int = 60, starts: int = _STARTS
) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    found = {size: _measure(size, seconds, starts) for size in sizes}
    rows = [
        ("mounts in the VEs", *(one["mounts"] for one in found.values())),
        ("start to all attributed (s)", *(one["start_s"]["median"] for one in found.values())),
        ("… slowest start (s)", *(one["start_s"]["max"] for one in found.values())),
        ("… processor time of it (s)", *(one["start_cpu_s"] for one in found.values())),
        ("RSS (MB)", *(one["rss_mb"] for one in found.values())),
        (f"CPU in {seconds} idle s (%)", *(one["cpu_percent"] for one in found.values())),
        ("new VE known, median (ms)", *(one["new_ve_ms"]["median"] for one in found.values())),
        ("… p99 (ms)", *(one["new_ve_ms"]["p99"] for one in found.values())),
        (
            "error → stored with its VE, median (ms)",
            *(one["event_ms"]["median"] for one in found.values()),
        ),
        ("… p99 (ms)", *(one["event_ms"]["p99"] for one in found.values())),
        (
            "error → which VE, alone, median (ms of CPU)",
            *(one["attribution_ms"]["median"] for one in found.values()),
        ),
        ("… p99 (ms of CPU)", *(one["attribution_ms"]["p99"] for one in found.values())),
        (
            "… first after a look (ms of CPU)",
            *(one["attribution_ms"]["first"] for one in found.values()),
        ),
        ("load of the machine", *(one["load_after"] for one in found.values())),
        ("`status` of all VEs (ms)", *(one["status_ms"]["median"] for one in found.values())),
    ]
    result = {str(size): one for size, one in found.items()}
    return result, table("Scale", ("VEs", *map(str, sizes)), rows)


def _measure(size: int, seconds: int, starts: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    with scene() as paths, ExitStack() as ending:
        (paths.directory / "ve.d").mkdir()
        (paths.directory / "root").mkdir()
        ves = [Ve(paths, number) for number in range(size)]
        for ve in ves:
            ending.callback(ve.end)
            ve.start()
        alone = attribution.run(paths.directory / "ve.d", {ve.name: ve.device for ve in ves})
        new = [Ve(paths, size + number) for number in range(_NEW)]
        config = f'mode = "observe"\nves = ["{paths.directory}/ve.d"]\n'
        took, worked = [], []
        for _ in range(starts):
            begin = time.monotonic()
            with daemon(paths, config) as (client, pid):
                wait_until(lambda client=client: _known(client) >= size)
                took.append(time.monotonic() - begin)
                worked.append(cpu_s(pid))
            _forget(paths)
        with daemon(paths, config) as (client, pid):
            wait_until(lambda: _known(client) >= size)
            time.sleep(10)  # what follows a start is not idleness
            before = cpu_s(pid)
            time.sleep(seconds)
            share = (cpu_s(pid) - before) / seconds * 100
            statuses = [_timed(client) for _ in range(10)]
            news = []
            for ve in new:
                ending.callback(ve.end)
                begin = time.monotonic()
                ve.start()
                wait_until(lambda ve=ve: _known(client, ve.name))
                news.append(time.monotonic() - begin)
                time.sleep(1.5)  # until nothing is looked for any more
            events = _events(client, ves[:10])
            memory = rss_mb(pid)
    return {
        "ves": size,
        "mounts": size * _MOUNTS,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "start_s": {
            "n": starts,
            "median": round(percentile(took, 0.5), 2),
            "max": round(max(took), 2),
        },
        "start_cpu_s": round(percentile(worked, 0.5), 2),
        "rss_mb": round(memory, 1),
        "cpu_percent": round(share, 3),
        "new_ve_ms": summary(news),
        "event_ms": summary(events),
        "attribution_ms": alone,
        "status_ms": summary(statuses),
    }


def _events(client: Any, ves: list[Ve]) -> list[float]:
    """Seconds from the trigger to the stored event that names its VE."""
    triggers = [Path(f"/sys/fs/ext4/{ve.device}/trigger_fs_error") for ve in ves]
    injected = {}
    for number in range(_EVENTS):
        time.sleep(_PAUSE_S)
        injected[triggers[number % len(ves)].parent.name, number // len(ves)] = time.time_ns()
        triggers[number % len(ves)].write_text("scale")
    ours = {trigger.parent.name for trigger in triggers}
    wait_until(lambda: len(_stored(client, ours)) >= _EVENTS)
    seen: dict[str, int] = {}
    took = []
    for device, at in _stored(client, ours):
        count = seen[device] = seen.get(device, -1) + 1
        took.append((at - injected[device, count]) / 1e9)
    return took


def _stored(client: Any, devices: set[str]) -> list[tuple[str, int]]:
    """(device, when it was stored) of every event of fanotify on these that names a VE."""
    found, cursor = [], 0
    while page := client.get("/v1/events", since=cursor)["events"]:
        cursor = page[-1]["cursor"]
        for event in page:
            if event["source"] == "fanotify" and event["ves"] and event["device"] in devices:
                moment = datetime.fromisoformat(event["stored"])
                found.append((event["device"], int(moment.timestamp() * 1e6) * 1000))
    return found


def _known(client: Any, name: str | None = None) -> int:
    found = client.get("/v1/status", ve=name)["ves"]
    return sum(ve["state"] == "running" and bool(ve["filesystems"]) for ve in found)


def _timed(client: Any) -> float:
    begin = time.monotonic()
    client.get("/v1/status")
    return time.monotonic() - begin


def _forget(paths: ScenePaths) -> None:
    for file in (paths.directory / "state").glob("fswatchd.db*"):
        file.unlink()
