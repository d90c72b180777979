"""What all benchmarks share: a scratch directory, a daemon, percentiles, a table."""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fswatchd.client import Client, ClientError
from fswatchd.drill import janitor
from fswatchd.drill.paths import ScenePaths

PROJECT = Path(__file__).parents[1]
PARENT = Path("/var/tmp")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def summary(values: Sequence[float], unit: float = 1000.0) -> dict[str, Any]:
    """Median and p99 in milliseconds (or in 1/`unit` s), and how many there were."""
    return {
        "n": len(values),
        "median": round(percentile(values, 0.5) * unit, 3),
        "p99": round(percentile(values, 0.99) * unit, 3),
        "max": round(max(values) * unit, 3),
    }


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, as it stands in the README."""
    lines = [f"### {title}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([*lines, ""])


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def scene() -> Iterator[ScenePaths]:
    """A directory with a drill's name, so that the janitor may clean it."""
    paths = ScenePaths.new(PARENT)
    try:
        yield paths
    finally:
        for directory in Path("/sys/fs/cgroup").glob(f"**/{paths.name}*"):
            _end(directory)
        for point in _mounts_below(paths.directory):
            subprocess.run(["umount", point], check=False)
        janitor.clean(paths)
        left = janitor.leftovers(paths)
        if left:
            print(f"left behind: {left}", file=sys.stderr)


@contextmanager
def daemon(paths: ScenePaths, config: str) -> Iterator[tuple[Client, int]]:
    """A daemon with this configuration: its client and its process id.

    As on a node, its runtime directory is on tmpfs.
    """
    run = Path("/dev/shm") / paths.name
    path = paths.directory / "bench.toml"
    path.write_text(
        f'[daemon]\nstate_dir = "{paths.directory}/state"\nruntime_dir = "{run}"\n{config}'
    )
    with (paths.directory / "bench.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fswatchd", "--config", str(path)],
            stdout=log,
            stderr=log,
            cwd=PROJECT,
        )
    client = Client(f"{run}/api.sock")
    try:
        wait_until(lambda: _answers(client))
        yield client, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(run)


def wait_until(question: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(0.005)
    return answer


def _answers(client: Client) -> bool:
    try:
        client.get("/v1/status")
    except ClientError:
        return False
    return True


def _end(directory: Path) -> None:
    kill = directory / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
        wait_until(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


def _mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4] for line in lines]
    return [point for point in reversed(points) if point.startswith(f"{path}/")]
