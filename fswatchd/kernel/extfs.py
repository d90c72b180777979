"""The superblock of ext2, ext3 and ext4 as it is on a device (struct ext4_super_block, fs/ext4)."""

import os
import uuid

_SUPERBLOCK = 1024  # the byte that it begins at
_LOG_BLOCK_SIZE = _SUPERBLOCK + 0x18
_MAGIC = _SUPERBLOCK + 0x38
_ERRORS = _SUPERBLOCK + 0x3C
_ON_ERROR = {1: "continue", 2: "remount-ro", 3: "panic"}
_INCOMPATIBLE = _SUPERBLOCK + 0x60
_UUID = _SUPERBLOCK + 0x68
_EXT_MAGIC = b"\x53\xef"
_RECOVER = 0x0004  # EXT4_FEATURE_INCOMPAT_RECOVER
_MMP = 0x0100  # EXT4_FEATURE_INCOMPAT_MMP


def uuid_of(fd: int) -> str | None:
    """`s_uuid` of the filesystem on the open device, None where there is none."""
    found = os.pread(fd, 16, _UUID)
    if not _is_ext(fd) or len(found) < 16 or not any(found):
        return None
    return str(uuid.UUID(bytes=found))


def block_size(path: str) -> int | None:
    """The size of a block of the filesystem on a device in bytes, None where there is none.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        shift = int.from_bytes(os.pread(fd, 4, _LOG_BLOCK_SIZE), "little")
        return 1024 << shift if _is_ext(fd) and shift <= 6 else None
    finally:
        os.close(fd)


def has_mmp(path: str) -> bool:
    """Whether the filesystem on a device or in an image protects itself from a second node.

    Its features do not change while it is mounted (tune2fs(8)). Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        features = int.from_bytes(os.pread(fd, 4, _INCOMPATIBLE), "little")
        return _is_ext(fd) and bool(features & _MMP)
    finally:
        os.close(fd)


def needs_recovery(path: str) -> bool:
    """Whether the superblock says that the journal has to be replayed. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        features = int.from_bytes(os.pread(fd, 4, _INCOMPATIBLE), "little")
        return _is_ext(fd) and bool(features & _RECOVER)
    finally:
        os.close(fd)


def uuid_and_errors(path: str) -> tuple[str | None, str | None]:
    """`s_uuid` and what `s_errors` asks for (tune2fs(8), -e); None for another filesystem, or none.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not _is_ext(fd):
            return None, None
        errors = int.from_bytes(os.pread(fd, 2, _ERRORS), "little")
        return uuid_of(fd), _ON_ERROR.get(errors)
    finally:
        os.close(fd)


def _is_ext(fd: int) -> bool:
    return os.pread(fd, 2, _MAGIC) == _EXT_MAGIC
