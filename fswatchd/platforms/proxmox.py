"""Containers of Proxmox VE (pct(1), pct.conf(5)).

They are LXC containers: which processes are theirs, the LXC driver tells, under `lxc:ID`, which is
an alias here. From /etc/pve/lxc/ID.conf come name, tags, volumes, and the `lock` that a backup, a
migration, a snapshot or a resize holds on it. No program is asked: `pct` itself reads these files,
and its answers take half a second each.

Not here: virtual machines (qm), and where a ZFS or Ceph storage keeps a volume.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import seen

CONFIG = "/etc/pve"
# /etc/pve is served by a process (pmxcfs), which may hang.
_ANSWER_S = 1.0
_FILE = re.compile(r"([1-9][0-9]{2,8})\.conf")
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)\s*:\s*(.*?)\s*")
_VOLUME_KEY = re.compile(r"rootfs|mp\d+")
_SECTION = re.compile(r"([a-z]+):\s*(\S+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One storage of /etc/pve/storage.cfg (pvesm(1))."""

    kind: str
    options: dict[str, str] = field(default_factory=dict)


class ProxmoxPlatform:
    """The containers of this node of a Proxmox cluster."""

    name = "proxmox"

    def __init__(self, config: str = CONFIG) -> None:
        self._config = config
        self._read: dict[str, tuple[object, dict[str, str]]] = {}
        self._last: list[Ve] = []
        self._above: tuple[object, bool] = (None, False)
        self._reading: asyncio.Task[list[Ve] | None] | None = None

    def watch_directories(self) -> list[str]:
        """None: /etc/pve is a FUSE filesystem, which tells nothing."""
        return []

    async def list_ves(self) -> list[Ve]:
        """See Platform.

        Where the files cannot be read, locks cannot be seen: what was known counts as busy then.
        """
        if not self._last and not self._is_there():
            return []
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._list))
        await asyncio.wait([self._reading], timeout=_ANSWER_S)
        if not self._reading.done():
            raise self._unreadable("does not answer")
        reading, self._reading = self._reading, None
        try:
            found = reading.result()
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        if found is None and self._last:
            raise self._unreadable("is gone")
        self._last = found or []
        return self._last

    def _is_there(self) -> bool:
        """By the entries of the directory above: to look at it itself may hang."""
        parent, _, name = self._config.rpartition("/")
        stamp = seen.stamp(parent)
        if stamp != self._above[0]:
            self._above = (stamp, stamp is not None and name in os.listdir(parent))
        return self._above[1]

    def _unreadable(self, why: str) -> PlatformError:
        text = f"{self._config} {why}"
        ves = [replace(ve, busy=ve.busy or f"Proxmox: {text}") for ve in self._last]
        return PlatformError(text, hint="is pve-cluster.service running?", partial=ves)

    def _list(self) -> list[Ve] | None:
        try:
            names = os.listdir(f"{self._config}/lxc")
        except (FileNotFoundError, NotADirectoryError):
            return None
        storages = read_storages(_text(f"{self._config}/storage.cfg"))
        found = sorted(match[1] for name in names if (match := _FILE.fullmatch(name)))
        return [describe(native_id, self._load(native_id), storages) for native_id in found]

    def _load(self, native_id: str) -> dict[str, str]:
        """The configuration, read again only when the file has changed."""
        path = f"{self._config}/lxc/{native_id}.conf"
        stamp = seen.stamp(path)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read_config(_text(path)))
        return known[1]


def describe(native_id: str, config: dict[str, str], storages: dict[str, Storage]) -> Ve:
    """The container as its configuration has it."""
    lock = config.get("lock")
    volumes = []
    for key, value in config.items():
        if _VOLUME_KEY.fullmatch(key):
            volume = read_volume(value, storages)
            if volume is not None:
                volumes.append(volume)
    return Ve(
        ve_id=VeId(f"proxmox:{native_id}"),
        platform="proxmox",
        native_id=native_id,
        name=config.get("hostname") or native_id,
        labels={tag: "" for tag in re.split(r"[;, ]+", config.get("tags", "")) if tag},
        volumes=tuple(volumes),
        commands=Commands(
            start=("pct", "start", native_id),
            stop=("pct", "shutdown", native_id, "--forceStop", "1", "--timeout", "30"),
            kill=("pct", "stop", native_id),
        ),
        aliases=(VeId(f"lxc:{native_id}"),),
        busy=f"Proxmox: lock: {lock}" if lock else _template(config),
        **seen.running(None),
    )


def read_config(text: str) -> dict[str, str]:
    """The container's own keys; sections of snapshots and of pending changes come after them."""
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


def read_volume(value: str, storages: dict[str, Storage]) -> Volume | None:
    """`STORAGE:VOLUME,mp=/path,size=8G` as an image or a device, None for what is neither.

    Paths as in PVE::Storage's plugins: DIR/images/ID/FILE, /dev/VG/NAME.
    """
    first, *more = value.split(",")
    options = dict(part.partition("=")[::2] for part in more)
    point = options.get("mp", "/")
    first = first.removeprefix("volume=")
    if first.startswith("/"):
        return Volume(device=first, mountpoint=point) if first.startswith("/dev/") else None
    name, _, volume = first.partition(":")
    storage = storages.get(name)
    if storage is None or not volume or ".." in volume.split("/"):
        return None
    if storage.kind in {"lvm", "lvmthin"}:
        return Volume(device=f"/dev/{storage.options.get('vgname')}/{volume}", mountpoint=point)
    base = storage.options.get("path")
    if base is not None and volume.endswith(".raw"):
        # A linked clone is "101/base….raw/102/vm….raw": only the last two are its own.
        image = "/".join(volume.split("/")[-2:])
        return Volume(image=f"{base}/images/{image}", mountpoint=point)
    return None


def _template(config: dict[str, str]) -> str | None:
    if config.get("template") == "1":
        return "Proxmox: it is a template, others may rest on it"
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
