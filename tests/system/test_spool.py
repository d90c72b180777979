"""The disk with the daemon's own database does not answer: what is heard meanwhile is kept."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.kernel import fs
from tests.system.conftest import wait_until
from tests.system.test_sources import events, image, mounted, source, start, trigger

__all__ = ["image"]


@pytest.fixture
def state_disk(work: Path):
    """A filesystem of its own for the database: its descriptor; thawed at the end."""
    disk, point = work / "state.img", work / "state"
    with disk.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(disk)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(point)], check=True)
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    with suppress(OSError):  # it is not frozen any more
        fs.thaw(fd)
    os.close(fd)


def test_killed_while_the_disk_hangs_the_next_start_has_all_events(
    daemon, work, image, state_disk
) -> None:
    device = mounted(work, image)
    name = os.path.basename(device)

    def heard() -> list[dict]:
        return events(daemon, source="fanotify", device=name)

    def incident() -> dict | None:
        """The open one, which is known without the database."""
        found = daemon.client.get("/v1/incidents")["incidents"]
        return next((i for i in found if i["filesystem"]["device"] == name), None)

    start(daemon)
    wait_until(lambda: "filesystems" in source(daemon, "fanotify")["detail"])
    trigger(device)
    wait_until(lambda: heard() and incident() and incident()["confirmed"])
    fs.freeze(state_disk)
    for count in range(2, 7):
        trigger(device)
        # What comes quickly the kernel may merge; the stream shows what is in the database.
        wait_until(lambda count=count: incident()["events"] >= count)
    # What the database has not taken is listed from memory, and status says what is wrong.
    assert [one["id"] for one in daemon.incidents() if one["id"] == incident()["id"]]
    assert len(heard()) == 1
    assert (daemon.run_dir / "events.spool").stat().st_size > 0
    os.kill(daemon.pid, 9)
    fs.thaw(state_disk)
    daemon.kill()
    daemon.start()
    cursors = [event["cursor"] for event in heard()]
    assert len(set(cursors)) == len(cursors)
    assert sum(event["count"] for event in heard()) == 6
    assert incident()["events"] >= 6
    wait_until(lambda: (daemon.run_dir / "events.spool").stat().st_size == 0)
