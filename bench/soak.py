"""Days, compressed: incidents by the ten thousand that begin and end, and what memory grows by.

Each is a real error of a filesystem, decided about by the shipped rules, told to a receiver, and
acknowledged by an operator. Then its filesystem is unmounted, which ends the incident, and mounted
again with another error to come.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bench import daemon, scene, table, wait_until
from bench.idle import rss_mb
from fswatchd.client import ClientError
from fswatchd.devno import Devno
from fswatchd.drill.receiver import Receiver
from fswatchd.kernel import loop

INCIDENTS = 20_000
_FILESYSTEMS = 100
# What is allocated once (caches that fill, SQLite's pages) is no growth.
_WARM_SHARE = 0.1
_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class _Filesystem:
    image: Path
    point: Path

    def make(self) -> None:
        with self.image.open("xb") as file:
            file.truncate(4 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(self.image)], check=True)
        self.point.mkdir()

    def mount(self) -> str:
        """Its device."""
        options = "loop,errors=continue"
        subprocess.run(["mount", "-o", options, str(self.image), str(self.point)], check=True)
        status = self.image.stat()
        (device,) = loop.holders(Devno.of(status.st_dev), status.st_ino)
        return os.path.basename(device)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.point)], check=True)


def run(incidents: int = INCIDENTS, filesystems: int = _FILESYSTEMS) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    receiver = Receiver()
    with scene() as paths:
        secret = paths.directory / "secret"
        secret.write_text(receiver.secret)
        secret.chmod(0o600)
        made = [
            _Filesystem(paths.directory / f"{number}.img", paths.directory / f"mnt{number}")
            for number in range(filesystems)
        ]
        for one in made:
            one.make()
        config = (
            'mode = "observe"\nves = []\n[channel.soak]\nkind = "webhook"\n'
            f'url = "{receiver.url}"\nsecret_file = "{secret}"\n'
        )
        with daemon(paths, config) as (client, pid):
            result = _soak(client, pid, made, incidents)
    result["told"] = len(receiver.notices)
    receiver.close()
    heads = ("incidents", "took (s)", "RSS warm (MB)", "RSS at the end", "grew by", "notices")
    keys = ("incidents", "seconds", "rss_warm_mb", "rss_mb", "rss_growth_mb", "told")
    return result, table("Soak", heads, [tuple(result[key] for key in keys)])


def _soak(client: Any, pid: int, made: list[_Filesystem], incidents: int) -> dict[str, Any]:
    begin, done, warm = time.monotonic(), 0, 0.0
    samples: list[tuple[int, float]] = [(0, rss_mb(pid))]
    while done < incidents:
        done += _round(client, made)
        if done >= incidents * len(samples) / _SAMPLES:
            samples.append((done, round(rss_mb(pid), 1)))
            print(f"  {samples[-1]}", flush=True)
        if not warm and done >= incidents * _WARM_SHARE:
            warm = rss_mb(pid)
    last = rss_mb(pid)
    return {
        "incidents": done,
        "seconds": round(time.monotonic() - begin),
        "rss_warm_mb": round(warm, 1),
        "rss_mb": round(last, 1),
        "rss_growth_mb": round(last - warm, 1),
        "samples": samples,
    }


def _round(client: Any, made: list[_Filesystem]) -> int:
    """An incident of each of the filesystems, from its begin to its end; how many."""
    devices = [one.mount() for one in made]
    for device in devices:
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("soak")
    ids = wait_until(lambda: _decided(client, devices, len(made)), 120)
    for incident_id in ids:
        with suppress(ClientError):  # what was left of the round before may have ended meanwhile
            client.post(f"/v1/incidents/{incident_id}/ack", {"reason": "soak"})
    for one in made:
        one.unmount()
    wait_until(lambda: not _decided(client, devices, 1), 120)
    return len(ids)


def _decided(client: Any, devices: list[str], at_least: int) -> list[str]:
    """The open incidents of these devices that have met a rule, once there are so many."""
    found = client.get("/v1/incidents")["incidents"]
    ids = [i["id"] for i in found if i["filesystem"]["device"] in devices and i["rule"]]
    return ids if len(ids) >= at_least else []
