"""The journal as a source, with a real journald: what it hears, rotation, vacuum, restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fswatchd.engine import canary
from fswatchd.kernel import cgroup, proc
from tests.system.conftest import wait_until
from tests.system.test_sources import TestKernelLog as KernelLog
from tests.system.test_sources import image, mounted, trigger

__all__ = ["image"]

JOURNALD = "/lib/systemd/systemd-journald"


@pytest.fixture
def journald(work) -> Iterator[subprocess.Popen[bytes]]:
    """A journald in a mount namespace of its own: two would share one another's lines."""
    yield from _journald(f"exec {JOURNALD}")


@pytest.fixture
def rebooting(work) -> Iterator[subprocess.Popen[bytes]]:
    """The same of another boot; when that journald ends, another one goes on in this boot."""
    (work / "boot_id").write_text("0f0f0f0f-1234-4321-8765-0123456789ab\n")
    where = "/proc/sys/kernel/random/boot_id"
    before = f"mount --bind {work}/boot_id {where} && {JOURNALD}"
    yield from _journald(f"{before}; umount {where} && exec {JOURNALD}")


def _reboot(journald: subprocess.Popen[bytes]) -> None:
    _end_children(journald)
    wait_until(lambda: "journal" in proc.command_name(journald.pid), what="the other journald")


def _end_children(process: subprocess.Popen[bytes]) -> None:
    for pid in proc.children(process.pid):
        os.kill(pid, signal.SIGTERM)


def _journald(run: str) -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "mount -t tmpfs none /run/log && mkdir -p /run/systemd/journal /run/log/journal &&"
        f"mount -t tmpfs none /run/systemd/journal && {run}"
    )
    os.makedirs("/run/log", exist_ok=True)
    os.makedirs("/run/systemd/journal", exist_ok=True)
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(
        lambda: list(Path(f"/proc/{process.pid}/root/run/log/journal").glob("*/*.journal")),
        what="a journal",
    )
    yield process
    process.terminate()
    _end_children(process)
    process.wait(10)


READ = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources.journal import JournalSource

kept = Path(sys.argv[3])

class Sink:
    def event(self, event):
        if event.device == sys.argv[4]:
            told = "PAST" if event.past else "EVENT"
            print(told, event.detail.rpartition(" ")[2], flush=True)
    def lost(self, lost): print("LOST", lost.reason, flush=True)
    def canary(self, source, token): print("CANARY", token, flush=True)

class Cursor:
    def load(self): return kept.read_text() if kept.exists() else None
    def save(self, value):
        kept.write_text(value)
        print("CURSOR", flush=True)

