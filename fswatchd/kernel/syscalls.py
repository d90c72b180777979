"""System calls that Python's standard library does not offer, through the C library.

Not here: what the calls are for. Numbers are those of include/uapi/asm-generic/unistd.h, which
all architectures share from 424 on; older ones differ and are looked up by machine.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
AT_STATX_DONT_SYNC = 0x4000
STATX_BTIME = 0x800
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

# include/uapi/linux/mount.h
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSPICK_CLOEXEC = 0x1
FSPICK_EMPTY_PATH = 0x8
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

# include/uapi/linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_FSPICK = 433
_NR_OPENAT2 = 437
_NR_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Return `result`, or raise OSError with the C library's errno and `what` as its file name."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def syscall(number: int, *arguments: object, what: str) -> int:
    """Call `number` with ctypes arguments; raise OSError naming `what` when it fails."""
    return check(libc.syscall(ctypes.c_long(number), *arguments), what)


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace `fd` stands for (setns(2))."""
    check(libc.setns(ctypes.c_int(fd), ctypes.c_int(nstype)), "setns")


def unshare(flags: int) -> None:
    """Give the calling process namespaces of its own (unshare(2))."""
    check(libc.unshare(ctypes.c_int(flags)), "unshare")


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int) -> int:
    """Open `path` beneath `dir_fd` with RESOLVE_* restrictions (openat2(2))."""
    how = struct.pack("=QQQ", flags, 0, resolve)
    return syscall(
        _NR_OPENAT2,
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
        what=os.fsdecode(path),
    )


