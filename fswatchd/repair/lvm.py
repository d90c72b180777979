"""Run the programs of LVM (lvm(8)), and read what they print.

What changes something runs in a unit of its own where this daemon is a service, and comes to its
end without us: LVM that is killed with a daemon can leave a volume suspended, and its VE with it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fswatchd import process
from fswatchd.kernel import devmapper
from fswatchd.kernel.devmapper import ThinPool
from fswatchd.repair import logical_volume
from fswatchd.repair.logical_volume import LogicalVolume

T = TypeVar("T")

_AS_JSON = ("--reportformat", "json")
_LOOK_TIMEOUT_S = 60.0
_CHANGE_TIMEOUT_S = 180.0
# Of what a clone can be had, and the first letter that lvs(8) has for it where it is nothing else.
_KINDS = {"thin": "V", "linear": "-"}
_FIELDS = "vg_name,vg_uuid,vg_attr,lv_name,lv_uuid,lv_attr,segtype,pool_lv,lv_tags"  # see lvs(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A volume as LVM has it written down; `attr` and `group_attr` as in lvs(8) and vgs(8)."""

    name: str
    uuid: str
    group: str
    group_uuid: str
    segtype: str
    attr: str
    group_attr: str
    pool: str
    tags: tuple[str, ...]

    def is_(self, volume: LogicalVolume) -> bool:
        """Whether it is this one."""
        return self.device_uuid == volume.uuid

    @property
    def device_uuid(self) -> str:
        """The UUID of its device."""
        return "LVM-" + f"{self.group_uuid}{self.uuid}".replace("-", "")

    @property
    def is_thin(self) -> bool:
        """Whether it shares its blocks with others of its pool."""
        return self.segtype == "thin"

    @property
    def unfit(self) -> str | None:
        """Why a clone of it must not take its place; None where it may."""
        flags = self.group_attr.ljust(6, "-")
        reasons = {
            f"the volume group {self.group} is exported": flags[2] == "x",
            f"a disk of the volume group {self.group} is missing": flags[3] == "p",
            f"the volume group {self.group} is shared with other nodes": flags[5] in "cs",
            f"the volume group {self.group} is read-only": flags[0] != "w",
            f"{self.name} is {self.segtype}, and has no clone": self.segtype not in _KINDS,
            f"{self.name} has snapshots, or is being merged": self.attr[:1]
            != _KINDS.get(self.segtype, self.attr[:1]),
            f"{self.name} is read-only": self.attr[1:2] != "w",
            f"{self.name} is being moved (pvmove)": self.attr[2:3].isupper(),
            f"LVM calls the state of {self.name} {self.attr[8:9]!r}": self.attr[8:9] != "-",
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


async def show(path: str) -> Row | None:
    """What has the name `/dev/VG/LV`, None where nothing has. Raises OSError.

    LVM tells of each of its segments: of several kinds is what is of no single one.
    """
    found = await _rows(logical_volume.full_name(path))
    rows = [row for row in found if row.name == logical_volume.name(path)]
    segtype = " and ".join(dict.fromkeys(row.segtype for row in rows))
    return replace(rows[0], segtype=segtype) if rows else None


async def names(group: str) -> set[str]:
    """The names that are taken in a volume group. Raises OSError."""
    return {row.name for row in await _rows(group, "--all")}


async def pool(name: str) -> ThinPool | None:
    """How full the thin pool of this device is. Raises OSError."""
    done = await _run(("dmsetup", "status", "--noflush", name), _LOOK_TIMEOUT_S)
    return devmapper.thin_pool(done.output) if done.succeeded else None


async def group_bytes(group: str) -> tuple[int, int]:
    """Of a volume group: what no volume has, and all of it. Raises OSError."""

    def read(output: str) -> tuple[int, int]:
        (found,) = (vg for part in _report(output) for vg in part["vg"])
        return int(found["vg_free"]), int(found["vg_size"])

    argv = ("vgs", *_AS_JSON, "--units", "b", "--nosuffix", "--options", "vg_free,vg_size", group)
    return _understood(await _run(argv, _LOOK_TIMEOUT_S), read)


async def disks(path: str) -> tuple[str, ...]:
    """The physical volumes that a plain volume lies on. Raises OSError."""

    def read(output: str) -> tuple[str, ...]:
        parts = [lv["devices"] for part in _report(output) for lv in part["lv"]]
        found = [one.partition("(")[0] for part in parts for one in part.split(",")]
        if not found or not all(one.startswith("/dev/") for one in found):
            raise ValueError(f"no disks: {found}")
        return tuple(dict.fromkeys(found))

    argv = ("lvs", *_AS_JSON, "--options", "devices", logical_volume.full_name(path))
    return _understood(await _run(argv, _LOOK_TIMEOUT_S), read)


async def create(
    path: str, size_bytes: int, tags: tuple[str, ...], on_disks: tuple[str, ...]
) -> None:
    """Make a plain volume, with whatever its disks hold there, and activate it. Raises OSError."""
    options = ("--type", "linear", "--zero", "n", "--wipesignatures", "n", "--activate", "y")
    await _change(
        *("lvcreate", "--yes", *options, *_tagged(tags), "--size", f"{size_bytes}b"),
        *("--name", logical_volume.name(path), path.split("/")[2], *on_disks),
    )


async def snapshot(path: str, new: str, tags: tuple[str, ...]) -> None:
    """Make a thin snapshot of a thin volume in its pool, and activate it. Raises OSError."""
    # Without --setactivationskip nobody but us could ever activate it.
    options = ("--setactivationskip", "n", "--activate", "y", "--name", logical_volume.name(new))
    await _change(
        *("lvcreate", "--yes", "--snapshot", *options, *_tagged(tags)),
        logical_volume.full_name(path),
    )


async def rename(old: str, new: str) -> None:
    """Rename within one volume group; never onto a name that is taken. Raises OSError."""
    await _change("lvrename", "--yes", logical_volume.full_name(old), logical_volume.full_name(new))


async def untag(path: str, tag: str) -> None:
    """Take a tag away. Raises OSError."""
    await _change("lvchange", "--deltag", tag, logical_volume.full_name(path))


async def activate(path: str) -> None:
    """Make its device appear. Raises OSError."""
    full = logical_volume.full_name(path)
    await _change("lvchange", "--activate", "y", "--ignoreactivationskip", full)


async def refresh(path: str) -> None:
    """Make its device what LVM has written down, and resume it. Raises OSError."""
    await _change("lvchange", "--refresh", logical_volume.full_name(path))


async def resume(name: str) -> None:
    """Resume a suspended device, as it was. Raises OSError."""
    await _change("dmsetup", "resume", name)


async def remove(volume: LogicalVolume) -> None:
    """Remove the volume of this UUID if it has this name. Raises OSError.

    What LVM selects by both under its own lock, so that no other volume of the name can go.
    """
    # Not one with snapshots, which somebody has made of it: LVM would remove them with it.
    which = (
        f'lv_uuid="{volume.lvm_uuid}" && lv_name="{logical_volume.name(volume.path)}" '
        '&& lv_attr=~"^[-V]"'
    )
    await _change("lvremove", "--yes", "--select", which, volume.group)


def rows(output: str) -> list[Row]:
    """What `--reportformat json` has printed; before it stands what LVM warns of.

    Raises ValueError.
    """
    return [_row(found) for part in _report(output) for found in part.get("lv", ())]


def _report(output: str) -> list[dict[str, Any]]:
    return list(json.loads(output[output.index("{") : output.rindex("}") + 1])["report"])


def _tagged(tags: tuple[str, ...]) -> list[str]:
    return [word for tag in tags for word in ("--addtag", tag)]


def _row(found: dict[str, Any]) -> Row:
    return Row(
        # Hidden ones stand in brackets.
        name=found["lv_name"].strip("[]"),
        uuid=found["lv_uuid"],
        group=found["vg_name"],
        group_uuid=found["vg_uuid"],
        segtype=found["segtype"],
        attr=found["lv_attr"],
        group_attr=found["vg_attr"],
        pool=found["pool_lv"],
        tags=tuple(tag for tag in found["lv_tags"].split(",") if tag),
    )


async def _rows(what: str, *options: str) -> list[Row]:
    argv = ("lvs", *_AS_JSON, "--options", _FIELDS, *options, what)
    done = await _run(argv, _LOOK_TIMEOUT_S)
    if "Failed to find logical volume" in done.output:
        return []
    return _understood(done, rows)


def _understood(done: process.Completed, read: Callable[[str], T]) -> T:
    """What a program of LVM has printed. Raises OSError where that is nothing known."""
    try:
        if done.succeeded:
            return read(done.output)
    except (ValueError, KeyError, TypeError):
        pass
    raise OSError(errno.EIO, f"LVM does not say what was asked: {done.describe()}")


async def _change(*argv: str) -> None:
    done = await _run(argv, _CHANGE_TIMEOUT_S, unit="lvm")
    if not done.succeeded:
        raise OSError(errno.EIO, done.describe())


async def _run(argv: tuple[str, ...], timeout_s: float, *, unit: str = "") -> process.Completed:
    try:
        return await process.run(argv, timeout_s=timeout_s, unit=unit)
    except process.ProcessError as error:
        raise OSError(errno.ENOENT, error.message) from None
