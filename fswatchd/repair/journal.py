"""What a repair writes down before it does it, and reads after the daemon was killed.

Facts, not phases: each says something about the world that stays true whatever came after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fswatchd.devno import Devno
from fswatchd.repair.logical_volume import LogicalVolume, Stamp
from fswatchd.repair.volume import ImageFile, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairJournal:
    """The facts of one repair.

    `image` is the original; `cloning` a name that was free when a clone of ours was about to get
    it; `clone` that copy, once it exists; `stopping` that the VE was about to be stopped by us;
    `stamp` what the image ended as, and `fresh` that the proven clone is a copy of that; `swapping`
    that the exchange was about to be made; `keeping` the name that the original was about to get
    by it, `kept` the one it has. `detached` is the declared path of a volume that was about to be
    taken out of its VE (whose `init` has that pid and start time) instead of that being stopped,
    `ve_down` that the VE was to be stopped after all, and `attaching` that the volume was about to
    be put back. `asked` says that somebody was asked the `question`, about a pause of
    `asked_pause_s`; `granted` are those that were answered with a yes before it.
    """

    image: Volume | None = None
    ve: str | None = None
    cloning: str | None = None
    clone: Volume | None = None
    stopping: bool = False
    detached: str | None = None
    init: tuple[int | None, int | None] = (None, None)
    ve_down: bool = False
    attaching: bool = False
    stamp: Stamp | None = None
    fresh: bool = False
    swapping: bool = False
    keeping: str | None = None
    kept: str | None = None
    asked: bool = False
    question: str | None = None
    asked_pause_s: float | None = None
    granted: frozenset[str] = frozenset()

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> RepairJournal:
        """From a step's journal."""
        return cls(
            image=read_volume(facts.get("image")),
            ve=facts.get("ve"),
            cloning=facts.get("cloning"),
            clone=read_volume(facts.get("clone")),
            stopping=bool(facts.get("stopping")),
            detached=facts.get("detached"),
            init=_init(facts.get("init")),
            ve_down=bool(facts.get("ve_down")),
            attaching=bool(facts.get("attaching")),
            stamp=read_stamp(facts.get("stamp")),
            fresh=bool(facts.get("fresh")),
            swapping=bool(facts.get("swapping")),
            keeping=facts.get("keeping"),
            kept=facts.get("kept"),
            asked=bool(facts.get("asked")),
            question=facts.get("question"),
            asked_pause_s=facts.get("asked_pause_s"),
            granted=frozenset(facts.get("granted") or ()),
        )


def _init(value: object) -> tuple[int | None, int | None]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None, None
    pid, started = value
    return pid, started


def read_stamp(value: object) -> Stamp | None:
    """The stamp of a volume as it was written down; None where none was."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    mtime_ns, ctime_ns, size = (int(part) for part in value)
    return mtime_ns, ctime_ns, size


def read_volume(value: object) -> Volume | None:
    """A volume as its `describe` has written it down; None where nothing was."""
    if isinstance(value, dict) and "uuid" in value:
        return LogicalVolume(path=value["path"], uuid=value["uuid"])
    return read_file(value)


def read_file(value: object) -> ImageFile | None:
    """The same where it can only be an image file."""
    if not isinstance(value, dict):
        return None
    return ImageFile(
        path=value["path"],
        devno=Devno.parse(value["devno"]),
        inode=int(value["inode"]),
        birth_ns=value.get("birth_ns"),
    )