async def main():
    def healer(line): print("HEALER", line.mountpoint, line.klass, flush=True)

    source = JournalSource(Sink(), shipped(), Cursor(), path=sys.argv[2], on_healer=healer)
    await source.start()
    source.expect_canary("singing")
    print("READY", source.status.state, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


class Reader:
    """The source in a process of its own, on this journald's files."""

    def __init__(self, directory: Path, work: Path, device: str) -> None:
        self.directory = directory
        self._device = os.path.basename(device)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", READ, str(Path(__file__).parents[2])),
                *(str(directory), str(work / "cursor"), self._device),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        """The next thing that it has heard, but for cursors."""
        assert self._process.stdout is not None
        while (line := self._process.stdout.readline().strip()) == "CURSOR":
            pass
        return line

    def keeps_its_place(self) -> None:
        """Until it has saved a cursor."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "CURSOR\n"

    def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def reader(work, image, request):
    """Of the journald that the test has."""
    name = "rebooting" if "rebooting" in request.fixturenames else "journald"
    journald = request.getfixturevalue(name)
    device = mounted(work, image)
    made: list[Reader] = []

    def read() -> Reader:
        (directory,) = Path(f"/proc/{journald.pid}/root/run/log/journal").iterdir()
        made.append(Reader(directory, work, device))
        return made[-1]

    read.device = device
    yield read
    for one in made:
        one.close()


def test_the_kernels_own_lines_are_heard_and_forged_ones_are_not(reader, journald) -> None:
    reading = reader()
    assert reading.says() == "READY ok"
    forged = KernelLog.FORGED.format(os.path.basename(reader.device))
    with open("/dev/kmsg", "w") as kmsg:
        kmsg.write(f"<2>{forged}\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(
            f"MESSAGE={forged}\nSYSLOG_IDENTIFIER=kernel\nSYSLOG_FACILITY=0\n"
            "_TRANSPORT=kernel\nPRIORITY=2\n".encode(),
            f"/proc/{journald.pid}/root/run/systemd/journal/socket",
        )
    trigger(reader.device, "true")
    assert reading.says() == "EVENT true"


def test_the_canary_comes_through_journald(reader) -> None:
    reading = reader()
    assert reading.says() == "READY ok"
    canary.write_record("another")
    canary.write_record("singing")
    assert reading.says() == "CANARY singing"


def test_nothing_is_lost_when_the_journal_is_rotated(reader, journald) -> None:
    reading = reader()
    assert reading.says() == "READY ok"
    for number in range(3):
        trigger(reader.device, f"before{number}")
        before = set(reading.directory.iterdir())
        journald.send_signal(signal.SIGUSR2)
        wait_until(lambda before=before: set(reading.directory.iterdir()) - before)
        trigger(reader.device, f"after{number}")
        assert reading.says() == f"EVENT before{number}"
        assert reading.says() == f"EVENT after{number}"


def test_a_restart_repeats_and_loses_nothing(reader) -> None:
    first = reader()
    assert first.says() == "READY ok"
    trigger(reader.device, "heard")
    assert first.says() == "EVENT heard"
    first.keeps_its_place()
    first.close()
    trigger(reader.device, "missed")
    second = reader()
    assert second.says() == "READY ok"
    assert second.says() == "EVENT missed"


def test_what_comes_after_a_first_run_that_heard_nothing_is_not_lost(reader) -> None:
    first = reader()
    first.keeps_its_place()
    first.close()
    trigger(reader.device, "missed")
    second = reader()
    assert second.says() == "READY ok"
    assert second.says() == "EVENT missed"


def test_what_was_said_before_this_boot_is_about_nothing_of_today(reader, rebooting) -> None:
    first = reader()
    assert first.says() == "READY ok"
    trigger(reader.device, "heard")
    assert first.says() == "PAST heard"
    first.keeps_its_place()
    first.close()
    trigger(reader.device, "missed")
    files = first.directory
    wait_until(lambda: any(b"missed" in one.read_bytes() for one in files.iterdir()))
    _reboot(rebooting)
    trigger(reader.device, "today")
    second = reader()
    assert second.says() == "READY ok"
    assert second.says() == "PAST missed"
    assert second.says() == "EVENT today"


def test_a_place_that_was_vacuumed_is_a_loss_and_reading_goes_on(reader, journald) -> None:
    first = reader()
    assert first.says() == "READY ok"
    trigger(reader.device, "kept")
    assert first.says() == "EVENT kept"
    first.keeps_its_place()
    first.close()
    journald.send_signal(signal.SIGUSR2)
    archived = wait_until(lambda: list(first.directory.glob("system@*")))
    for file in archived:
        file.unlink()
    second = reader()
    assert second.says().startswith("LOST the journal no longer has the place")
    assert second.says() == "READY ok"
    trigger(reader.device, "later")
    assert second.says() == "EVENT later"


def test_a_cursor_that_is_no_cursor_is_a_loss_and_reading_goes_on(reader, work) -> None:
    (work / "cursor").write_text("rubbish")
    reading = reader()
    assert reading.says().startswith("LOST")
    assert reading.says() == "READY ok"
    trigger(reader.device, "later")
    assert reading.says() == "EVENT later"


SERVICE = """
import os, socket, sys
with open(f"{sys.argv[1]}/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
# The protocol of systemd-cat(1): identifier, unit, priority, and four switches, a line each.
with socket.socket(socket.AF_UNIX) as out:
    out.connect(sys.argv[2])
    out.sendall(b"test\\n\\n6\\n0\\n0\\n0\\n0\\n" + os.fsencode(sys.argv[3]) + b"\\n")
    out.shutdown(socket.SHUT_WR)
    out.recv(1)
"""


@pytest.fixture
def says_as(journald) -> Iterator[Callable[[str, str], None]]:
    """Say a line on the standard output of a service in this cgroup."""
    made: list[Path] = []

    def say(group: str, line: str) -> None:
        directory = cgroup.hierarchies()[0]
        for name in group.split("/"):
            directory /= name
            if not directory.exists():
                directory.mkdir()
                made.append(directory)
        path = f"/proc/{journald.pid}/root/run/systemd/journal/stdout"
        argv = [sys.executable, "-c", SERVICE, str(directory), path, line]
        subprocess.run(argv, check=True, timeout=30)

    yield say
    for directory in reversed(made):
        wait_until(lambda directory=directory: _removed(directory), what=f"{directory} to go")


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False
    return True


def test_the_healer_of_an_xfs_is_heard_and_nobody_who_talks_like_it(reader, says_as) -> None:
    reading = reader()
    assert reading.says() == "READY ok"
    line = "/srv/vz agno 0x5 bnobt: sick"
    healer = "system.slice/system-xfs_healer.slice/xfs_healer@srv-vz.service"
    says_as("system.slice/fswatchd-test.service", line)
    says_as(healer.replace("system.slice/", "machine.slice/fswatchd-test.scope/", 1), line)
    says_as(healer, line)
    trigger(reader.device, "last")
    heard = list(iter(reading.says, "EVENT last"))
    assert [one for one in heard if one.startswith("HEALER")] == ["HEALER /srv/vz corruption"]
