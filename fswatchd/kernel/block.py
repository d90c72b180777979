"""Block devices as sysfs and block ioctls show them (Documentation/ABI/stable/sysfs-block)."""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import sys
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.kernel.pseudofile import read

BLKFLSBUF = 0x1261
SYSFS = Path("/sys")
BLKGETDISKSEQ = 0x80081280
_PAGE = 4096
_MAX_LINKS = 40  # as the kernel (path_resolution(7))
_NAME = re.compile(r"[A-Za-z0-9!._:-]{1,64}")
_NUMBERS = re.compile(r"\d{1,4}:\d{1,7}")


def name_of(devno: Devno) -> str | None:
    """The kernel's name of a block device (`loop3`, `dm-0`), None when there is none."""
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{devno}"))
    except OSError:
        return None


def devno_of(name: str, sysfs: Path = SYSFS) -> Devno | None:
    """The device number behind a name from a kernel message, None when it names no device.

    The name comes from text: it is held to the characters of device names, so that it cannot
    lead out of /sys/class/block. Some messages of device-mapper give the numbers for a name.
    """
    if _NUMBERS.fullmatch(name):
        return Devno.parse(name) if (sysfs / "dev/block" / name).exists() else None
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        return None
    try:
        return Devno.parse(read(f"{sysfs}/class/block/{name}/dev").decode("ascii"))
    except (OSError, ValueError):
        return None


def without_links(path: str, root: str = "/dev/") -> str:
    """A path below /dev with the kernel's name of the device: `/dev/vg/ve101` is `/dev/dm-3`.

    Only links below /dev are followed, so that no other filesystem is asked; any other path, and
    one that leads out of there, is given back as it is.
    """
    found = path
    for _ in range(_MAX_LINKS):
        if not found.startswith(root):
            return path
        try:
            found = os.path.normpath(os.path.join(os.path.dirname(found), os.readlink(found)))
        except (OSError, ValueError):
            return found
    return path


def disk_sequence(devno: Devno) -> int | None:
    """The disk's DISKSEQ: never the same again when a name or number is reused (Linux 5.15)."""
    for place in ("diskseq", "../diskseq"):
        with contextlib.suppress(OSError, ValueError):
            return int(read(f"/sys/dev/block/{devno}/{place}"))
    return None


def sectors(devno: Devno, sysfs: Path = SYSFS) -> int | None:
    """The device's size in sectors of 512 bytes."""
    try:
        return int(read(f"{sysfs}/dev/block/{devno}/size"))
    except (OSError, ValueError):
        return None


def image_short_by(devno: Devno, image: str, inode: tuple[Devno, int], offset: int) -> int:
    """How many bytes a loop device reaches beyond the end of its image; 0 where unknown.

    `inode` is the (device, inode) that the device is attached to, `offset` where it begins in it.
    """
    size = sectors(devno)
    if size is None:
        return 0
    with contextlib.suppress(OSError):
        found = os.stat(image)
        if inode == (Devno.of(found.st_dev), found.st_ino):
            return max(size * 512 + offset - found.st_size, 0)
    return 0


def disk_sequence_of(fd: int) -> int | None:
    """DISKSEQ of the disk that is open as `fd`, None before Linux 5.15 (linux/fs.h)."""
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, BLKGETDISKSEQ, buffer)
    except OSError:
        return None
    return int.from_bytes(buffer, sys.byteorder)


def sectors_written(devno: Devno) -> int | None:
    """Sectors written to the device since it appeared (Documentation/block/stat.rst, field 7).

    None where nobody counts them (`queue/iostats` is 0): a number that stands still says nothing.
    """
    try:
        if _iostats(devno).read_text(encoding="ascii").strip() == "0":
            return None
        return int(Path(f"/sys/dev/block/{devno}/stat").read_text(encoding="ascii").split()[6])
    except (OSError, ValueError, IndexError):
        return None


def count_writes(devno: Devno) -> None:
    """Switch the counters of a device on. Raises OSError."""
    _iostats(devno).write_text("1", encoding="ascii")


def _iostats(devno: Devno) -> Path:
    base = Path(f"/sys/dev/block/{devno}")
    queue = base / "queue"
    return (queue if queue.is_dir() else base / ".." / "queue") / "iostats"


def is_claimed(device: str) -> bool:
    """Whether any mount in any namespace, or another exclusive user, holds the device.

    This is the kernel's own answer (open(2), O_EXCL on a block device) and sees mounts that no
    namespace of ours shows. Raises OSError when the device cannot be opened at all.
    """
    try:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    os.close(fd)
    return False


def sync(device: str) -> None:
    """Write the device's dirty buffers to what lies beneath; for a mounted device too.

    That a write failed earlier, when nobody had asked for it, the kernel tells whoever asks first,
    and once (lib/errseq.c): what counts here is whether they can be written now.
    """
    try:
        _fsync(device)
    except OSError:
        _fsync(device)


