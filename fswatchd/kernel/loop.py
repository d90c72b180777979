"""Loop devices (include/uapi/linux/loop.h, loop(4)).

`backing_file` in sysfs is a path as somebody saw it once: it may be cut at the root of another
namespace or end in ` (deleted)`. The file's device and inode from LOOP_GET_STATUS64 are identity.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.kernel.patience import Patience
from fswatchd.kernel.pseudofile import read
from fswatchd.kernel.remote import RemoteMounts

LOOP_MAJOR = 7
LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

_INFO64 = struct.Struct("=QQQQQIIII64s64s32sQQ")
_CONFIG = struct.Struct("=II232s64s")
_ATTEMPTS = 16
# A local filesystem answers at once, also on a node that has much to do.
_LOCAL_S = 10.0
_TOGETHER_S = 1.0
_patience = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatus:
    """What a loop device is attached to: the file's filesystem, inode, and the byte offset."""

    device: str
    backing_devno: Devno
    backing_inode: int
    offset: int
    flags: int


def status(device: str, patience_s: float = _LOCAL_S) -> LoopStatus:
    """Status of `/dev/loopN`; raises OSError(ENXIO) where nothing is attached.

    The kernel asks the filesystem of the file (loop_get_status, drivers/block/loop.c), and so the
    server of one that others serve: TimeoutError where that does not answer.
    """
    return _patience.ask(device, lambda: _status(device), patience_s)


def _status(device: str) -> LoopStatus:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return status_of(fd, device)
    finally:
        os.close(fd)


def status_of(fd: int, device: str) -> LoopStatus:
    """Status of the loop device open as `fd`."""
    buffer = bytearray(_INFO64.size)
    fcntl.ioctl(fd, LOOP_GET_STATUS64, buffer)
    fields = _INFO64.unpack(buffer)
    return LoopStatus(
        device=device,
        backing_devno=Devno.of(fields[0]),
        backing_inode=fields[1],
        offset=fields[3],
        flags=fields[8],
    )


def backing_file(name: str) -> str | None:
    """The path of the file that `loopN` is attached to, as the kernel remembers it.

    It may lead elsewhere by now, and is none of this namespace where the device was attached in
    another one. No filesystem is asked.
    """
    try:
        text = read(f"/sys/block/{name}/loop/backing_file")
    except OSError:
        return None
    return os.fsdecode(text).removesuffix("\n")


def attached() -> list[LoopStatus]:
    """Every attached loop device of this machine, whatever namespace attached it."""
    # Gone or re-attached between the listing and the question: the next look sees it.
    return _asked(_names())


def holders(devno: Devno, inode: int, name: str | None = None) -> list[str]:
    """The loop devices attached to the file with this device number and inode.

    Those on another filesystem that others serve are not asked. One that gives no answer (it hangs,
    is just going, or has no node in /dev) may be attached to any file of the same `name`, and
    counts as attached to this one.
    """
    mounts = RemoteMounts()
    names = [one for one in _names() if mounts.holding(backing_file(one) or "") in {None, devno}]
    answers = _asked(names)
    silent = {f"/dev/{one}": one for one in names}
    for loop in answers:
        silent.pop(loop.device, None)
    return [
        loop.device
        for loop in answers
        if loop.backing_devno == devno and loop.backing_inode == inode
    ] + [
        device
        for device, one in silent.items()
        if name is not None and os.path.basename(backing_file(one) or "") == name
    ]


def statuses(names: list[str]) -> list[LoopStatus]:
    """Of those among these loop devices that are attached, and answer."""
    return _asked(names)


def _names() -> list[str]:
    entries = Path("/sys/block").iterdir()
    return [e.name for e in entries if e.name.startswith("loop") and (e / "loop").is_dir()]


def _asked(names: list[str]) -> list[LoopStatus]:
    """All together, which costs one thread; where one of them hangs, each by itself."""
    try:
        return _patience.ask("all", lambda: _answers(names, _status), _TOGETHER_S)
    except TimeoutError:
        return _answers(names, status)


def _answers(names: list[str], ask: Callable[[str], LoopStatus]) -> list[LoopStatus]:
    found = []
    for name in names:
        with suppress(OSError):
            found.append(ask(f"/dev/{name}"))
    return found


def attach(
    image_fd: int, *, autoclear: bool, readonly: bool = False, direct_io: bool = False
) -> tuple[str, int]:
    """Attach the open file to a free loop device; return its path and a descriptor on it.

    With `autoclear` the device goes when the last descriptor and mount of it go. Raises OSError
    (EBUSY after losing the race for a free device too often).
    """
    wanted = {
        LO_FLAGS_AUTOCLEAR: autoclear,
        LO_FLAGS_READ_ONLY: readonly,
        LO_FLAGS_DIRECT_IO: direct_io,
    }
    flags = sum(flag for flag, on in wanted.items() if on)
    info = _INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    config = _CONFIG.pack(image_fd, 0, info, b"")
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            mode = os.O_RDONLY if readonly else os.O_RDWR
            fd = os.open(path, mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != 16 or attempt == _ATTEMPTS - 1:  # EBUSY: somebody was faster
                    raise
            else:
                return path, fd
    finally:
        os.close(control)
    raise AssertionError("unreachable")


def detach(device: str) -> None:
    """Detach; with users left the kernel detaches when the last one goes."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    finally:
        os.close(fd)
