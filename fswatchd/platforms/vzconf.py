"""The configuration files of OpenVZ and Virtuozzo (vz(5), ve.conf(5)), as values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_LINE = re.compile(r"\s*([A-Z_][A-Z0-9_]*)=(.*)")

Config = Mapping[str, str]
# What the tools take where vz.conf is silent.
DEFAULTS: Config = {
    "LOCKDIR": "/vz/lock",
    "DUMPDIR": "/vz/dump",
    "VE_PRIVATE": "/vz/private/$VEID",
    "VE_ROOT": "/vz/root/$VEID",
    "VE_CGROUP_SLICE": "machine.slice",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """An entry of DISK: a directory with a ploop image, or a block device."""

    path: str
    mountpoint: str = "/"
    is_device: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A configuration, with the paths in it made absolute.

    `private_is_nodes` is false where the private area is the container's own root filesystem.
    `wish` is the variable FSWATCH, which is ours: the widest mode that its owner wants.
    """

    ctid: str
    name: str
    private: str
    root: str
    private_is_nodes: bool
    disks: tuple[Disk, ...] = ()
    uuid: str | None = None
    wish: str | None = None


def read_config(text: str) -> Config:
    """`KEY="value"`, as a shell has it, but for expansions (vz(5))."""
    found = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match:
            value = match[2].strip()
            if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
                value = value[1:-1]
            found[match[1]] = value
    return found


def describe(ctid: str, config: Config, node: Config, path: str) -> Container:
    """The container of this id; `path` is where its configuration was read."""

    def place(key: str) -> str:
        text = (config.get(key) or node[key]).replace("$VEID", ctid)
        return os.path.normpath(text)

    private = place("VE_PRIVATE")
    # Virtuozzo keeps the configuration in a private area that is not the root filesystem, and
    # links to it; OpenVZ 6 names the layout. What neither says is simfs.
    linked = os.path.islink(path) and os.path.realpath(path) == os.path.realpath(
        f"{private}/ve.conf"
    )
    nodes = linked or config.get("VE_LAYOUT", "").startswith("ploop")
    uuid = config.get("UUID", "").strip("{}").lower()
    root = place("VE_ROOT")
    return Container(
        ctid=ctid,
        name=config.get("NAME") or ctid,
        private=private,
        root=f"{os.path.realpath(os.path.dirname(root))}/{os.path.basename(root)}",
        private_is_nodes=nodes,
        disks=tuple(read_disks(config.get("DISK", ""), private, ctid)) if nodes else (),
        uuid=uuid if re.fullmatch(UUID, uuid) else None,
        wish=config.get("FSWATCH"),
    )


def read_disks(text: str, private: str, ctid: str) -> list[Disk]:
    """`uuid=…,image=root.hdd,mnt=/;…` (libvzctl, lib/disk.c); paths are meant from `private`.

    Without an entry for `/` that is VE_PRIVATE/root.hdd.
    """
    found = []
    for entry in filter(None, text.split(";")):
        values = dict(part.partition("=")[::2] for part in entry.split(","))
        path = values.get("image") or values.get("device")
        if path:
            found.append(
                Disk(
                    path=os.path.normpath(os.path.join(private, path.replace("$VEID", ctid))),
                    mountpoint=values.get("mnt", ""),
                    is_device="device" in values,
                )
            )
    if all(disk.mountpoint != "/" for disk in found):
        found.insert(0, Disk(path=f"{private}/root.hdd"))
    return found
