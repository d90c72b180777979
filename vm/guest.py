"""The guests: a Debian tree with two kernels, made once and kept in a cache outside of the project.

One disk image serves both: QEMU boots it with the one kernel or the other. A machine works on an
overlay of its own and never on the image itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
_MIRROR = "http://deb.debian.org/debian"
_SOURCES = (f"deb {_MIRROR} {SUITE} main", f"deb {_MIRROR} {SUITE}-backports main")
_SIZE = "4G"
DATA_BYTES = 6 << 30
_PACKAGES = (
    "systemd-sysv udev dbus kmod iproute2 procps linux-image-amd64 initramfs-tools"
    " qemu-guest-agent lvm2 thin-provisioning-tools systemd-container lxc busybox-static"
    " btrfs-progs xfsprogs e2fsprogs f2fs-tools nilfs-tools gfs2-utils mdadm quota curl"
    # What the package depends on: a machine has no network.
    " bubblewrap python3-aiohttp python3-pydantic python3-pyudev python3-rich python3-systemd"
)
# The kernel is loaded by QEMU: the initrd needs what finds the root disk, and nothing else.
_INITRD = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d"',
    'printf "virtio_pci\\nvirtio_blk\\next4\\n" > "$1/etc/initramfs-tools/modules"',
    'printf "MODULES=list\\nCOMPRESS=gzip\\n" > "$1/etc/initramfs-tools/conf.d/small"',
)
# Nobody logs in, and nothing shall run beside what is measured.
_MASKED = (
    "serial-getty@.service getty@.service e2scrub_reap.service apt-daily.timer"
    " apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer lxc-net.service"
    " systemd-networkd-wait-online.service dpkg-db-backup.timer mdmonitor.service"
)
# xfs_healer comes with xfsprogs 7 only, which Debian's development branch has. It stands beside the
# suite's own: what makes and checks filesystems is not exchanged. A mirror of that branch may be
# some days late; its signature is looked at all the same.
NEWER = "/opt/newer"
_HEALER = (
    f'echo "deb {_MIRROR} sid main" > "$1/etc/apt/sources.list.d/sid.list"',
    (
        'printf "Package: *\\nPin: release n=sid\\nPin-Priority: 50\\n"'
        ' > "$1/etc/apt/preferences.d/sid"'
    ),
    'chroot "$1" apt-get update -qq -o Acquire::Check-Valid-Until=false',
    'chroot "$1" apt-get install -y -qq libicu78/sid',
    'chroot "$1" sh -c "cd /tmp && apt-get download -qq xfsprogs/sid"',
    f'dpkg -x "$1"/tmp/xfsprogs_*.deb "$1{NEWER}"',
    'rm -f "$1"/tmp/xfsprogs_*.deb "$1"/etc/apt/sources.list.d/sid.list',
)
_CUSTOMIZE = (
    *_HEALER,
    f'chroot "$1" apt-get install -y -qq -t {SUITE}-backports linux-image-amd64',
    'rm -f "$1/etc/machine-id" && touch "$1/etc/machine-id"',
    'printf "/dev/vda / ext4 rw,errors=remount-ro 0 1\\n" > "$1/etc/fstab"',
    'echo node1 > "$1/etc/hostname" && printf "127.0.0.1 localhost node1\\n" > "$1/etc/hosts"',
    'mkdir -p "$1/var/log/journal" "$1/srv/ves"',
    f'chroot "$1" systemctl mask -q {_MASKED}',
    # lxc.service would wait half a minute for a bridge at each boot, and fswatchd for that.
    'echo "USE_LXC_BRIDGE=false" > "$1/etc/default/lxc-net"',
)


Kernel = tuple[str, Path, Path]  # its release, the kernel, the initrd


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What QEMU boots; of its kernels the oldest comes first."""

    disk: Path
    kernels: tuple[Kernel, ...]


def cache_directory() -> Path:
    """Outside of the checkout, so that a fresh clone finds it again."""
    given = os.environ.get("FSWATCHD_VM_CACHE")
    return Path(given) if given else Path("/var/cache/fswatchd-vm")


def prepare() -> Guest:
    """The guest from the cache, made now where it is not there or its recipe has changed."""
    recipe = [*_SOURCES, _SIZE, _PACKAGES, *_INITRD, *_CUSTOMIZE]
    key = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    place = cache_directory() / f"guest-{key}"
    if not (place / "root.img").exists():
        _make(place)
    kernels = []
    for kernel in sorted(place.glob("vmlinuz-*"), key=lambda path: _order(path.name)):
        release = kernel.name.removeprefix("vmlinuz-")
        kernels.append((release, kernel, place / f"initrd.img-{release}"))
    return Guest(disk=place / "root.img", kernels=tuple(kernels))


def _order(name: str) -> list[int]:
    return [int(part) for part in name.split("-")[1].split("+")[0].split(".")]


def _make(place: Path) -> None:
    print(f"making the guest in {place} (some minutes)", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="making-") as directory:
        work = Path(directory)
        tree, new = work / "tree", work / "new"
        new.mkdir()
        argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory"]
        argv += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"']
        argv += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=force-unsafe-io"]
        argv += ["--dpkgopt=path-exclude=/usr/share/locale/*"]
        argv += [f"--essential-hook={hook}" for hook in _INITRD]
        argv += [f"--customize-hook={hook}" for hook in _CUSTOMIZE]
        argv += [f"--include={','.join(_PACKAGES.split())}", SUITE, str(tree), *_SOURCES]
        subprocess.run(["nice", *argv], check=True)
        for pattern in ("vmlinuz-*", "initrd.img-*"):
            for path in (tree / "boot").glob(pattern):
                shutil.move(path, new / path.name)
        disk = new / "root.img"
        make_disk(disk, tree, _SIZE)
        shutil.rmtree(place, ignore_errors=True)
        new.rename(place)


# In a mount namespace of its own, which takes the mounts with it whatever happens.
INSTALL = """
set -e
mount -o loop "$1" "$2"
mount --bind /dev "$2/dev"; mount -t proc proc "$2/proc"
cp "$3" "$2/tmp/package.deb"
DEBIAN_FRONTEND=noninteractive chroot "$2" apt-get install -y -qq /tmp/package.deb
rm "$2/tmp/package.deb"
echo "/dev/vdb $4 xfs defaults 0 0" >> "$2/etc/fstab"
printf %s "$5" > "$2/etc/fswatchd/fswatchd.toml"
umount "$2/proc" "$2/dev" "$2"
"""


def install(prepared: Guest, package: Path, place: Path, *, ves: str, configuration: str) -> None:
    """Disks of a node with the package, and with an XFS for images at `ves`, in `place`.

    By the node that this runs on, at its own speed: that it installs on a machine is another thing
    to show.
    """
    place.mkdir(parents=True)
    root, data = place / "root.img", place / "data.img"
    subprocess.run(["cp", "--sparse=always", str(prepared.disk), str(root)], check=True)
    with data.open("xb") as file:
        file.truncate(DATA_BYTES)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(data)], check=True)
    with tempfile.TemporaryDirectory(prefix="fswatchd-vm-") as point:
        argv = ["unshare", "--mount", "sh", "-c", INSTALL, "sh"]
        argv += [str(root), point, str(package), ves, configuration]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the package is not installed: {done.stdout}{done.stderr}")


def make_disk(disk: Path, tree: Path, size: str) -> None:
    """An ext4 image with the content of a directory."""
    argv = ["mke2fs", "-q", "-t", "ext4", "-m", "1", "-d", str(tree), str(disk), size]
    subprocess.run(argv, check=True, stderr=subprocess.PIPE)
