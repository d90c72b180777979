"""What the files of /etc/pve say: configurations, storages and volumes (pct.conf(5), qm.conf(5),
pvesm(1)). Texts in, values out; which files there are is for the driver in `proxmox`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fswatchd.inventory.model import Volume
from fswatchd.situation import WISH, joined_labels

_LINE = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)\s*:\s*(.*?)\s*")
_SECTION = re.compile(r"([a-z]+):\s*(\S+)\s*")
_GUEST_FORMATS = ("raw", "qcow2", "qcow", "vmdk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One storage of /etc/pve/storage.cfg (pvesm(1))."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)


def read_config(text: str) -> dict[str, str]:
    """A VE's own keys; sections of snapshots and of pending changes come after them."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("["):
            break
        match = _LINE.fullmatch(line)
        if match and not line.startswith("#"):
            found[match[1]] = match[2]
    return found


def read_storages(text: str) -> dict[str, Storage]:
    """`kind: name` and the indented keys below it."""
    found: dict[str, Storage] = {}
    current: Storage | None = None
    for line in text.splitlines():
        header = _SECTION.fullmatch(line)
        if header:
            current = found[header[2]] = Storage(kind=header[1])
        elif current is not None and line[:1].isspace() and line.strip():
            key, _, value = line.strip().partition(" ")
            current.options[key] = value.strip()
    return found


def read_volume(value: str, storages: dict[str, Storage], *, guest: bool = False) -> Volume | None:
    """`STORAGE:VOLUME,mp=/path,size=8G` as an image or a device, None for what is neither.

    For a `guest` it is a disk, without a place where it is mounted. Paths as in PVE::Storage's
    plugins: DIR/images/ID/FILE, /dev/VG/NAME, /dev/zvol/POOL/NAME.
    """
    first, *more = value.split(",")
    options = dict(part.partition("=")[::2] for part in more)
    point = "" if guest else options.get("mp", "/")
    kind = "disk" if guest else "raw"
    first = first.removeprefix("file=" if guest else "volume=")
    if first.startswith("/"):
        if not first.startswith("/dev/"):
            return None
        return Volume(device=first, mountpoint=point, format=kind)
    name, _, volume = first.partition(":")
    storage = storages.get(name)
    if storage is None or not volume or ".." in volume.split("/"):
        return None
    # A linked clone is "101/base….raw/102/vm….raw": only what comes last is its own.
    if storage.kind in {"lvm", "lvmthin"}:
        device = f"/dev/{storage.options.get('vgname')}/{volume}"
        shared = storage.options.get("shared") == "1"
        return Volume(device=device, mountpoint=point, format=kind, shared=shared)
    if storage.kind == "zfspool" and guest:
        device = f"/dev/zvol/{storage.options.get('pool')}/{volume.rpartition('/')[2]}"
        return Volume(device=device, mountpoint=point, format=kind)
    base, suffix = storage.options.get("path"), volume.rpartition(".")[2]
    if base is not None and suffix in (_GUEST_FORMATS if guest else ("raw",)):
        image = f"{base}/images/{'/'.join(volume.split('/')[-2:])}"
        return Volume(image=image, mountpoint=point, format=kind if suffix == "raw" else suffix)
    return None


def labels(config: dict[str, str]) -> dict[str, str]:
    """Its tags, each a label without a value; `fswatch-observe` is what its owner wishes."""
    tags = [tag for tag in re.split(r"[;, ]+", config.get("tags", "")) if tag]
    prefix = f"{WISH}-"
    wishes = [{WISH: tag.removeprefix(prefix)} for tag in tags if tag.startswith(prefix)]
    return joined_labels({tag: "" for tag in tags if not tag.startswith(prefix)}, *wishes)


def template(config: dict[str, str]) -> str | None:
    """Why a template is never free for anything, None for what is none."""
    if config.get("template") == "1":
        return "Proxmox: it is a template, others may rest on it"
    return None
