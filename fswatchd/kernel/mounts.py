"""Mounts of every mount namespace, without walking a path: nsfs ioctls, listmount, statmount.

Follows include/uapi/linux/nsfs.h, include/uapi/linux/mount.h and statmount(2), listmount(2).
Needs Linux 6.12 for namespaces other than the caller's; `mountinfo` is the way for older
kernels. No call here looks up a path, so a filesystem that does not answer (FUSE, NFS) cannot
hang the caller.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from fswatchd.devno import Devno

from .syscalls import syscall

NS_GET_MNTNS_ID = 0x8008B705
NS_MNT_GET_NEXT = 0x8010B70B
NS_MNT_GET_PREV = 0x8010B70C
LSMT_ROOT = 0xFFFFFFFFFFFFFFFF
STATMOUNT_SB_BASIC = 0x01
STATMOUNT_MNT_BASIC = 0x02
STATMOUNT_MNT_ROOT = 0x08
STATMOUNT_MNT_POINT = 0x10
STATMOUNT_FS_TYPE = 0x20
STATMOUNT_MNT_OPTS = 0x80
STATMOUNT_FS_SUBTYPE = 0x100
STATMOUNT_SB_SOURCE = 0x200
SB_RDONLY = 1
MOUNT_ATTR_RDONLY = 1

_NR_STATMOUNT = 457
_NR_LISTMOUNT = 458
_MNT_ID_REQ = struct.Struct("=IIQQQ")
_MNT_NS_INFO = struct.Struct("=IIQ")
_STATMOUNT_HEADER = 512
_WANTED = (
    STATMOUNT_SB_BASIC
    | STATMOUNT_MNT_BASIC
    | STATMOUNT_MNT_ROOT
    | STATMOUNT_MNT_POINT
    | STATMOUNT_FS_TYPE
    | STATMOUNT_MNT_OPTS
    | STATMOUNT_FS_SUBTYPE
    | STATMOUNT_SB_SOURCE
)
_BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount. Text fields come from the owner of the namespace: show them escaped only.

    `mount_id` is unique for the life of the machine with statmount, and may be reused with
    mountinfo, which only knows what is `old_id` here. `superblock_options` holds what the
    filesystem says of itself, such as `emergency_ro`; `superblock_readonly` is SB_RDONLY.

    `parent_id` is the mount that it is mounted on. What is mounted on one of a `peer_group` is
    mounted on all of them, and on those whose `master` the group is, and unmounted so
    (mount_namespaces(7)); 0 is none. `parent_peers` are the two of the parent, where somebody has
    looked.
    """

    mount_id: int
    devno: Devno
    fstype: str
    root: str
    point: str
    source: str
    superblock_options: tuple[str, ...]
    superblock_readonly: bool
    readonly: bool
    parent_id: int = 0
    old_id: int = 0
    peer_group: int = 0
    master: int = 0
    parent_peers: tuple[int, int] = (0, 0)

    @property
    def proc_id(self) -> int:
        """The id that /proc knows it by: the first field of mountinfo, `mnt_id` of fdinfo."""
        return self.old_id or self.mount_id


def namespace_id(fd: int) -> int:
    """The 64-bit id of the mount namespace behind the nsfs descriptor `fd`."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, NS_GET_MNTNS_ID, buffer)
    return int(struct.unpack("=Q", buffer)[0])


def namespace_of(pid: int) -> tuple[int, int | None] | None:
    """`(inode, id)` of the process's mount namespace, None when it is gone or has none.

    The inode is given away again as soon as the namespace has ended; the id never (Linux 6.11, None
    before).
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        inode = os.fstat(fd).st_ino
        try:
            return inode, namespace_id(fd)
        except OSError:
            return inode, None
    finally:
        os.close(fd)


