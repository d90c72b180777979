"""The time in which a VE is stopped by us, or a volume taken out of it: however it ends, neither is
forgotten.

A guard that says no, a state disk that is full, a program that cannot be started, a deadline: each
can end a repair between the stop of the VE and its start. Then the VE gets its volume back as it
is, and that needs no journal. Never while something still holds the volume: the start command would
mount it a second time beside a superblock that still writes to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType

from fswatchd.errors import FswatchError
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.model import Volume as Declared
from fswatchd.repair import hot_volume, storage, ve_control
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, Next, StepEnded, refuse

RELEASE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Down:
    ve: Ve
    superblock: Superblock | None
    image: Volume | None
    detached: Declared | None = None
    dead: bool = False
    ve_down: bool = True


class Outage:
    """Around all that happens to a stopped VE; `begin` before the stop, `end` when it is over.

    Also where not the VE is stopped, but only its volume taken out of it.
    """

    def __init__(self, context: ActionContext) -> None:
        self._context = context
        self._down: _Down | None = None

    def begin(
        self,
        ve: Ve,
        superblock: Superblock | None,
        image: Volume | None,
        detached: Declared | None = None,
    ) -> None:
        """The VE is about to be stopped by us, or was; or only `detached` taken out of it."""
        self._down = _Down(ve, superblock, image, detached, ve_down=detached is None)

    def begin_again(self, ve: Ve, image: Volume | None, journal: RepairJournal) -> None:
        """What an earlier run has begun, or what was exchanged since."""
        detached = hot_volume.named(ve, journal.detached)
        ve_down = journal.ve_down or journal.detached is None
        self._down = _Down(ve, None, image, detached, ve_down=ve_down)

    def volume_is_dead(self) -> None:
        """The filesystem was shut down by us, with its VE running."""
        if self._down is not None:
            self._down = replace(self._down, dead=True)

    def ve_goes_down(self) -> None:
        """The volume could not be taken out: its VE is stopped."""
        if self._down is not None:
            self._down = replace(self._down, ve_down=True)

    def end(self) -> None:
        """The VE is started by somebody else's line, or must not be started on what there is."""
        self._down = None

    async def __aenter__(self) -> Outage:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the VE back after an error. Raises StepEnded for the operator in its place."""
        down, self._down = self._down, None
        if error is None or down is None:
            return
        story = await self._give_back(down)
        if not isinstance(error, Exception):  # cancelled: it is taken up by the next start
            self._context.note(f"cut off; {story}")
            return
        result = error.result.result if isinstance(error, StepEnded) else "failed"
        raise refuse(result, f"{error}; {story}", Next.OPERATOR) from error

    async def _give_back(self, down: _Down) -> str:
        context, ve, name = self._context, down.ve, down.ve.ve_id
        try:
            now = await ve_control.wait_running(context, ve, 0)
            if now is not None and (now.init_pid, now.init_started) != (
                ve.init_pid,
                ve.init_started,
            ):
                return f"{name} was started meanwhile and runs{await _without(down)}"
            holder = await ve_control.wait_released(down.superblock, down.image, RELEASE_TIMEOUT_S)
            if await ve_control.wait_running(context, ve, 0) is not None:
                return f"{name} runs{await self._volume(down, holder)}"
            if not down.ve_down:
                return f"{name} does not run, and is not started: nothing of this repair stopped it"
            if holder is not None:
                return f"{name} is left stopped, {holder}: start it when nothing holds that"
            await storage.wake(down.image, context.settings)
            if down.image is not None and not down.image.is_at(down.image.path):
                return f"{name} is left stopped: {down.image.path} is not the image it had"
            await context.about_to_start(ve)
            story = await ve_control.start(ve, context.settings, down.image)
            timeout_s = context.settings.start_timeout_s
            if await ve_control.wait_running(context, ve, timeout_s) is None:
                return f"{name} does not run ({story})"
            return f"{name} runs again{await _without(down)}"
        except (OSError, FswatchError, HelperError) as error:
            if down.detached is not None and ve_control.is_running(ve):
                place = down.detached.mountpoint
                return f"{name} runs, and {place} could not be given back: {error}"
            return f"{name} is left stopped, it could not be given back: {error}"

    async def _volume(self, down: _Down, holder: str | None) -> str:
        """What has become of a volume that was taken out, or was to be; its VE has run on."""
        detached, image, settings = down.detached, down.image, self._context.settings
        if detached is None or image is None:
            return ""
        if holder is not None:
            dead = " (it was shut down: it gives errors until it is mounted anew)"
            return f", {detached.mountpoint} is still mounted there{dead if down.dead else ''}"
        await storage.wake(image, settings)
        await self._context.about_to_start(down.ve)
        done = await hot_volume.attach(detached, image, settings)
        if await ve_control.wait_released(None, image, 0) is None:
            return f", {detached.mountpoint} is left out: {done.story}"
        if done.succeeded:
            return f", {detached.mountpoint} with it"
        return f", {detached.mountpoint} with it, but what uses it may not run: {done.story}"


async def _without(down: _Down) -> str:
    """Of a VE that was started since: that it has not mounted what was taken out, where so."""
    if down.detached is None or await ve_control.wait_released(None, down.image, 0) is not None:
        return ""
    return f", and has not mounted {down.detached.mountpoint}"
