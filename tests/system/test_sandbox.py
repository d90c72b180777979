"""What reads a tenant's bytes does nothing else, however hostile it is."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from fswatchd import process
from fswatchd.kernel import loop, proc
from fswatchd.sandbox import Sandbox, SandboxError, answered, bubblewrap
from tests.system.conftest import wait_until

# What a hole in a fsck program would let a hostile filesystem do; prints what it could.
HOSTILE = r"""
import ctypes, json, os, socket, sys
device, other, other_device, pid, major, minor = sys.argv[1:]
def attempt(what):
    try:
        what()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "done"
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def node():
    os.mknod("/dev/shm/fswatchd-test-node", 0o600 | 0o60000, os.makedev(int(major), int(minor)))
    open("/dev/shm/fswatchd-test-node", "rb").read(1)
def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
        raise OSError("unshare")
def same_again(path):
    with open(path, "r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text)
def fill(path):
    with open(path, "xb") as file:
        file.write(b"x")
print(json.dumps({
    "own": attempt(lambda: open(device, "r+b").write(b"x")),
    "network": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "unix": attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
    "other image": attempt(lambda: open(other, "rb")),
    "other device": attempt(lambda: open(other_device, "rb").read(1)),
    "device node": attempt(node),
    "fork": attempt(child),
    "memory": attempt(lambda: bytearray(600 << 20)),
    "kill": attempt(lambda: os.kill(int(pid), 0)),
    "sysctl": attempt(lambda: same_again("/proc/sys/kernel/core_pattern")),
    "files": attempt(lambda: fill("/fswatchd-test-file")),
    "shared memory": attempt(lambda: fill("/dev/shm/fswatchd-test-file")),
    "namespace": attempt(unshare),
    "program": attempt(lambda: open("/usr/bin/env", "r+b")),
    "privilege": attempt(lambda: os.chroot("/")),
}))
"""
REFUSED = {
    "BlockingIOError",
    "FileNotFoundError",
    "MemoryError",
    "OSError",
    "PermissionError",
    "ProcessLookupError",
}


def images(work: Path) -> tuple[str, str]:
    made = []
    for name in ("own.img", "other.img"):
        path = work / name
        with path.open("xb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True)
        made.append(str(path))
    return made[0], made[1]


async def hostile(work: Path, sandbox: bool) -> dict[str, str]:
    own, other = images(work)
    fd = os.open(other, os.O_RDWR | os.O_CLOEXEC)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    node = os.stat(device).st_rdev
    assert stat.S_ISBLK(os.stat(device).st_mode)
    place = Sandbox(device=own, memory_bytes=512 << 20) if sandbox else None
    numbers = (str(os.getpid()), str(os.major(node)), str(os.minor(node)))
    argv = ("/usr/bin/python3", "-I", "-c", HOSTILE, own, other, device, *numbers)
    try:
        done = await process.run(argv, timeout_s=60, sandbox=place)
    finally:
        os.close(loop_fd)
    assert done.succeeded, done.describe()
    return dict(json.loads(done.output))


async def test_a_hostile_program_reaches_its_own_device_and_nothing_else(work) -> None:
    could = await hostile(work, sandbox=True)
    assert could.pop("own") == "done"
    assert set(could.values()) <= REFUSED, could


async def test_the_same_program_without_the_sandbox_could(work) -> None:
    """Else the test above would show nothing."""
    could = await hostile(work, sandbox=False)
    for name in (
        "/fswatchd-test-file",
        "/dev/shm/fswatchd-test-file",
        "/dev/shm/fswatchd-test-node",
    ):
        Path(name).unlink(missing_ok=True)
    missing = {what for what, answer in could.items() if answer != "done"}
    assert missing <= {"device node", "network", "sysctl"}, could


async def test_time_ends_it(work) -> None:
    own, _ = images(work)
    spin = ("/usr/bin/python3", "-I", "-c", "while True: pass")
    by_deadline = await process.run(spin, timeout_s=0.5, sandbox=Sandbox(device=own))
    assert by_deadline.timed_out
    assert not by_deadline.stuck
    by_cpu = await process.run(spin, timeout_s=60, sandbox=Sandbox(device=own, cpu_s=1.0))
    assert not by_cpu.timed_out
    assert not by_cpu.succeeded


async def test_a_program_may_ask_what_its_limits_are(work) -> None:
    """xfs_repair gives up where it cannot (6.13, for RLIMIT_FSIZE)."""
    own, _ = images(work)
    ask = "import resource; resource.getrlimit(resource.RLIMIT_FSIZE)"
    argv = ("/usr/bin/python3", "-I", "-c", ask)
    assert (await process.run(argv, timeout_s=60, sandbox=Sandbox(device=own))).succeeded


async def test_a_program_of_several_threads_may_have_files_in_memory(work) -> None:
    """xfs_repair has (of newer versions), and dies where it cannot."""
    own, _ = images(work)
    argv = ("/usr/bin/python3", "-I", "-c", "import os; os.memfd_create('x')")
    place = Sandbox(device=own, threads=True)
    assert (await process.run(argv, timeout_s=60, sandbox=place)).succeeded


async def test_what_a_program_is_given_to_read(work) -> None:
    own, _ = images(work)
    made = os.memfd_create("fswatchd-test")
    try:
        os.write(made, b"given to read")
        os.lseek(made, 0, os.SEEK_SET)
        place = Sandbox(device=own, readonly=True)
        done = await process.run(("cat",), timeout_s=60, sandbox=place, stdin=made)
        nothing = await process.run(("cat",), timeout_s=60, sandbox=place)
    finally:
        os.close(made)
    assert (done.returncode, done.output) == (0, "given to read")
    assert (nothing.returncode, nothing.output) == (0, "")


@pytest.mark.parametrize("number", [20, 700], ids=["low", "beyond the limit of open files"])
async def test_what_is_passed_on_keeps_its_number(work, number: int) -> None:
    """e2fsck is told where to tell how far it is; a daemon with many VEs has many files open."""
    own, _ = images(work)
    reads, writes = os.pipe()
    passed = fcntl.fcntl(writes, fcntl.F_DUPFD_CLOEXEC, number)
    os.close(writes)
    tell = f"import os; os.write({passed}, b'half')"
    try:
        argv = ("/usr/bin/python3", "-I", "-c", tell)
        done = await process.run(
            argv, timeout_s=60, sandbox=Sandbox(device=own), pass_fds=(passed,)
        )
    finally:
        os.close(passed)
    with open(reads, "rb") as told:
        assert (done.returncode, told.read()) == (0, b"half"), done.output


async def test_what_is_only_to_be_read_cannot_be_written(work) -> None:
    own, _ = images(work)
    argv = ("/usr/bin/python3", "-I", "-c", f"open({own!r}, 'r+b')")
    assert not (
        await process.run(argv, timeout_s=60, sandbox=Sandbox(device=own, readonly=True))
    ).succeeded
    assert (await process.run(argv, timeout_s=60, sandbox=Sandbox(device=own))).succeeded


# Whatever a program could try to get a descriptor that writes, or to write without one.
WRITES = r"""
import ctypes, fcntl, json, os, struct, sys
device = sys.argv[1]
reading = os.open(device, os.O_RDONLY)
def attempt(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
def write(path, flags):
    fd = os.open(path, flags)
    os.pwrite(fd, b"x" * 4096, 0)
    os.fsync(fd)
def openat2():
    how = struct.pack("=QQQ", os.O_RDWR, 0, 0)
    fd = ctypes.CDLL(None, use_errno=True).syscall(437, -100, device.encode(), how, len(how))
    if fd < 0:
        raise OSError("openat2")
    os.pwrite(fd, b"x" * 4096, 0)
zero, discard, area = 0x127F, 0x1277, struct.pack("=QQ", 0, 4096)
print(json.dumps({
    "read": attempt(lambda: os.pread(reading, 4096, 0)),
    "read and write": attempt(lambda: write(device, os.O_RDWR)),
    "write": attempt(lambda: write(device, os.O_WRONLY)),
    "third mode": attempt(lambda: fcntl.ioctl(os.open(device, 3), zero, area)),
    "again": attempt(lambda: write(f"/proc/self/fd/{reading}", os.O_RDWR)),
    "by the reader": attempt(lambda: os.pwrite(reading, b"x" * 4096, 0)),
    "zero": attempt(lambda: fcntl.ioctl(reading, zero, area)),
    "discard": attempt(lambda: fcntl.ioctl(reading, discard, area)),
    "openat2": attempt(openat2),
}))
"""


@pytest.mark.parametrize("readonly", [True, False])
async def test_a_device_that_is_only_to_be_read_cannot_be_written(work, *, readonly: bool) -> None:
    """A read-only mount of its node would not hold it; else it is written, so the test can tell."""
    own, _ = images(work)
    before = Path(own).read_bytes()
    fd = os.open(own, os.O_RDWR | os.O_CLOEXEC)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    argv = ("/usr/bin/python3", "-I", "-c", WRITES, device)
    try:
        done = await process.run(
            argv, timeout_s=60, sandbox=Sandbox(device=device, readonly=readonly)
        )
        os.fsync(loop_fd)
    finally:
        os.close(loop_fd)
    assert done.succeeded, done.describe()
    could = dict(json.loads(done.output))
    assert could.pop("read") == "done"
    if readonly:
        assert "done" not in could.values(), could
    else:
        assert could["read and write"] == "done", could
    assert (Path(own).read_bytes() == before) is readonly


async def test_a_device_that_is_only_read_has_no_place_to_write_beside_it(work) -> None:
    own, _ = images(work)
    fd = os.open(own, os.O_RDWR | os.O_CLOEXEC)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    try:
        place = Sandbox(device=device, readonly=True, directory=str(work))
        with pytest.raises(SandboxError, match="only to be read"):
            await process.run(("true",), timeout_s=60, sandbox=place)
    finally:
        os.close(loop_fd)


FLUSHES = r"""
import fcntl, json, os, sys
def attempt(request):
    try:
        fcntl.ioctl(device, request, 0)
    except OSError as error:
        return type(error).__name__
    return "done"
device = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(device, b"written", 0)
os.fsync(device)
print(json.dumps({"flush": attempt(0x1261), "read again": attempt(0x125F)}))  # BLKFLSBUF, BLKRRPART
"""


@pytest.mark.parametrize("flushes", [True, False])
async def test_a_program_that_forgets_its_devices_buffers_is_let(work, *, flushes: bool) -> None:
    """And nothing else that it may not: for that alone it would need all of the node's rights."""
    own, _ = images(work)
    fd = os.open(own, os.O_RDWR | os.O_CLOEXEC)
    device, loop_fd = loop.attach(fd, autoclear=True)
    os.close(fd)
    argv = ("/usr/bin/python3", "-I", "-c", FLUSHES, device)
    try:
        sandbox = Sandbox(device=device, flushes=flushes)
        done = await process.run(argv, timeout_s=60, sandbox=sandbox)
    finally:
        os.close(loop_fd)
    assert done.succeeded, done.describe()
    assert done.argv == argv
    assert json.loads(done.output) == {
        "flush": "done" if flushes else "PermissionError",
        "read again": "PermissionError",
    }
    assert Path(own).read_bytes()[:7] == b"written"


async def test_a_program_that_flushes_and_is_not_there_has_not_run(work) -> None:
    own, _ = images(work)
    argv = ("env", "/usr/bin/not-there")
    done = await process.run(argv, timeout_s=60, sandbox=Sandbox(device=own, flushes=True))
    assert done.returncode == 127
    launched = ("/usr/bin/python3", "-I", "-S", "-c", Path(answered.__file__).read_text(), "00")
    argv = (*launched, "/usr/bin/not-there")
    done = await process.run(argv, timeout_s=60, sandbox=Sandbox(device=own))
    assert done.returncode == 126
    assert "/usr/bin/not-there was not started" in done.output


async def test_a_sandbox_that_cannot_be_built_is_no_answer_of_the_program(work) -> None:
    """It ends with 1, which is how e2fsck says that all is repaired."""
    argv = ("e2fsck", "-fy", str(work / "missing"))
    with pytest.raises(SandboxError, match="sandbox failed"):
        await process.run(argv, timeout_s=60, sandbox=Sandbox(device=str(work / "missing")))


@pytest.mark.parametrize("orphan", [True, False])
def test_a_sandbox_whose_daemon_was_killed_while_it_was_built_is_ended(
    work: Path, *, orphan: bool
) -> None:
    """And none that a daemon is building: another one may run beside this."""
    program = work / "bwrap"
    shutil.copy("/bin/sleep", program)
    filter_fd = os.memfd_create("fswatchd-seccomp", 0)
    os.set_inheritable(filter_fd, True)
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        inner = os.fork()
        if inner == 0:
            os.execv(program, ["bwrap", "1000"])
        os.write(writer, str(inner).encode())
        if not orphan:
            signal.pause()
        os._exit(0)
    inner = int(os.read(reader, 16))
    try:
        if orphan:
            os.waitpid(middle, 0)
        wait_until(lambda: proc.command_name(inner) == "bwrap")
        bubblewrap.end_orphans()
        if orphan:
            wait_until(lambda: not proc.is_alive(inner, None))
        else:
            assert proc.is_alive(inner, None)
    finally:
        for fd in (filter_fd, reader, writer):
            os.close(fd)
        if not orphan:
            os.kill(inner, signal.SIGKILL)
            os.kill(middle, signal.SIGKILL)
            os.waitpid(middle, 0)
