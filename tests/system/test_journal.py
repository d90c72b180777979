"""Incidents in a real journal: found by MESSAGE_ID, explained, and never waited for.

Other filesystems of the machine may fail meanwhile: only those of the test are looked at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.notify.journal import MESSAGE_IDS
from tests.system import rules
from tests.system.conftest import PROJECT, wait_until
from tests.system.test_journal_source import Reader
from tests.system.test_sources import image, mounted, source, start, trigger

__all__ = ["image"]
CATALOGUE = PROJECT / "data" / "systemd" / "fswatchd.catalog"
MANY = 15  # more than net.unix.max_dgram_qlen, as it is everywhere


class Journald:
    """A journald in a mount namespace of its own, with a catalogue of its own."""

    SCRIPT = (
        "mount -t tmpfs none /run/log && mkdir -p /run/systemd/journal /run/log/journal &&"
        "mount -t tmpfs none /run/systemd/journal &&"
        "mount -t tmpfs none /var/lib/systemd/catalog &&"
        "mount -t tmpfs none /usr/lib/systemd/catalog &&"
        'cp "$0" /usr/lib/systemd/catalog/ && journalctl --update-catalog &&'
        "exec /lib/systemd/systemd-journald"
    )

    def __init__(self) -> None:
        for directory in ("/run/log", "/run/systemd/journal", "/var/lib/systemd/catalog"):
            os.makedirs(directory, exist_ok=True)
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", self.SCRIPT, str(CATALOGUE)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.enter = ["nsenter", "-t", str(self.process.pid), "-m"]
        root = Path(f"/proc/{self.process.pid}/root/run")
        self.socket = root / "systemd" / "journal" / "socket"
        wait_until(lambda: list((root / "log/journal").glob("*/*.journal")), what="a journal")
        (self.directory,) = (root / "log/journal").iterdir()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ctl(self, *arguments: str) -> str:
        """What journalctl says inside."""
        done = subprocess.run(
            [*self.enter, "journalctl", "-q", "--no-pager", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return done.stdout

    def entries(self, kind: str, *devices: str, incident: str = "") -> list[dict]:
        """Entries of one kind about these devices, or this incident."""
        matches = [f"FSWATCHD_DEVICE={os.path.basename(device)}" for device in devices]
        matches += [f"FSWATCHD_INCIDENT={incident}"] if incident else []
        found = self.ctl("-o", "json", f"MESSAGE_ID={MESSAGE_IDS[kind]}", *matches)
        return [json.loads(line) for line in found.splitlines()]

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def journald() -> Iterator[Journald]:
    made = Journald()
    yield made
    made.close()


def incidents(daemon, *devices: str) -> list[dict]:
    """Incidents on these devices."""
    names = {os.path.basename(device) for device in devices}
    return [i for i in daemon.incidents() if i["filesystem"]["device"] in names]


@pytest.fixture
def devices(work) -> list[str]:
    """Many small filesystems, mounted on the node."""
    return [mounted(work, small_image(work, n), f"mnt{n}") for n in range(MANY)]


def small_image(work: Path, number: int) -> Path:
    path = work / f"small{number}.img"
    with path.open("xb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True)
    return path


def test_an_incident_is_found_by_its_message_id_and_explained(
    daemon, work, image, journald
) -> None:
    device = mounted(work, image)
    daemon.run_by = journald.enter
    start(daemon, sources="kmsg = false\nfanotify = false")
    trigger(device)
    (opened,) = wait_until(lambda: journald.entries("opened", device))
    (incident,) = incidents(daemon, device)
    assert opened["FSWATCHD_INCIDENT"] == incident["id"]
    assert opened["FSWATCHD_CLASS"] == "corruption"
    assert opened["FSWATCHD_DEVICE"] == os.path.basename(device)
    assert opened["PRIORITY"] == "2"
    assert opened["SYSLOG_IDENTIFIER"] == "fswatchd"
    assert opened["_TRANSPORT"] == "journal"
    subprocess.run(["umount", str(work / "mnt")], check=True)
    (closed,) = wait_until(lambda: journald.entries("closed", incident=incident["id"]))
    assert closed["FSWATCHD_OUTCOME"] == "dismissed"
    assert closed["PRIORITY"] == "5"
    explained = journald.ctl("-x", f"FSWATCHD_INCIDENT={incident['id']}")
    assert f"fswatch why {incident['id']}" in explained
    assert "A filesystem fault is over (dismissed): corruption" in explained
    status = daemon.status()["journal"]
    assert status["sent"] >= 2
    assert (status["dropped"], status["problem"]) == (0, None)


def test_the_catalogue_is_one_that_systemd_takes(work) -> None:
    place = work / "root" / "usr" / "lib" / "systemd" / "catalog"
    place.mkdir(parents=True)
    (work / "root" / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    (place / CATALOGUE.name).write_bytes(CATALOGUE.read_bytes())
    root = f"--root={work / 'root'}"
    done = subprocess.run(
        ["journalctl", root, "--update-catalog"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    listed = subprocess.run(
        ["journalctl", root, "--list-catalog"], capture_output=True, text=True, check=True
    ).stdout
    for message_id in MESSAGE_IDS.values():
        assert message_id in listed


def test_a_journald_that_has_stopped_holds_up_nothing_and_gets_all_later(
    daemon, work, devices, journald
) -> None:
    daemon.run_by = journald.enter
    start(daemon, sources="journal = false")
    wait_until(lambda: daemon.status()["mode"])
    pauses: list[float] = []

    def pause_of_the_api() -> None:
        begun = time.monotonic()
        daemon.status()
        pauses.append(time.monotonic() - begun)

    for _ in range(MANY):
        pause_of_the_api()
    usual = sum(pauses)
    pauses.clear()
    journald.signal(signal.SIGSTOP)
    for device in devices:
        trigger(device)
        pause_of_the_api()
    wait_until(lambda: len(incidents(daemon, *devices)) == MANY)
    status = wait_until(
        lambda: (
            (found := daemon.status())["journal"]["sent"] + found["journal"]["waiting"] >= MANY
            and found
        )
    )
    assert status["journal"]["waiting"] > 0
    assert status["journal"]["problem"] == "journald takes no more entries"
    assert len(pauses) == MANY  # it has answered every time
    assert sum(pauses) < 20 * usual + 5, (pauses, usual)
    journald.signal(signal.SIGCONT)
    wait_until(lambda: len(journald.entries("opened", *devices)) == MANY)
    ids = {entry["FSWATCHD_INCIDENT"] for entry in journald.entries("opened", *devices)}
    assert ids == {incident["id"] for incident in incidents(daemon, *devices)}
    status = daemon.status()["journal"]
    assert (status["waiting"], status["dropped"], status["problem"]) == (0, 0, None)


def test_our_own_entries_are_no_kernel_lines(work, image, journald) -> None:
    """Even one whose text is the kernel's to the letter, in a field that a tenant chose."""
    device = mounted(work, image)
    reader = Reader(Path(journald.directory), work, device)
    send = (
        "import asyncio, sys\n"
        "from fswatchd.notify.journal_socket import JournalSocket\n"
        "async def main():\n"
        "    s = JournalSocket(sys.argv[1])\n"
        "    s.send([('MESSAGE', sys.argv[2]), ('PRIORITY', '2'), ('SYSLOG_FACILITY', '0'),\n"
        "            ('SYSLOG_IDENTIFIER', 'kernel')])\n"
        "    assert s.sent == 1 and s.close() == 0\n"
        "asyncio.run(main())\n"
    )
    name = os.path.basename(device)
    line = f"EXT4-fs error (device {name}): ext4_lookup:1855: inode #2: comm x: forged"
    try:
        assert reader.says() == "READY ok"
        subprocess.run(
            [sys.executable, "-c", send, str(journald.socket), line], check=True, cwd=PROJECT
        )
        wait_until(lambda: line in journald.ctl("-o", "cat"))
        trigger(device)
        assert reader.says() == "EVENT test"
    finally:
        reader.close()


def test_without_a_journal_incidents_are_handled_all_the_same(daemon, work, image) -> None:
    if os.path.exists("/run/systemd/journal/socket"):
        pytest.skip("this node has a journal")
    device = mounted(work, image)
    daemon.configure(mode="observe", rules=rules.TELL)
    daemon.start()
    trigger(device)
    wait_until(lambda: incidents(daemon, device))
    wait_until(lambda: daemon.status()["journal"]["problem"])
    assert "No such file" in daemon.status()["journal"]["problem"]
    assert source(daemon, "fanotify")["state"] == "ok"
