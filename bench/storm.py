"""A storm: forged records by the ten thousand, and true errors between them.

The forged ones are lines that look like ext4's, written to /dev/kmsg by a process that may do so;
the true ones are errors of a VE's filesystem. What is measured: how long after the last true error
all of them are counted, what the API answers meanwhile, and what the daemon's memory grows by.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.bench import daemon, scene, summary, table, wait_until
from fswatchd.devno import Devno
from fswatchd.kernel import loop

FORGED, TRUE, SECONDS = 100_000, 1_000, 10.0
# A debug level: what goes to a slow serial console would set the pace.
_LINE = "<15>EXT4-fs error (device {}): ext4_lookup:1: inode #2: comm x: deleted inode referenced"
_FORGER = """
import os, sys, time
line, number, seconds = (sys.argv[1] + "\\n").encode(), int(sys.argv[2]), float(sys.argv[3])
fd = os.open("/dev/kmsg", os.O_WRONLY)
start = time.monotonic()
for done in range(number):
    os.write(fd, line)
    if done % 100 == 0:
        time.sleep(max(0.0, start + seconds * done / number - time.monotonic()))
"""
# "ratelimit" lets a descriptor write ten records in five seconds.
_LIMIT = Path("/proc/sys/kernel/printk_devkmsg")


def run(
    forged: int = FORGED, true: int = TRUE, seconds: float = SECONDS
) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    with scene() as paths:
        image, point = paths.directory / "plain.img", paths.directory / "mnt"
        with image.open("xb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
        point.mkdir()
        subprocess.run(["mount", "-o", "loop,errors=continue", str(image), str(point)], check=True)
        status = image.stat()
        (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
        limit = _LIMIT.read_text()
        _LIMIT.write_text("on\n")
        try:
            with daemon(paths, 'mode = "observe"\nves = []\n') as (client, pid):
                wait_until(lambda: _source(client, "state")["detail"])
                result = _storm(client, pid, os.path.basename(device), forged, true, seconds)
        finally:
            _LIMIT.write_text(limit)
    heads = ("forged", "true", "counted after (s)", "API median (ms)", "p99", "max", "RSS (MB)")
    api = result["api_ms"]
    row = (forged, result["counted"], result["counted_after_s"], api["median"], api["p99"])
    growth = f"{result['rss_before_mb']} + {result['rss_growth_mb']}"
    return result, table("Storm", heads, [(*row, api["max"], growth)])


def _storm(
    client: Any, pid: int, device: str, forged: int, true: int, seconds: float
) -> dict[str, Any]:
    before = _rss_mb(pid)
    forger = subprocess.Popen(
        [sys.executable, "-c", _FORGER, _LINE.format(device), str(forged), str(seconds)]
    )
    trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
    begin, answers = time.monotonic(), []
    for done in range(true):
        trigger.write_text("storm")
        if done % 10 == 0:
            asked = time.monotonic()
            client.get("/v1/status")
            answers.append(time.monotonic() - asked)
        time.sleep(max(0.0, begin + seconds * done / true - time.monotonic()))
    last = time.monotonic()
    wait_until(lambda: _counted(client, device) >= true)
    counted_after = time.monotonic() - last
    forger.wait()
    took = time.monotonic() - begin
    wait_until(lambda: _source(client, "kmsg")["state"] == "ok")
    return {
        "seconds": round(took, 1),
        "counted": _counted(client, device),
        "counted_after_s": round(counted_after, 3),
        "api_ms": summary(answers),
        "rss_before_mb": before,
        "rss_growth_mb": round(_rss_mb(pid) - before, 1),
        "kmsg_lost": _source(client, "kmsg")["lost"],
    }


def _counted(client: Any, device: str) -> int:
    incidents = client.get("/v1/incidents", all="1")["incidents"]
    return max((i["events"] for i in incidents if i["filesystem"]["device"] == device), default=0)


def _source(client: Any, name: str) -> dict[str, Any]:
    return dict(next(s for s in client.get("/v1/status")["sources"] if s["name"] == name))


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