def open_by_handle(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """Open a file of the filesystem of `mount_fd` by what names it there (open_by_handle_at(2)).

    `kind` and `handle` are the filesystem's own, see include/linux/exportfs.h. Raises OSError:
    ESTALE where there is no such file.
    """
    buffer = struct.pack("=Ii", len(handle), kind) + handle
    return check(
        libc.open_by_handle_at(
            ctypes.c_int(mount_fd), ctypes.c_char_p(buffer), ctypes.c_int(flags | os.O_CLOEXEC)
        ),
        "open_by_handle_at",
    )


def device_of(fd: int) -> tuple[int, int]:
    """(major, minor) of the filesystem that the O_PATH descriptor `fd` is on (statx(2)).

    Nothing else is asked for, and no answer of the filesystem: fstat(2) waits for a FUSE or network
    filesystem to send the attributes, which one that does not answer never does.
    """
    buffer = ctypes.create_string_buffer(256)
    check(
        libc.statx(
            ctypes.c_int(fd),
            ctypes.c_char_p(b""),
            ctypes.c_int(AT_EMPTY_PATH | AT_STATX_DONT_SYNC),
            ctypes.c_uint(0),
            buffer,
        ),
        "statx",
    )
    # stx_dev_major and stx_dev_minor of struct statx (include/uapi/linux/stat.h)
    major, minor = struct.unpack_from("=II", buffer, 136)
    return major, minor


def open_tree_clone(fd: int) -> int:
    """A detached copy of the mount that the O_PATH descriptor `fd` stands on (open_tree(2)).

    The copy keeps the superblock alive but not the mount it was made from, so the owner can
    unmount as if we were not there. It can never create a superblock, as mount(2) can.

    A mount namespace with a user namespace of its own has got its mounts locked together
    (mount_namespaces(7)): there only the whole tree below can be copied, and what is mounted
    further down is kept alive too for as long as the copy is open.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH
    try:
        return _open_tree(fd, flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _open_tree(fd, flags | AT_RECURSIVE)


def _open_tree(fd: int, flags: int) -> int:
    return syscall(
        _NR_OPEN_TREE,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        what="open_tree",
    )


def move_mount(fd: int, target: str) -> None:
    """Put the detached mount `fd` at the directory `target` (move_mount(2))."""
    syscall(
        _NR_MOVE_MOUNT,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        what=target,
    )


def reconfigure_superblock(fd: int, flag: str) -> None:
    """Set the option `flag` ("ro", "rw", "abort") on the superblock below `fd` (fspick(2)).

    A return without an error is no proof: ext4 answers 0 to "rw" after an abort and goes on
    refusing writes. Verify with `write_probe`.
    """
    picked = syscall(
        _NR_FSPICK,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(FSPICK_CLOEXEC | FSPICK_EMPTY_PATH),
        what="fspick",
    )
    try:
        _fsconfig(picked, FSCONFIG_SET_FLAG, flag)
        _fsconfig(picked, FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(picked)


def mount_detached(fstype: str, options: Mapping[str, str | None]) -> int:
    """Mount a filesystem nowhere: a descriptor is all there is of the mount (fsmount(2)).

    It goes with the last descriptor on it, and no mount namespace ever shows it. `options` are keys
    of fsconfig(2), with `source`; those without a value are None.
    """
    context = syscall(
        _NR_FSOPEN,
        ctypes.c_char_p(fstype.encode()),
        ctypes.c_uint(FSOPEN_CLOEXEC),
        what=f"fsopen {fstype}",
    )
    try:
        for key, value in options.items():
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            _fsconfig(context, command, key, value)
        _fsconfig(context, FSCONFIG_CMD_CREATE)
        return syscall(
            _NR_FSMOUNT,
            ctypes.c_int(context),
            ctypes.c_uint(FSMOUNT_CLOEXEC),
            ctypes.c_uint(0),
            what=f"fsmount {fstype}",
        )
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    syscall(
        _NR_FSCONFIG,
        ctypes.c_int(context),
        ctypes.c_uint(command),
        ctypes.c_char_p(key.encode() if key else None),
        ctypes.c_char_p(value.encode() if value else None),
        ctypes.c_int(0),
        what=f"fsconfig {key or command}",
    )


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""
    check(
        libc.mount(
            ctypes.c_char_p(os.fsencode(source)),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_char_p(fstype.encode() if fstype else None),
            ctypes.c_ulong(flags),
            ctypes.c_char_p(data.encode() if data else None),
        ),
        target,
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(flags)), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2). Raises OSError(ENOSYS) on a machine whose number is not known here."""
    number = _NR_PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(38, f"pivot_root: unknown on {platform.machine()}", new_root)
    syscall(
        number,
        ctypes.c_char_p(os.fsencode(new_root)),
        ctypes.c_char_p(os.fsencode(put_old)),
        what=new_root,
    )


def renameat2(dir_fd: int, old: str, new: str, flags: int) -> None:
    """Rename within one directory with RENAME_* flags (renameat2(2))."""
    check(
        libc.renameat2(
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(old)),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_uint(flags),
        ),
        f"{old} -> {new}",
    )


def birth_ns(path: str) -> int | None:
    """When the file at `path` was created (statx(2)), None where the filesystem does not tell.

    Symbolic links are not followed. Raises OSError.
    """
    buffer = ctypes.create_string_buffer(256)
    check(
        libc.statx(
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_int(AT_SYMLINK_NOFOLLOW),
            ctypes.c_uint(STATX_BTIME),
            buffer,
        ),
        path,
    )
    (mask,) = struct.unpack_from("=I", buffer)
    if not mask & STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)  # stx_btime
    return int(seconds * 1_000_000_000 + nanoseconds)


def filesystem_magic(path: str) -> int:
    """Which kind of filesystem `path` is on: `f_type` of statfs(2), see include/uapi/linux/magic.h.

    Raises OSError.
    """
    buffer = ctypes.create_string_buffer(256)  # struct statfs, generously
    check(libc.statfs(ctypes.c_char_p(os.fsencode(path)), buffer), path)
    # __fsword_t: a long, but for s390x.
    short = ctypes.sizeof(ctypes.c_long) == 4 or platform.machine() == "s390x"
    magic: int = struct.unpack_from("=I" if short else "=Q", buffer)[0]
    return magic


def syncfs(fd: int) -> None:
    """Write back the filesystem that `fd` is on (syncfs(2))."""
    check(libc.syncfs(ctypes.c_int(fd)), "syncfs")
