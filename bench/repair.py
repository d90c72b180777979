"""Repair by clone beside the classic stop, fsck, start: the same image, one run.

`outage` is the longest time in which the VE could not read, `write pause` the longest between two
acknowledged writes; both contain the VE's stop and start. The bystander is another VE that syncs on
the same host filesystem all the while.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from bench.bench import PROJECT, scene, table
from fswatchd.devno import Devno
from fswatchd.drill import faults, measure, ve
from fswatchd.drill import scene as building
from fswatchd.drill.control import ControlServer
from fswatchd.drill.damage import Scene
from fswatchd.drill.scene import TARGET
from fswatchd.kernel import loop
from fswatchd.units import parse_size

SIZES = (("1G", 20_000), ("4G", 20_000), ("4G", 200_000), ("16G", 20_000), ("16G", 200_000))


def run(sizes: tuple[tuple[str, int], ...] = SIZES) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    results = []
    for size, files in sizes:
        clone = by_clone(size, files)
        classic = by_hand(size, files)
        results.append({"size": size, "files": files, "clone": clone, "classic": classic})
        print(
            f"  {size}, {files} files: {clone['outage_s']} s / {classic['outage_s']} s", flush=True
        )
    rows = [
        (
            f"{r['size']}, {r['files'] // 1000}k files",
            r["clone"]["outage_s"],
            r["classic"]["outage_s"],
            r["clone"]["write_pause_s"],
            r["classic"]["write_pause_s"],
            _gap(r["clone"]["bystander"]),
        )
        for r in results
    ]
    heads = (
        "",
        "outage, clone (s)",
        "outage, classic (s)",
        "write pause, clone (s)",
        "write pause, classic (s)",
        "bystander's largest fsync gap against its baseline (s)",
    )
    return {"repair": results}, table("A damaged directory block in a running VE", heads, rows)


def _gap(bystander: dict[str, Any]) -> str:
    return f"{bystander['max_gap_s'] - bystander['baseline_gap_s']:+.3f}"


def by_clone(size: str, files: int) -> dict[str, Any]:
    """The drill, with a daemon of its own."""
    script = "import sys; from fswatchd.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [
            *(sys.executable, "-c", script, "drill", "--private", "--json"),
            *("--size", size, "--files", str(files)),
        ],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if not result["passed"]:
        raise RuntimeError(f"the drill failed: {result['why_failed']}")
    return result


def by_hand(size: str, files: int) -> dict[str, Any]:
    """What an admin does: stop the VE, e2fsck on its device, start it."""
    with scene() as paths:
        building.build_host(paths, 4 * parse_size(size) + (8 << 30))
        building.build_ve(
            paths,
            TARGET,
            size_bytes=parse_size(size),
            files=files,
            features=[],
            options="errors=continue",
        )
        control = ControlServer(paths.control)
        subprocess.run(ve.command("start", paths.spec(TARGET)), check=True)
        assert control.wait_for(TARGET, 30)
        time.sleep(1)
        injected = time.monotonic_ns()
        faults.FAULTS["ext4"]["dir-block"].inject(Scene(paths=paths, control=control))
        begin = time.monotonic()
        subprocess.run(ve.command("stop", paths.spec(TARGET)), check=True)
        _fsck(str(paths.image(TARGET)))
        subprocess.run(ve.command("start", paths.spec(TARGET)), check=True)
        took = time.monotonic() - begin
        after = time.monotonic_ns()
        assert control.wait_for_ack_after(TARGET, after, 30)
        until = time.monotonic_ns()
        record = control.records[TARGET]
        result = {
            "outage_s": measure.outage_s(record, injected, until),
            "write_pause_s": measure.write_pause_s(record, injected, until),
            "took_s": round(took, 3),
        }
        control.close()
        return result


def _fsck(image: str) -> None:
    status = os.stat(image)
    while loop.holders(Devno.of(status.st_dev), status.st_ino):
        time.sleep(0.002)
    fd = os.open(image, os.O_RDWR)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    try:
        done = subprocess.run(["e2fsck", "-fy", device], capture_output=True, check=False)
        assert done.returncode in {0, 1}, done.stdout
    finally:
        os.close(loop_fd)
    while loop.holders(Devno.of(status.st_dev), status.st_ino):
        time.sleep(0.002)
