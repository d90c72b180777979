"""Which filesystem begins on a device or in an image, by the magic number at its fixed place."""

import os

# fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, fs/btrfs/disk-io.h
_MAGIC = (
    ("ext4", 1024 + 0x38, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
)


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
