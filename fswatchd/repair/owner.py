"""The VE of a plan that goes on after a restart, or goes back; where its volume is if it is gone,
and whether the volume is that VE's still.

At the start of a node a platform may not answer yet. A VE that nobody can be asked about is not
gone, and a plan that has stopped it is not given up for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from fswatchd.events import printable
from fswatchd.inventory.model import Ve, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.repair import hot_volume
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

_DECLARED = "declared"
_PATIENCE_S = 300.0
_PAUSE_S = 2.0
# At its start the daemon has not heard of all yet, and some platforms say nothing at all then.
_GONE_S = 60.0
_SHOWN = 3


async def find(context: ActionContext, ve_id: str, *, half_way: bool, left: str) -> Ve:
    """The VE, as its platform lists it; waits for one that does not answer.

    What a platform has listed before is busy while it does not answer: in the middle of a plan that
    is waited for too.

    Raises StepEnded where it is not there, with what is `left` if the plan was `half_way`.
    """
    begun = time.monotonic()
    while True:
        await context.inventory.refresh()
        ve = context.inventory.view.ves.get(VeId(ve_id))
        if ve is not None and not (half_way and ve.busy and _problem(context, ve_id)):
            return ve
        problem = _problem(context, ve_id)
        gone_s = _GONE_S if half_way else 0.0
        if time.monotonic() - begun >= (gone_s if problem is None else _PATIENCE_S):
            if ve is not None:
                return ve
            raise _missing(ve_id, problem, half_way=half_way, left=left)
        why = problem or "nobody lists it"
        context.progress(None, f"waiting to hear of {ve_id}: {why}")
        await asyncio.sleep(_PAUSE_S)


async def wait_seen(context: ActionContext, volume: Volume, *names: str | None) -> None:
    """Wait until an image can be seen under one of its names: what it lies on may be mounted later
    than we are started. Returns in the end, whether it can or not."""
    begun = time.monotonic()
    places = [path for path in (volume.path, *names) if path is not None]
    while isinstance(volume, ImageFile) and not any(volume.is_at(path) for path in places):
        if time.monotonic() - begun >= _PATIENCE_S:
            return
        context.progress(None, f"waiting to see {volume.path}")
        await asyncio.sleep(_PAUSE_S)


def where(volume: Volume, *paths: str | None) -> str:
    """Under which of these names a volume is; the last one that may be, where none can be seen."""
    names = [path for path in (volume.path, *paths) if path is not None]
    return next((name for name in names if volume.is_at(name)), names[-1])


def declares(view: NodeView, ve: Ve, *volumes: Volume) -> bool:
    """Whether a volume that the VE declares leads to one of these."""
    if any(_declared_by(view, one) == ve.ve_id for one in volumes):
        return True
    logical = [one for one in volumes if isinstance(one, LogicalVolume)]
    names = [one.device for one in ve.volumes if one.device and one.device.count("/") == 3]
    return any(one.is_at(name) for one in logical for name in names)


def declared(ve: Ve) -> list[str]:
    """The volumes that the VE declares, by their paths."""
    return [one.image or one.device or "" for one in ve.volumes]


def why_another(
    view: NodeView, ve: Ve, volumes: Sequence[Volume], left_with: Sequence[str] | None = None
) -> str | None:
    """Why the VE of that name is not the one of these volumes any more; None where it is.

    What runs is told by what it has mounted. What a stopped one would run on only what it declares
    tells. Where a repair has left it stopped that declared other volumes only (`left_with`), and it
    declares these still, nothing better can be known.
    """
    mounted = view.superblocks_of(ve.ve_id)
    if any(one.carries(superblock) for one in volumes for superblock in mounted):
        return None
    path = volumes[0].path
    if ve.init_pid is not None and mounted and not _is_out(view, ve, volumes):
        on = [one.backing.image or f"/dev/{one.device}" for one in mounted]
        text = f"{ve.ve_id} runs on {_some(on)}, and has not mounted {path}"
    elif declares(view, ve, *volumes) or declared(ve) == left_with:
        return None
    elif ve.volumes:
        text = f"{ve.ve_id} would be started on {_some(declared(ve))}, and not on {path}"
    else:
        text = f"{ve.ve_id} has not mounted {path}, and nothing says that it would be started on it"
    others = _others(view, ve, volumes)
    return f"{text}; that is a volume of {_some(others)}" if others else text


def _is_out(view: NodeView, ve: Ve, volumes: Sequence[Volume]) -> bool:
    """Whether one of these is a volume that its VE also runs without, and nobody has mounted it."""
    if any(one.carries(found) for one in volumes for found in view.superblocks.values()):
        return False
    return any(hot_volume.of(ve, one) is not None for one in volumes)


def _declared_by(view: NodeView, volume: Volume) -> VeId | None:
    if not isinstance(volume, LogicalVolume):
        return view.image_owners.get((volume.devno, volume.inode))
    devno = volume.devno
    return view.device_owners.get(devno) if devno is not None else None


def _others(view: NodeView, ve: Ve, volumes: Sequence[Volume]) -> list[str]:
    """The other VEs that have one of these."""
    found = {_declared_by(view, one) for one in volumes}
    for superblock in view.superblocks.values():
        if any(one.carries(superblock) for one in volumes):
            found |= {*view.users[superblock.devno].ves}
    return sorted(one for one in found if one not in {None, ve.ve_id})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return printable(", ".join(names[:_SHOWN])) + more


def _problem(context: ActionContext, ve_id: str) -> str | None:
    """Why its platform cannot say whether it is there; a VE can be declared for any platform."""
    problems = context.inventory.problems
    return problems.get(ve_id.partition(":")[0]) or problems.get(_DECLARED)


def _missing(ve_id: str, problem: str | None, *, half_way: bool, left: str) -> StepEnded:
    text = f"{ve_id} is gone"
    if problem is not None:
        text = f"nobody can say whether {ve_id} is there: {problem}"
    if not half_way:
        return refuse("cancelled", text, Next.CANCELLED)
    return refuse("stopped half-way", f"{text}; {left}", Next.OPERATOR)