def _fsync(device: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_buffers(device: str) -> None:
    """Write dirty buffers and forget the clean ones, so that the next read is a real one."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        fcntl.ioctl(fd, BLKFLSBUF, 0)
    finally:
        os.close(fd)


def beneath(devno: Devno, sysfs: Path = SYSFS) -> set[str]:
    """The names of a block device and of all that it rests on: its disk, and its slaves.

    Empty where the number is no block device's (btrfs has numbers of its own).
    """
    return _related(devno, "slaves", sysfs)


def above(devno: Devno, sysfs: Path = SYSFS) -> set[str]:
    """The names of a block device and of all that rests on it: partitions, and holders."""
    return _related(devno, "holders", sysfs)


def partitions(devno: Devno, sysfs: Path = SYSFS) -> set[str]:
    """The names of a disk's partitions."""
    directory = sysfs / "dev/block" / str(devno)
    return {part.parent.name for part in directory.resolve().glob("*/partition")}


def read_ends(device: str) -> None:
    """Read the first and the last bytes of a device from the device itself (O_DIRECT).

    Raises the OSError that the device gives; may take as long as the device does.
    """
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        with mmap.mmap(-1, _PAGE) as buffer:  # O_DIRECT wants aligned memory
            for offset in (0, max(size // _PAGE - 1, 0) * _PAGE):
                os.preadv(fd, [buffer], offset)
    finally:
        os.close(fd)


def lower_devices(devno: Devno, sysfs: Path = SYSFS) -> tuple[Devno, ...]:
    """What a block device rests on directly: the disk of a partition, the slaves of dm and md."""
    device = sysfs / "dev/block" / str(devno)
    found = [device / ".." / "dev"] if (device / "partition").exists() else []
    with contextlib.suppress(OSError):
        found += [device / "slaves" / name / "dev" for name in os.listdir(device / "slaves")]
    numbers = []
    for path in found:
        with contextlib.suppress(OSError, ValueError):
            numbers.append(Devno.parse(path.read_text(encoding="ascii")))
    return tuple(sorted(numbers))


def thin_origins(devno: Devno, sysfs: Path = SYSFS) -> tuple[Devno, ...]:
    """The external origin of a thin volume of LVM: read for what was not written, never written.

    A thin volume has nothing but its pool beneath it, and that origin where it has one. LVM marks
    the pool in its UUID (lib/activate/dev_manager.c); an origin within the pool is no device of
    its own beneath, and a write to it does not reach the snapshots.
    """
    lower = lower_devices(devno, sysfs)
    pools = {one for one in lower if (attribute(one, "dm/uuid", sysfs) or "").endswith("-tpool")}
    return tuple(one for one in lower if one not in pools) if pools else ()


def ploop_deltas(name: str, sysfs: Path = SYSFS) -> list[str]:
    """The image files of a ploop device of Virtuozzo 7, the lowest first; only the last is written.

    `pdelta/LEVEL/image` in sysfs (OpenVZ/ploop, lib/delta_sysfs.c).
    """
    directory = sysfs / "block" / name / "pdelta"
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for level in os.listdir(directory):
            if level.isdecimal():
                text = (directory / level / "image").read_bytes()
                found[int(level)] = os.fsdecode(text).rstrip("\n")
    return [found[level] for level in sorted(found)]


def kind_of(devno: Devno, sysfs: Path = SYSFS) -> str | None:
    """`loop`, `partition`, `dm`, `md`, `nbd`, `ploop` or `disk`; None for no block device."""
    device = sysfs / "dev/block" / str(devno)
    try:
        name = os.path.basename(os.readlink(device))
    except OSError:
        return None
    if (device / "partition").exists():
        return "partition"
    for kind in ("dm", "md"):
        if (device / kind).is_dir():
            return kind
    return next((kind for kind in ("loop", "nbd", "ploop") if name.startswith(kind)), "disk")


def transport(devno: Devno, sysfs: Path = SYSFS) -> str:
    """The network that a disk is reached over (`iSCSI`, `Fibre Channel`, `NVMe over tcp`).

    Empty for a local disk, and where it cannot be told: SCSI transports are directories on the way
    to the device (drivers/scsi/scsi_transport_{iscsi,fc}.c), NVMe has an attribute.
    """
    device = sysfs / "dev/block" / str(devno)
    parts = device.resolve().parts
    for kind, words in ((r"session\d+", "iSCSI"), (r"rport-[\d:-]+", "Fibre Channel")):
        if any(re.fullmatch(kind, part) for part in parts):
            return words
    nvme = attribute(devno, "device/transport", sysfs) or ""
    return f"NVMe over {nvme}" if nvme in {"tcp", "rdma", "fc"} else ""


def attribute(devno: Devno, name: str, sysfs: Path = SYSFS) -> str | None:
    """The line in a sysfs file of the device (`ro`, `md/degraded`, …), None where there is none."""
    try:
        path = sysfs / "dev/block" / str(devno) / name
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def btrfs_members(uuid: str, sysfs: Path = SYSFS) -> tuple[Devno, ...]:
    """The devices of a mounted btrfs, whose own number is no block device's."""
    found = []
    for device in sorted((sysfs / "fs/btrfs" / uuid / "devices").glob("*")):
        with contextlib.suppress(OSError, ValueError):
            found.append(Devno.parse((device / "dev").read_text(encoding="ascii")))
    return tuple(found)


def _related(devno: Devno, links: str, sysfs: Path) -> set[str]:
    found: set[str] = set()
    start = sysfs / "dev/block" / str(devno)
    left = [start.resolve()] if start.exists() else []
    while left:
        device = left.pop()
        if device.name in found:
            continue
        found.add(device.name)
        with contextlib.suppress(OSError):
            left += [link.resolve() for link in (device / links).iterdir()]
        if links == "holders":
            left += [part.parent for part in device.glob("*/partition")]
        elif (device / "partition").exists():
            left.append(device.parent)
    return found
