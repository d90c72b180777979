"""From exec(2) to READY=1: wall clock, processor time, and the memory at that moment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.bench import PROJECT, percentile, scene, table
from bench.idle import rss_mb

_RUNS = 11


def run(runs: int = _RUNS) -> tuple[dict[str, Any], str]:
    """Medians, and a table; a first run that fills the page cache is not counted."""
    with scene() as paths:
        seen = [_start(paths.directory, Path("/dev/shm") / paths.name) for _ in range(runs + 1)][1:]
    names = ("wall_s", "cpu_s", "rss_mb")
    result = {
        name: round(percentile(values, 0.5), 3)
        for name, values in zip(names, zip(*seen, strict=True), strict=True)
    }
    heads = ("runs", "until READY (s)", "processor time (s)", "RSS (MB)")
    return {"runs": runs, **result}, table("Start", heads, [(runs, *result.values())])


def _start(directory: Path, run_dir: Path) -> tuple[float, float, float]:
    config, address = directory / "start.toml", directory / "notify"
    config.write_text(
        f'[daemon]\nves = []\nstate_dir = "{directory}/state"\nruntime_dir = "{run_dir}"\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(os.fspath(address))
        notify.settimeout(120)
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "fswatchd", "--config", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=PROJECT,
            env=os.environ | {"NOTIFY_SOCKET": os.fspath(address)},
        )
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            wall = time.monotonic() - begin
            # The clock of another process's processor time: clock_getcpuclockid(3).
            cpu = time.clock_gettime((~process.pid << 3) | 2)
            memory = rss_mb(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            address.unlink()
            shutil.rmtree(run_dir, ignore_errors=True)
    return wall, cpu, memory
