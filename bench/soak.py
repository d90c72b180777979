"""A day's work and more, compressed: errors by the ten thousand, and what memory grows by.

Each is a real error of a filesystem, decided about by the shipped rules, and acknowledged by an
operator; then the same filesystem fails again. An acknowledgement ends no open incident: there is
one for each filesystem, which goes on, and is told once.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.bench import daemon, scene, table, wait_until
from bench.idle import rss_mb
from fswatchd.devno import Devno
from fswatchd.drill.receiver import Receiver
from fswatchd.kernel import loop

ERRORS = 20_000
_FILESYSTEMS = 50
# What is allocated once (caches that fill, SQLite's pages) is no growth.
_WARM_SHARE = 0.1
_SAMPLES = 20


def run(errors: int = ERRORS, filesystems: int = _FILESYSTEMS) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    receiver = Receiver()
    with scene() as paths:
        secret = paths.directory / "secret"
        secret.write_text(receiver.secret)
        secret.chmod(0o600)
        devices = [_mounted(paths.directory, number) for number in range(filesystems)]
        config = (
            'mode = "observe"\nves = []\n[channel.soak]\nkind = "webhook"\n'
            f'url = "{receiver.url}"\nsecret_file = "{secret}"\n'
        )
        with daemon(paths, config) as (client, pid):
            wait_until(lambda: len(_filesystems(client)) >= filesystems, 120)
            result = _soak(client, pid, devices, errors)
    result["told"] = len(receiver.notices)
    receiver.close()
    heads = ("errors", "took (s)", "RSS warm (MB)", "RSS at the end", "grew by", "notices")
    keys = ("errors", "seconds", "rss_warm_mb", "rss_mb", "rss_growth_mb", "told")
    return result, table("Soak", heads, [tuple(result[key] for key in keys)])


def _mounted(directory: Path, number: int) -> str:
    image, point = directory / f"{number}.img", directory / f"mnt{number}"
    with image.open("xb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop,errors=continue", str(image), str(point)], check=True)
    status = image.stat()
    (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
    return os.path.basename(device)


def _filesystems(client: Any) -> list[Any]:
    source = next(s for s in client.get("/v1/status")["sources"] if s["name"] == "state")
    return list(range(int(source["detail"].split()[0]))) if source["detail"] else []


def _soak(client: Any, pid: int, devices: list[str], errors: int) -> dict[str, Any]:
    begin, done, warm = time.monotonic(), 0, 0.0
    samples: list[tuple[int, float]] = [(0, rss_mb(pid))]
    while done < errors:
        for device in devices:
            Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("soak")
        ids = wait_until(lambda: _decided(client, devices), 120)
        for incident_id in ids:
            client.post(f"/v1/incidents/{incident_id}/ack", {"reason": "soak"})
        done += len(ids)
        if done >= errors * len(samples) / _SAMPLES:
            samples.append((done, round(rss_mb(pid), 1)))
        if not warm and done >= errors * _WARM_SHARE:
            warm = rss_mb(pid)
    last = rss_mb(pid)
    return {
        "errors": done,
        "seconds": round(time.monotonic() - begin),
        "rss_warm_mb": round(warm, 1),
        "rss_mb": round(last, 1),
        "rss_growth_mb": round(last - warm, 1),
        "samples": samples,
    }


def _decided(client: Any, devices: list[str]) -> list[str]:
    """The open incidents, once there is one for each device, and each has met a rule."""
    found = client.get("/v1/incidents")["incidents"]
    ids = [i["id"] for i in found if i["filesystem"]["device"] in devices and i["rule"]]
    return ids if len(ids) >= len(devices) else []
