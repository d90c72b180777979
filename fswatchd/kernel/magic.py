"""Which filesystem begins on a device or in an image, by the magic number at its fixed place."""

import os
import uuid

from fswatchd.kernel import extfs

# fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, fs/btrfs/disk-io.h
_MAGIC = (
    ("ext4", 1024 + 0x38, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
)


# struct xfs_dsb and struct btrfs_super_block: what the kernel shows as the filesystem's UUID.
_UUID_BEHIND = {"xfs": 32, "btrfs": 32 - 64}


def uuid_of(fd: int) -> str | None:
    """The UUID of the ext2, ext3, ext4, XFS or btrfs on the open device; None where none is there.

    Raises OSError.
    """
    if (found := extfs.uuid_of(fd)) is not None:
        return found
    for fstype, offset, magic in _MAGIC:
        if fstype in _UUID_BEHIND and os.pread(fd, len(magic), offset) == magic:
            raw = os.pread(fd, 16, offset + _UUID_BEHIND[fstype])
            return str(uuid.UUID(bytes=raw)) if len(raw) == 16 and any(raw) else None
    return None


def fstype_of(path: str) -> str | None:
    """`ext4` (for all of its kin), `xfs` or `btrfs`; None where it is none of these.

    None says nothing about what was there: a superblock may be gone. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for fstype, offset, magic in _MAGIC:
            if os.pread(fd, len(magic), offset) == magic:
                return fstype
    finally:
        os.close(fd)
    return None
