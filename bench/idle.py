"""An idle daemon with many VEs: processor time over a minute, and memory."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.bench import daemon, scene, table, wait_until

_VES = 100
_SECONDS = 60


def run(ves: int = _VES, seconds: int = _SECONDS) -> tuple[dict[str, Any], str]:
    """Numbers and a table. Each VE is a process with a mount namespace, a cgroup and an ext4."""
    with scene() as paths:
        directory = paths.directory / "ves"
        directory.mkdir()
        (paths.directory / "ve.d").mkdir()
        config = f'ves = ["{paths.directory}/ve.d"]\n'
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes += [_ve(paths, directory, number) for number in range(ves)]
            with daemon(paths, config) as (client, pid):
                wait_until(lambda: _known(client) >= ves, 120)
                time.sleep(5)  # what follows a start is not idleness
                before = cpu_s(pid)
                time.sleep(seconds)
                share = (cpu_s(pid) - before) / seconds * 100
                memory = sum(rss_mb(p) for p in [pid, *_children(pid)])
                own = rss_mb(pid)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
    result = {
        "ves": ves,
        "seconds": seconds,
        "cpu_percent": round(share, 3),
        "rss_mb": round(own, 1),
        "rss_with_helper_mb": round(memory, 1),
    }
    rows = [(ves, result["cpu_percent"], result["rss_mb"], result["rss_with_helper_mb"])]
    heads = ("VEs", "CPU over 60 s (%)", "RSS (MB)", "RSS with its helper (MB)")
    return result, table("Idle", heads, rows)


def _ve(paths: Any, directory: Path, number: int) -> subprocess.Popen[bytes]:
    image = directory / f"{number}.img"
    with image.open("xb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    pid_file = directory / f"{number}.pid"
    script = f"mount -o loop {image} /mnt && echo $$ > {pid_file} && exec sleep 3600"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script])
    wait_until(pid_file.exists)
    (paths.directory / "ve.d" / f"{number}.toml").write_text(
        f'[[ve]]\nname = "ve{number}"\npid_file = "{pid_file}"\n'
        f'volume = [{{ image = "{image}" }}]\n'
    )
    return process


def _known(client: Any) -> int:
    return sum(bool(ve["filesystems"]) for ve in client.get("/v1/status")["ves"])


def cpu_s(pid: int) -> float:
    """Processor seconds that a daemon and its helpers have used."""
    total = 0.0
    for each in [pid, *_children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(pid: int) -> list[int]:
    return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
