"""Repair by clone beside the classic stop, fsck, start: the same image, one run.

`outage` is the longest time in which the VE could not read, `write pause` the longest between two
acknowledged writes; both contain the VE's stop and start. Both ways begin with a copy of one image
(its blocks shared), damaged in the same place, and nothing of it in memory. The bystander is
another VE that syncs on the same host filesystem all the while. What the disk does in a second can
be limited: where it is faster than the processor, only the processor is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.bench import daemon, scene, table, wait_until
from bench.disk import RENTED, limited
from fswatchd.client import Client
from fswatchd.devno import Devno
from fswatchd.drill import faults, inside, measure, ve
from fswatchd.drill import scene as building
from fswatchd.drill.control import ControlServer
from fswatchd.drill.damage import Scene
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import BYSTANDER, TARGET
from fswatchd.kernel import loop
from fswatchd.units import parse_size

SIZES = (("1G", 20_000), ("4G", 100_000), ("16G", 200_000), ("64G", 1_000_000))

GOES_ON = "errors=continue"
STOPS = "errors=remount-ro"

# As in a system of Debian (8 to 10); with hundreds, a check reads next to nothing.
_PER_DIRECTORY = 10
_BASELINE_S = 3.0
# Where the kernel has stopped writes, a repair compares what changed in the last minute: in a
# system that runs not all of its files.
_SETTLED_S = 70.0
_REPAIR_TIMEOUT_S = 1800.0
_RULE = """
[[rule]]
name = "repair"
match.class = ["corruption", "readonly", "shutdown"]
mode = "auto"
healthy = "1s"
flap = "0s"
cooldown = "0s"
[[rule.step]]
do = "fsck"
strategy = "clone"
max_write_pause = "30m"
"""

Way = Callable[[], None]


def run(
    sizes: tuple[tuple[str, int], ...] = SIZES, options: str = GOES_ON
) -> tuple[dict[str, Any], str]:
    """Numbers and a table. Raises RuntimeError where a repair fails, or loses something.

    With `options` STOPS the kernel stops writes at the fault, from which their pause counts then.
    """
    results = []
    for size, files in sizes:
        for result in each_disk(size, files, options):
            results.append(result)
            print(f"  {json.dumps(result)}", flush=True)
    rows = [
        (
            f"{r['size']}, {r['files'] // 1000}k files",
            r["disk"],
            f"{r['clone']['outage_s']:.2f}",
            f"{r['classic']['outage_s']:.2f}",
            f"{r['ratio']:.1f}",
            f"{r['clone']['write_pause_s']:.2f}",
            f"{r['write_pause_ratio']:.2f}",
            f"{r['clone']['gap_added_s']:+.3f}",
            f"{r['clone']['acked']['lost']}, {r['classic']['acked']['lost']}",
        )
        for r in results
    ]
    heads = (
        "",
        "disk",
        "outage, clone (s)",
        "outage, classic (s)",
        "classic / clone",
        "write pause, clone (s)",
        "of the classic outage",
        "added to the bystander's largest fsync gap (s)",
        "acknowledged writes lost: clone, classic",
    )
    title = "A damaged directory block in a running VE"
    if options == STOPS:
        title += ", writes to which the kernel has stopped"
    return {"repair": results}, table(title, heads, rows)


def each_disk(size: str, files: int, options: str) -> Iterator[dict[str, Any]]:
    """One image, repaired in both ways, on the disk as it is and on one such as is rented."""
    with scene() as paths:
        began = time.monotonic()
        _build(paths, parse_size(size), files, options)
        built_s = round(time.monotonic() - began, 1)
        if options == STOPS:
            time.sleep(_SETTLED_S)
        control = ControlServer(paths.control)
        host = Devno.of(os.stat(paths.host).st_dev)
        try:
            _command(paths, BYSTANDER, "start")
            for disk, limit in (("this", None), ("rented", RENTED)):
                with limited(host, limit):
                    classic, clone = _both(paths, control)
                yield {
                    "size": size,
                    "files": files,
                    "disk": disk,
                    "built_s": built_s,
                    "clone": clone,
                    "classic": classic,
                    "ratio": round(classic["outage_s"] / clone["outage_s"], 2),
                    "write_pause_ratio": round(clone["write_pause_s"] / classic["outage_s"], 3),
                }
        finally:
            control.close()


def _build(paths: ScenePaths, size_bytes: int, files: int, options: str) -> None:
    """The host, the two VEs, and what the daemon has to know of one of them."""
    # What one way, or a preview, has read must not be in memory for the next one.
    building.build_host(paths, 3 * size_bytes + (8 << 30), direct_io=True)
    for name, bytes_, many in ((TARGET, size_bytes, files), (BYSTANDER, 256 << 20, 300)):
        building.build_ve(
            paths,
            name,
            size_bytes=bytes_,
            files=many,
            features=[],
            options=options,
            per_directory=_PER_DIRECTORY,
        )
    for directory, file, text in (
        ("rules.d", "repair.toml", _RULE),
        ("ve.d", "target.toml", _declaration(paths)),
    ):
        (paths.directory / directory).mkdir()
        (paths.directory / directory / file).write_text(text)


def _both(paths: ScenePaths, control: ControlServer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The classic way, then the daemon's."""
    classic = _measured(paths, control, lambda: _by_hand(paths))
    directory = paths.directory
    config = f'mode = "auto"\nrules = ["{directory}/rules.d"]\nves = ["{directory}/ve.d"]\n'
    with daemon(paths, config) as (client, _):
        clone = _measured(paths, control, lambda: _by_daemon(client), client)
    # An abort can make the kernel acknowledge what it then drops (`measure.Acked`): the classic way
    # loses that.
    if lost := clone["acked"]["lost"]:
        raise RuntimeError(f"{lost} acknowledged writes are lost")
    return classic, clone


