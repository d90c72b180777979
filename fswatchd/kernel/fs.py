"""Requests to a mounted filesystem through a descriptor on it (include/uapi/linux/fs.h)."""

import contextlib
import errno
import fcntl
import os
import struct
import uuid

from .syscalls import reconfigure_superblock

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FITRIM = 0xC0185879
FS_IOC_GETFSUUID = 0x80111500
EXT4_IOC_SHUTDOWN = 0x8004587D
BTRFS_IOC_FS_INFO = 0x8400941F
BTRFS_IOC_START_SYNC = 0x80089418


def btrfs_error(fd: int) -> int:
    """The errno of a btrfs whose transactions the kernel has aborted, 0 where it has not.

    For filesystems that are read-only: a writable one begins to write a transaction that is open.
    Nothing but an abort makes the kernel refuse here (fs/btrfs/transaction.c, `join_transaction`);
    one that was remounted or mounted read-only has no transaction and answers with the last.
    """
    try:
        fcntl.ioctl(fd, BTRFS_IOC_START_SYNC, bytearray(8))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def has_superblock(device: str) -> bool:
    """Whether an ext4 or XFS on the device of this name is alive, mounted visibly or not.

    btrfs has a directory by its UUID, which says nothing of one device.
    """
    return any(os.path.exists(f"/sys/fs/{fstype}/{device}") for fstype in ("ext4", "xfs"))


def freeze(fd: int) -> None:
    """FIFREEZE: flush, then hold every writer; readers go on. EBUSY when frozen already."""
    fcntl.ioctl(fd, FIFREEZE, 0)


def thaw(fd: int) -> None:
    """FITHAW. EINVAL means that it was not frozen: somebody else thawed it."""
    fcntl.ioctl(fd, FITHAW, 0)


def is_frozen(fd: int) -> bool:
    """Whether the filesystem is frozen. There is no question for it: a second freeze is refused.

    When it was not, it is thawed again at once.
    """
    try:
        freeze(fd)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    thaw(fd)
    return False


def reflink(source_fd: int, target_fd: int) -> None:
    """FICLONE: share all blocks of `source_fd` with `target_fd`. EOPNOTSUPP, EXDEV, ENOSPC…"""
    fcntl.ioctl(target_fd, FICLONE, source_fd)


def reflink_range(source_fd: int, target_fd: int, start: int, end: int) -> None:
    """FICLONERANGE: the same for bytes `start` to `end`, at the same place in both.

    Both are at the beginning of a block, or the end of the source.
    """
    wanted = struct.pack("=qQQQ", source_fd, start, end - start, start)
    fcntl.ioctl(target_fd, FICLONERANGE, wanted)


def filesystem_uuid(fd: int) -> str | None:
    """The superblock's UUID (Linux 6.9), None where the kernel or filesystem does not tell."""
    buffer = bytearray(17)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFSUUID, buffer)
    except OSError:
        return _btrfs_uuid(fd)
    length = buffer[0]
    if length != 16 or not any(buffer[1:]):
        return None
    return str(uuid.UUID(bytes=bytes(buffer[1:17])))


def _btrfs_uuid(fd: int) -> str | None:
    """btrfs tells it by a request of its own (include/uapi/linux/btrfs.h)."""
    buffer = bytearray(1024)
    try:
        fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, buffer)
    except OSError:
        return None
    return str(uuid.UUID(bytes=bytes(buffer[16:32])))


def fsid(fd: int) -> bytes:
    """`f_fsid` of statfs(2) as the eight bytes that fanotify reports."""
    return struct.pack("=Q", os.statvfs(fd).f_fsid)


def shutdown(fd: int, *, settled: bool = False) -> None:
    """EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: all I/O fails from now on.

    The log is not flushed; with `settled` the kernel freezes the filesystem for the moment
    (EXT4_GOING_FLAGS_DEFAULT), so that no fsync is under way. Else ext4 may acknowledge one whose
    transaction it then drops (fs/jbd2/journal.c, `jbd2_complete_transaction`).
    """
    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("=I", 0 if settled else 2))


def abort(fd: int) -> None:
    """Stop all writing for good, go on reading (`-o remount,abort`); `fd` is a mount's root."""
    reconfigure_superblock(fd, "abort")


def trim(directory_fd: int) -> int:
    """FITRIM: discard every block that the filesystem has free; returns the bytes it told of.

    EOPNOTSUPP where the device beneath cannot discard. Blocks until it is done.
    """
    everything = bytearray(struct.pack("=QQQ", 0, 2**64 - 1, 0))  # start, length, least extent
    fcntl.ioctl(directory_fd, FITRIM, everything)
    return int(struct.unpack_from("=QQQ", everything)[1])


def write_probe(directory_fd: int) -> None:
    """Write, sync and discard an unnamed file; raises the OSError that a writer would get.

    An O_TMPFILE has no name, so nothing is left behind and no name of the owner is touched.
    """
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, b"fswatchd write probe\n")
        os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
