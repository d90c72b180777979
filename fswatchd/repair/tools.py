"""What the tools of a filesystem can do, and which of them belong to which filesystem.

A module of `repair` speaks to the tools of one filesystem: it runs them, in the way in which all
that reads a tenant's bytes is run (`process.run`), and reads their exit codes bit by bit: a bit
that is not known is a failure. Always on
something nobody else uses: that is for the caller to prove.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fswatchd.repair import btrfs, e2fsck, xfs
from fswatchd.repair.check import CheckResult
from fswatchd.repair.progress import OnProgress

CLONE = "clone"
OFFLINE = "offline"
ONLINE = "online"
_RUNS = 3

OnCheck = Callable[[CheckResult], OnProgress]


class Replay(Protocol):
    """Replay the journal of the volume at `path`, and change nothing else."""

    async def __call__(self, path: str, timeout_s: float) -> CheckResult: ...


class Check(Protocol):
    """Check everything, change nothing: the preview of a repair, and the proof after it."""

    async def __call__(
        self, path: str, timeout_s: float, on_progress: OnProgress | None = None
    ) -> CheckResult: ...


class Repair(Protocol):
    """Fix what can be fixed; with `undo_file`, so that it can be undone.

    What a filesystem has no safe repair for is answered as damaged, and left as it is.
    """

    async def __call__(
        self,
        path: str,
        timeout_s: float,
        undo_file: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> CheckResult: ...


class ProvenRepair(Protocol):
    """The same until nothing is left; `on_check` is asked before each check of that, and told of
    what was done up to there."""

    async def __call__(
        self,
        path: str,
        timeout_s: float,
        undo_file: str | None = None,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> CheckResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LastResort:
    """What is done to a clone, and only after a person has seen what came of it and said yes.

    `command` is what it is called, `price` what it costs beside what the preview shows.
    """

    command: str
    price: str
    repair: ProvenRepair


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The tools of one filesystem, as its module here calls them.

    `name` is the program that repairs, `strategies` the ways (`fsck` in fswatchd.rules(5)) that are
    safe with it. `undoes` says that what it does in place can be undone, `clones_devices` that a
    clone of a device may stand beside it. `salvages` is that single files of a copy can be read
    without mounting it, `silent_after_shutdown` that a filesystem which was shut down writes
    nothing any more, not even when it is unmounted. `no_cure` is what to do about damage that they
    do not cure.
    """

    name: str
    strategies: frozenset[str]
    replay: Replay
    check: Check
    repair: ProvenRepair
    undoes: bool = False
    clones_devices: bool = False
    salvages: bool = False
    silent_after_shutdown: bool = False
    no_cure: str = ""
    last_resort: LastResort | None = None


def _again(repair: Repair, check: Check, more_by: Repair | None = None) -> ProvenRepair:
    """Repair until nothing is left, a few times at the most.

    One run can leave what the next one fixes: e2fsck 1.47 a quota that it has worked out before it
    moved files, xfsprogs 6.1 the link count of a directory that it has rebuilt. With an undo file
    there is one run: that file is of one. The runs after the first are `more_by`, where that is
    another. The check that has found nothing left is the result's `proof`: writers may be waiting,
    and a second one would tell nothing more.
    """

    async def run(
        path: str,
        timeout_s: float,
        undo_file: str | None = None,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> CheckResult:
        result = await repair(path, timeout_s, undo_file, on_progress)
        for _ in range(_RUNS - 1):
            if undo_file is not None or not result.fixed:
                break
            checked = await check(path, timeout_s, on_check(result) if on_check else None)
            if checked.clean:
                return replace(result, proof=checked)
            more = await (more_by or repair)(path, timeout_s)
            if not more.usable:
                return more
            result = result.plus(more)
        return result

    return run


def _once(repair: Repair) -> ProvenRepair:
    """What is not run again, because nobody trusts it."""

    async def run(
        path: str,
        timeout_s: float,
        undo_file: str | None = None,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> CheckResult:
        return await repair(path, timeout_s, undo_file, on_progress)

    return run


def _ext() -> Tools:
    return Tools(
        name="e2fsck",
        strategies=frozenset({CLONE, OFFLINE}),
        replay=e2fsck.replay,
        check=e2fsck.check,
        repair=_again(e2fsck.repair, e2fsck.check),
        undoes=True,
        clones_devices=True,
        salvages=True,
    )


def _xfs() -> Tools:
    return Tools(
        name=xfs.NAME,
        strategies=frozenset({CLONE, OFFLINE, ONLINE}),
        replay=xfs.replay,
        check=xfs.check,
        repair=_again(xfs.repair, xfs.check),
        clones_devices=True,
        silent_after_shutdown=True,
        last_resort=LastResort(
            command="xfs_repair -L",
            price="it throws the log away, and with it changes that were acknowledged",
            repair=_again(xfs.repair_without_log, xfs.check, xfs.repair),
        ),
    )


def _btrfs() -> Tools:
    return Tools(
        name=btrfs.NAME,
        strategies=frozenset({CLONE, OFFLINE, ONLINE}),
        replay=btrfs.replay,
        check=btrfs.check,
        repair=_once(btrfs.repair),
        no_cure=btrfs.NO_CURE,
        last_resort=LastResort(
            command="btrfs check --repair",
            price="it can lose more than was damaged, its authors advise against it",
            repair=_once(btrfs.repair_by_force),
        ),
    )


_TOOLS: dict[str, Callable[[], Tools]] = {
    "ext2": _ext,
    "ext3": _ext,
    "ext4": _ext,
    "xfs": _xfs,
    "btrfs": _btrfs,
}


def of(fstype: str | None) -> Tools | None:
    """The tools for a type of filesystem, None where this version has none."""
    make = _TOOLS.get(fstype or "")
    return make() if make else None


def refusal(fstype: str | None, strategy: str) -> str | None:
    """Why `fsck` has no safe way by this strategy for this filesystem; None where it has one."""
    tools = of(fstype)
    if tools is None:
        return f"this version cannot repair {fstype or 'an unknown filesystem'}"
    if strategy not in tools.strategies:
        ways = " or ".join(f'"{way}"' for way in sorted(tools.strategies))
        return f'{fstype} has no safe repair by strategy = "{strategy}", use {ways}'
    return None