def namespaces() -> Generator[tuple[int, int], None, None]:
    """`(namespace id, descriptor)` of every mount namespace this one may see, one after the other.

    The descriptor is closed when the next one is asked for: it keeps the namespace, and so every
    filesystem mounted in it, alive; and a node has more namespaces than a process may have open
    files. Who does not go on to the end closes the iterator.
    """
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield namespace_id(own), own
        for direction in (NS_MNT_GET_PREV, NS_MNT_GET_NEXT):
            current = os.dup(own)
            try:
                while True:
                    info = bytearray(_MNT_NS_INFO.pack(_MNT_NS_INFO.size, 0, 0))
                    try:
                        following = fcntl.ioctl(current, direction, info)
                    except FileNotFoundError:
                        break
                    os.close(current)
                    current = following
                    yield _MNT_NS_INFO.unpack(info)[2], current
            finally:
                os.close(current)
    finally:
        os.close(own)


def is_shortage(error: OSError) -> bool:
    """Whether the error says something of this process or the node, and nothing of what was asked
    for."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def list_mounts(namespace: int) -> list[int]:
    """The unique ids of all mounts in the namespace with this 64-bit id."""
    ids = (ctypes.c_uint64 * _BATCH)()
    found: list[int] = []
    last = 0
    while True:
        request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, LSMT_ROOT, last, namespace)
        count = syscall(
            _NR_LISTMOUNT,
            ctypes.c_char_p(request),
            ids,
            ctypes.c_size_t(_BATCH),
            ctypes.c_uint(0),
            what="listmount",
        )
        found += ids[:count]
        if count < _BATCH:
            return found
        last = found[-1]


def stat_mount(namespace: int, mount_id: int) -> Mount:
    """Describe one mount; raises OSError(ENOENT) when it is gone by now."""
    size = 4096
    while True:
        buffer = ctypes.create_string_buffer(size)
        request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, _WANTED, namespace)
        try:
            syscall(
                _NR_STATMOUNT,
                ctypes.c_char_p(request),
                buffer,
                ctypes.c_size_t(size),
                ctypes.c_uint(0),
                what="statmount",
            )
        except OverflowError:
            raise
        except OSError as error:
            if error.errno == errno.EOVERFLOW and size < 1 << 20:  # the strings did not fit
                size *= 4
                continue
            raise
        return _decode(buffer.raw)


def _decode(raw: bytes) -> Mount:
    mask, major, minor = struct.unpack_from("=QII", raw, 8)
    (superblock_flags,) = struct.unpack_from("=I", raw, 32)
    mount_id, parent_id, old_id = struct.unpack_from("=QQI", raw, 40)
    attributes, _, peer_group, master = struct.unpack_from("=QQQQ", raw, 64)

    def text(flag: int, field: int) -> str:
        if not mask & flag:
            return ""
        start = _STATMOUNT_HEADER + int(struct.unpack_from("=I", raw, field)[0])
        return raw[start : raw.index(b"\0", start)].decode("utf-8", "surrogateescape")

    options = text(STATMOUNT_MNT_OPTS, 4)
    fstype, subtype = text(STATMOUNT_FS_TYPE, 36), text(STATMOUNT_FS_SUBTYPE, 120)
    return Mount(
        mount_id=mount_id,
        devno=Devno(major, minor),
        fstype=f"{fstype}.{subtype}" if subtype else fstype,
        root=text(STATMOUNT_MNT_ROOT, 104),
        point=text(STATMOUNT_MNT_POINT, 108),
        source=text(STATMOUNT_SB_SOURCE, 124),
        superblock_options=tuple(options.split(",")) if options else (),
        superblock_readonly=bool(superblock_flags & SB_RDONLY),
        readonly=bool(attributes & MOUNT_ATTR_RDONLY),
        parent_id=parent_id,
        old_id=old_id,
        peer_group=peer_group,
        master=master,
    )


def supported() -> bool:
    """Whether this kernel lists the mounts of foreign namespaces (Linux 6.12).

    Raises OSError where the process has no descriptors or memory left to find that out.
    """
    try:
        with closing(namespaces()) as found:
            for namespace, _ in found:
                list_mounts(namespace)
    except OSError as error:
        if is_shortage(error):
            raise
        return False
    return True