def _measured(
    paths: ScenePaths, control: ControlServer, way: Way, client: Client | None = None
) -> dict[str, Any]:
    """Damage the VE's directory in a fresh copy of the image, and let it be repaired."""
    image = paths.image(TARGET)
    pristine = image.with_name("pristine.img")
    if pristine.exists():
        image.unlink()
    else:
        os.rename(image, pristine)
    subprocess.run(["cp", "--reflink=always", pristine, image], check=True)
    before = control.records.get(TARGET)
    known = len(before.acked) if before else 0
    _command(paths, TARGET, "start")
    if not control.wait_for(TARGET, 60):
        raise RuntimeError("the VE does not read and write")
    if client is not None:
        wait_until(lambda: client.get("/v1/status", ve=TARGET)["ves"][0]["filesystems"])
    measure.drop_caches(paths)
    begin = time.monotonic_ns()
    time.sleep(_BASELINE_S)
    injected = time.monotonic_ns()
    faults.FAULTS["ext4"]["dir-block"].inject(Scene(paths=paths, control=control))
    way()
    after = time.monotonic_ns()
    if not control.wait_for_ack_after(TARGET, after, 60):
        raise RuntimeError("the VE does not write after its repair")
    until = time.monotonic_ns()
    record, beside = control.records[TARGET], control.records[BYSTANDER]
    bystander = measure.bystander(beside, begin, injected, until)
    result = {
        "outage_s": measure.outage_s(record, injected, until),
        "write_pause_s": measure.write_pause_s(record, injected, until),
        "gap_added_s": round(bystander["max_gap_s"] - bystander["baseline_gap_s"], 4),
        "bystander": bystander,
        "acked": _acked(paths, control, known),
        "took_s": round((after - injected) / 1e9, 3),
    }
    _command(paths, TARGET, "kill")
    _wait_released(str(image))
    return result


def _acked(paths: ScenePaths, control: ControlServer, known: int) -> dict[str, int]:
    """What was acknowledged since this copy of the image was started, looked for by content."""
    measure.drop_caches(paths)
    names = control.records[TARGET].acked[known:]
    answers = control.ask(TARGET, "manifest", path=inside.WORK)
    there = {answer["digest"] for answer in answers if "digest" in answer}
    there |= measure.salvaged(paths.image(TARGET))
    lost = sum(measure.digest(name) not in there for name in names)
    return {"written": len(names), "lost": lost}


def _by_daemon(client: Client) -> None:
    """The daemon hears it, and repairs it by its rule."""

    def ended() -> bool:
        found = client.get("/v1/incidents", all="1", ve=TARGET)["incidents"]
        if found and found[0]["state"] == "needs-operator":
            why = client.get(f"/v1/incidents/{found[0]['id']}/why")["text"]
            raise RuntimeError(f"not repaired: {why}")
        return bool(found) and found[0]["state"] in {"verifying", "closed"}

    wait_until(ended, _REPAIR_TIMEOUT_S)


def _by_hand(paths: ScenePaths) -> None:
    """What an admin does: stop the VE, e2fsck on its device, start it."""
    _command(paths, TARGET, "stop")
    image = str(paths.image(TARGET))
    _wait_released(image)
    fd = os.open(image, os.O_RDWR)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    try:
        done = subprocess.run(["e2fsck", "-fy", device], capture_output=True, check=False)
        if done.returncode not in {0, 1}:
            raise RuntimeError(f"e2fsck: {done.stdout[-500:]!r}")
    finally:
        os.close(loop_fd)
    _wait_released(image)
    _command(paths, TARGET, "start")


def _wait_released(image: str) -> None:
    status = os.stat(image)
    while loop.holders(Devno.of(status.st_dev), status.st_ino):
        time.sleep(0.002)


def _command(paths: ScenePaths, name: str, action: str) -> None:
    subprocess.run(ve.command(action, paths.spec(name)), check=True)


def _declaration(paths: ScenePaths) -> str:
    lines = [f'[[ve]]\nname = "{TARGET}"\ncgroup = "{paths.cgroup(TARGET)}"']
    lines.append(f'volume = [{{ image = "{paths.image(TARGET)}", mountpoint = "/" }}]')
    lines += [
        f"{action} = {json.dumps(ve.command(action, paths.spec(TARGET)))}"
        for action in ("start", "stop", "kill")
    ]
    return "\n".join(lines) + "\n"
