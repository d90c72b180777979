"""Put another volume in place of the VE's: stop it, exchange the two, start it.

For a rollback that is the volume from before a repair, for a restore the clone of a snapshot. How
far an earlier run got is told by what the names lead to, so that nothing is exchanged back and
forth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fswatchd.inventory.model import Ve
from fswatchd.inventory.view import NodeView
from fswatchd.repair import outsiders, owner, scope, storage, ve_control, verify
from fswatchd.repair.journal import read_volume
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.outage import RELEASE_TIMEOUT_S, Outage
from fswatchd.repair.swap import HalfSwappedError, SwapError
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.steps import ActionContext, ActionSettings, Next, StepResult, refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be put in place of what, and how it is called for people.

    `image` is the name that the VE's volume has, `there` what it has to lead to (None where an
    earlier version has not recorded it), `beside` where `volume` is that takes its place (None as
    well). `aside` is the name under which what was there is kept. `left_with` are the volumes that
    the VE declared when a repair that failed left it stopped, if that is to be believed. On what is
    `proven` it has to be well, too.
    """

    ve: str
    image: str
    there: Volume | None
    beside: str
    volume: Volume | None
    aside: str
    name: str = "the volume from before the repair"
    name_of_other: str = "the repaired one"
    left_with: Sequence[str] | None = None
    proven: bool = False


async def run(context: ActionContext, goal: Goal) -> StepResult:
    """Stop the VE, exchange the volumes, start it. Raises StepEnded."""
    half_way = any(context.record.journal.get(mark) for mark in ("stopping", "kept"))
    ve = await owner.find(context, goal.ve, half_way=half_way, left=_left(goal))
    ve = await context.lock_ve(ve)
    way = await _Way.prepare(context, goal)
    if not context.record.journal.get("stopping"):  # else it was asked, and the VE is down for it
        await _require_its_own(context, goal, ve, way)
    async with Outage(context) as outage:
        if not way.is_exchanged:
            await _stop(context, ve, way, outage)
            await way.exchange(context.settings, ve, outage)
        outage.begin(ve, None, way.new)
        kept = await way.keep(context.settings)
        return await _start(context, goal, ve, way.new, kept)


def replaced(goal: Goal, put: Volume) -> tuple[str, str]:
    """What stands where a repair has put a volume of its own, and what can be done."""
    there = at(put.path, put)
    text = (
        f"{put.path} is not the volume that the repair has put there ({put.identity}), but "
        f"{there.identity if there else 'nothing'}"
    )
    hint = (
        "it was made anew, restored, or repaired once more since, so nothing is put in its place; "
        f"{goal.name} is {goal.beside}, copy from it what you need"
    )
    return text, hint


def at(path: str, like: Volume | None) -> Volume | None:
    """What is at this path, of the same kind; None where there is nothing."""
    if isinstance(like, LogicalVolume):
        return LogicalVolume.at(path)
    try:
        return ImageFile.at(path)
    except OSError:
        return None


def another_ves(view: NodeView, goal: Goal, ve: Ve, *volumes: Volume) -> tuple[str, str] | None:
    """Why the VE would be stopped for a volume that is not its own any more, and what can be done.

    Its name may be another VE's by now, or it has got another volume. One whose platform does not
    tell its volumes is taken for the same while it is as a repair that failed has left it.
    """
    text = owner.why_another(view, ve, volumes, goal.left_with)
    if text is None:
        return None
    hint = (
        f"so it is not stopped, and nothing is exchanged; {goal.name} is "
        f"{goal.beside}: copy from it what you need, or give {ve.ve_id} {goal.name_of_other} "
        "back and ask again (where its platform does not tell its volumes: start it, or declare "
        "the volume in ve.d)"
    )
    return text, hint


def _left(goal: Goal) -> str:
    """Where the volume is that takes the other's place, for a person who has to go on."""
    found = owner.where(goal.volume, goal.beside) if goal.volume is not None else goal.beside
    return f"{goal.name} is {found}"


async def _require_its_own(context: ActionContext, goal: Goal, ve: Ve, way: _Way) -> None:
    """Raises StepEnded where another VE than the one meant would be stopped, or started."""
    await context.inventory.refresh()
    view = context.inventory.view
    now = view.ves.get(ve.ve_id, ve)
    if another := another_ves(view, goal, now, way.old, way.new):
        raise refuse("not its volume", "; ".join(another), Next.OPERATOR)


async def _stop(context: ActionContext, ve: Ve, way: _Way, outage: Outage) -> None:
    if ve_control.is_running(ve):
        await outsiders.require_none(context, ve, None)
        context.progress(None, f"stopping {ve.ve_id}")
        await context.about_to_stop(ve.ve_id)
        outage.begin(ve, None, way.old)
        context.note(f"{ve.ve_id}: {await ve_control.stop(ve, context.settings)}")
    elif context.record.journal.get("stopping"):
        outage.begin(ve, None, way.old)
    holder = await ve_control.wait_released(None, way.old, RELEASE_TIMEOUT_S)
    if holder is not None:
        text = f"after the stop, {holder}; nothing was changed"
        raise refuse("still in use", text, Next.OPERATOR)


@dataclass(frozen=True, slots=True)
class _Way:
    """Which volume is which, written down before anything is done."""

    old: Volume
    new: Volume
    beside: str
    kept: str

    @classmethod
    async def prepare(cls, context: ActionContext, goal: Goal) -> _Way:
        """From the journal of an earlier run, else from what is there now. Raises StepEnded."""
        image, beside, journal = goal.image, goal.beside, context.record.journal
        # Its journal calls them as the first of its kind did, a rollback.
        old, new = read_volume(journal.get("repaired")), read_volume(journal.get("original"))
        kept = str(journal.get("kept") or "")
        if old is None or new is None or not kept:
            if goal.volume is not None:
                await storage.of(goal.volume, context.settings).wake(image, beside)
            old, new = _volume(image, goal.volume), _volume(beside, goal.volume)
            if goal.there is not None and not goal.there.is_at(goal.there.path):
                raise refuse("replaced", "; ".join(replaced(goal, goal.there)), Next.OPERATOR)
            old = goal.there.today(goal.there.path) if goal.there is not None else old
            if goal.volume is not None and not goal.volume.is_at(beside):
                raise refuse(
                    "refused", f"{beside} is not the original that was kept", Next.OPERATOR
                )
            kept = await storage.of(old, context.settings).free_name(goal.aside)
            await context.journal(repaired=old.describe(), original=new.describe(), kept=kept)
        else:
            await owner.wait_seen(context, new, image, beside)
        old = replace(old, path=image)
        lies_in = storage.of(old, context.settings)
        await lies_in.wake(beside, kept)
        await lies_in.mend(kept)
        old = old.today(image, beside, kept)
        new = replace(new, path=image).today(image, beside)
        return cls(old, new, beside, kept)

    @property
    def is_exchanged(self) -> bool:
        """Whether the volume's name leads to the new one already."""
        return self.new.is_at(self.old.path)

    async def exchange(self, settings: ActionSettings, ve: Ve, outage: Outage) -> None:
        """Put the new one in place. Raises StepEnded."""
        new = replace(self.new, path=self.beside)
        try:
            await storage.of(self.old, settings).exchange(new, self.kept)
        except SwapError as error:
            raise refuse("not exchanged", str(error), Next.OPERATOR) from None
        except HalfSwappedError as error:
            outage.end()
            text = f"{error}; {ve.ve_id} stays stopped"
            raise refuse("half exchanged", text, Next.OPERATOR) from None

    async def keep(self, settings: ActionSettings) -> str:
        """Give the old one the name under which it is kept; returns the one it has."""
        if not self.old.is_at(self.kept) and not self.old.is_at(self.beside):
            return "gone"
        try:
            return await storage.of(self.old, settings).keep(self.beside, self.kept)
        except SwapError:
            return self.beside


def _volume(path: str, like: Volume | None) -> Volume:
    """What stands at `path`, of the kind that was put aside. Raises StepEnded."""
    if not isinstance(like, LogicalVolume):
        return scope.image_file(path)
    found = LogicalVolume.at(path)
    if found is None:
        raise refuse("refused", f"{path} is no logical volume that can be used", Next.OPERATOR)
    return found


async def _start(
    context: ActionContext, goal: Goal, ve: Ve, volume: Volume, kept: str
) -> StepResult:
    story = ""
    if not ve_control.is_running(ve):
        await context.about_to_start(ve)
        story = await ve_control.start(ve, context.settings, volume)
    found = await verify.find_mounted(context, ve, volume, context.settings.start_timeout_s)
    problem: str | None = None
    if isinstance(found, str):
        problem = f"{found} ({story or 'no command ran'})"
    elif goal.proven:
        context.filesystem_is_now(found[1])
        problem = await verify.healthy(context.inventory, context.state, found[1], may_be_full=True)
    state = f"but {problem}" if problem is not None else f"{ve.ve_id} runs on it again"
    text = f"{goal.name} is in place, {state}; {goal.name_of_other} is {kept}"
    return StepResult(
        next=Next.CONTINUE if problem is None else Next.OPERATOR,
        result="rolled back",
        detail=text,
        changed=True,
    )
