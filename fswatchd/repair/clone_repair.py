"""`strategy = "clone"`: repair a copy while the VE still reads, then exchange the two.

The rule behind it: a clone of a filesystem that is still written is only a preview; the clone that
is swapped in is made after writes have stopped for good. They have stopped when the kernel stopped
them (abort), or when a freeze is held from before the clone until every task of the VE has got
SIGKILL. Where neither can be had, or reads fail anyway (shutdown), the VE is stopped first and the
clone is made of the image that stands still.

What is about to happen is in the step's journal first; `resume` goes on from there after a crash.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType

from fswatchd.errors import FswatchError
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.model import Volume as Declared
from fswatchd.kernel import block
from fswatchd.repair import (
    clone,
    condition,
    consent,
    first_look,
    hot_volume,
    into_use,
    outsiders,
    progress,
    salvage,
    scope,
    storage,
    ve_control,
)
from fswatchd.repair.condition import Condition
from fswatchd.repair.cure import Cure, cure_clone, open_files
from fswatchd.repair.freeze import CannotFreezeError, Freeze
from fswatchd.repair.freeze import mark as freeze_mark
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.kept_preview import KeptPreview
from fswatchd.repair.logical_volume import LogicalVolume, Stamp
from fswatchd.repair.outage import RELEASE_TIMEOUT_S, Outage
from fswatchd.repair.scope import Target
from fswatchd.repair.storage import Storage
from fswatchd.repair.swap import HalfSwappedError, StaleError, SwapError, damaged_path
from fswatchd.repair.tools import Tools
from fswatchd.repair.volume import ImageFile, Volume
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_FREEZE_MARGIN_S = 20.0
_CLONE_ATTEMPTS = 3
_PATIENCE_S = 300.0
_NOT_SALVAGED = "what was written and not yet synced when the kernel stopped writes is lost"


class CloneRepair:
    """One repair of one volume. Use once, with `async with`."""

    def __init__(self, context: ActionContext, step: FsckStep) -> None:
        self._context = context
        self._step = step
        self._outage = Outage(context)
        self._freeze = Freeze()
        self._clone: Volume | None = None
        self._preview: KeptPreview | None = None
        self._storage: Storage | None = None
        self._written: int | None = None
        self._stamp: Stamp | None = None
        self._findings = ""
        self._needs_nothing = False
        self._open_files: dict[int, str] = {}
        self._shown: Cure | None = None
        self._kept_active: int | None = None
        self._timeout_s = context.settings.tool_timeout_s

    async def __aenter__(self) -> CloneRepair:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Thaw what is still frozen, delete the clone that is not in use, give the VE back.

        Whatever of these fails, the rest is done; the VE is the last, and told of the error.
        """
        stack = AsyncExitStack()
        stack.push_async_exit(self._outage)
        stack.push_async_callback(self._leave_no_clone)
        stack.callback(self._let_go)
        stack.push_async_callback(self._release, error)
        await stack.__aexit__(kind, error, trace)

    async def _release(self, error: BaseException | None) -> None:
        try:
            await self._freeze.release()
        except StepEnded:
            if isinstance(error, Exception):
                self._context.note(str(error))  # what cannot be thawed takes its place
            raise

    async def _leave_no_clone(self) -> None:
        for drop in (self._drop_clone, self._drop_preview):
            try:
                await drop()
            except (OSError, FswatchError) as error:
                self._context.note(f"a clone that is not needed any more stays: {error}")

    async def run(self) -> StepResult:
        """The whole way, from the first look to the running VE. Raises StepEnded."""
        target = await scope.resolve(self._context)
        image = scope.require_volume(target)
        lies_in = self._in(target)
        self._open_files = await open_files(self._context.inventory, target.superblock)
        await lies_in.discard_unfinished(clone.clone_path(image, self._incident_id, "preview"))
        if not target.ve.commands.start:
            text = f"{target.ve.ve_id} has no start command: it could not be started again"
            raise refuse("refused", text)
        await outsiders.require_none(self._context, target.ve, target.superblock)
        await lies_in.prepare()
        await self._context.journal(
            image=image.describe(),
            ve=target.ve.ve_id,
            cloning=None,
            clone=None,
            stopping=False,
            stamp=None,
            fresh=False,
            swapping=False,
            ve_down=False,
            attaching=False,
        )
        state = await condition.seen(self._context, target)
        if state is Condition.WRITABLE:
            seen = await first_look.running(self._context, self._step, target, image)
            self._shown = seen.cure
            if seen.clone is not None:
                self._preview = KeptPreview(seen.clone, lies_in)
            target = await self._lock(target)
            state = await self._hold_writers(target, seen.pause_s)
        elif (
            lies_in.live
            and state in {Condition.SHUTDOWN, Condition.STOPPED}
            and self._step.is_bounded
        ):
            await first_look.standing(self._context, self._step, target, image)
        self._context.note(f"{target.filesystem.device or image.path}: {state.value}")
        fresh = False
        if state is not Condition.STOPPED:
            self._context.reached("contained")
        first = {Condition.FROZEN, Condition.ABORTED} if lies_in.live else set()
        if lies_in.live and self._tools.silent_after_shutdown:
            first.add(Condition.SHUTDOWN)
        if state in first:
            if state is Condition.ABORTED:
                await self._prepare_and_salvage(target)
            else:
                await self._prepare_clone(target)
            if (
                state is Condition.FROZEN
                and self._needs_nothing
                and not self._context.incident.lost
            ):
                raise first_look.whole_again(self._context, self._shown)
            target = await self._lock(target)
            fresh = await self._stop(target)
        else:
            target = await self._lock(target)
            if state is Condition.ABORTED:
                self._context.note(_NOT_SALVAGED)
            if state is not Condition.STOPPED:
                await self._stop(target)
        return await self.finish(target, fresh=fresh)

    async def _lock(self, target: Target) -> Target:
        return replace(target, ve=await self._context.lock_ve(target.ve))

    # --- while the VE runs: nothing here may hurt it --------------------------------------------

    async def _hold_writers(self, target: Target, pause_s: float) -> Condition:
        """Freeze, or stop the VE where a freeze would be too long or reach too few."""
        live = self._in(target).live
        stop_first = (
            not live
            or not ve_control.can_tell_tasks(target.ve)
            or block.sectors_written(scope.disk(target)) is None
        )
        if pause_s > self._step.max_write_pause:
            stop_first = stop_first or self._step.on_long_pause == "offline"
            # Where no clone can be made beside it the VE is down for as long.
            asks = not stop_first or (not live and self._step.on_long_pause != "offline")
            if asks and not consent.may_hold_writers(self._context, pause_s):
                raise await consent.long_pause(self._context, self._step, target, pause_s)
        if stop_first:
            await self._stop(target, gently=True)
            return Condition.STOPPED
        superblock = scope.mounted(target)
        await outsiders.require_none(self._context, target.ve, superblock)
        deadline_s = self._step.max_write_pause + _FREEZE_MARGIN_S
        if consent.may_hold_writers(self._context, pause_s):
            deadline_s = self._timeout_s
        await self._freeze.prepare()
        await self._context.journal(frozen=freeze_mark(superblock))
        try:
            await self._freeze.hold(
                self._context.inventory, superblock, deadline_s, sync_first=True
            )
        except CannotFreezeError as error:
            if error.code == errno.EROFS:
                return Condition.ABORTED
            if error.code == errno.EIO:
                return Condition.SHUTDOWN
            raise refuse("cannot freeze", f"writers cannot be held: {error}") from None
        except (HelperError, OSError) as error:
            raise refuse("cannot freeze", f"writers cannot be held: {error}") from None
        return Condition.FROZEN

    async def _prepare_clone(
        self, target: Target, on_repaired: Callable[[], None] | None = None
    ) -> None:
        """Clone what no longer changes, repair and prove the clone."""
        superblock = scope.mounted(target)
        if block.sectors_written(scope.disk(target)) is None:
            text = (
                f"nobody counts what is written to {superblock.device}: whether a clone is stale "
                f"could not be told; write 1 to /sys/block/{superblock.device}/queue/iostats"
            )
            raise refuse("refused", text)
        for _ in range(_CLONE_ATTEMPTS):
            await self._drop_clone()
            await asyncio.to_thread(block.sync, f"/dev/{superblock.device}")
            self._written = block.sectors_written(scope.disk(target))
            self._stamp = scope.require_volume(target).stamp()
            await self._make_clone(target)
            if self._nothing_written(target):
                break
        else:
            text = f"{superblock.device} is still being written to, although writes have stopped"
            raise refuse("stale", text)
        await self._cure(on_repaired)

    async def _prepare_and_salvage(self, target: Target) -> None:
        if not self._tools.salvages or target.image is None:
            await self._prepare_clone(target)
            self._context.note(_NOT_SALVAGED)
            return
        image = scope.require_image(target)
        async with salvage.Search(self._context, scope.mounted(target)) as search:
            await self._prepare_clone(target, lambda: self._compare(search))
            self._context.progress(None, "looking for files that never reached the disk")
            report = await search.copy(image, self._step.salvage_max)
        self._context.note(report)

    def _compare(self, search: salvage.Search) -> None:
        """Beside the proof: writers wait for both."""
        made = self._require_clone()
        if not isinstance(made, ImageFile):
            raise refuse("internal", "only a copy of an image is read so", Next.OPERATOR)
        search.compare(made)

    def _nothing_written(self, target: Target) -> bool:
        written = block.sectors_written(scope.disk(target))
        if written is None or written != self._written:
            return False
        return scope.require_volume(target).is_unchanged(self._stamp)

    # --- stopping -----------------------------------------------------------------------------

    async def _stop(self, target: Target, *, gently: bool = False) -> bool:
        """Stop the VE; whether the clone is what the image ended as.

        Killing and thawing are one step: a task killed while it waits for the freeze dies only
        after the thaw, and between the two it cannot return to the program that would acknowledge
        a write. Others who wait for the thaw are not killed: for them the filesystem is shut down
        first. That writes a little, and nothing does from then on.
        """
        superblock, image = scope.mounted(target), scope.require_volume(target)
        frozen = self._freeze.held
        if self._clone is not None and not frozen:
            # Nobody waits for us: the clone is not given up because somebody just looks in.
            await outsiders.require_none(
                self._context, target.ve, superblock, patience_s=_PATIENCE_S
            )
        await self._context.inventory.refresh()
        if different := scope.still_the_same(target, self._context.inventory):
            raise refuse("cancelled", different, Next.CANCELLED)
        if frozen and not await self._freeze.still_held():
            raise refuse("stale", "somebody thawed the filesystem: the clone is stale")
        await outsiders.require_none(self._context, target.ve, superblock, frozen=frozen)
        await self._context.about_to_stop(target.ve.ve_id)
        hot = hot_volume.of(target.ve, image)
        self._outage.begin(target.ve, superblock, image, hot)
        self._keep_active(image)
        fresh = self._clone is not None and self._nothing_written(target)
        if hot is not None:
            init = (target.ve.init_pid, target.ve.init_started)
            await self._context.journal(detached=hot.path, init=init)
            if frozen and await self._freeze.seal():
                self._outage.volume_is_dead()
                self._stamp, frozen = image.stamp(), False
                fresh = await self._freeze.thaw() and fresh
        if hot is None or frozen or not await self._detach(target, hot):
            thawed_well = await self._stop_ve(target, frozen=frozen, gently=gently)
            fresh = thawed_well and fresh
        stamp = image.stamp()
        if fresh and stamp != self._stamp:
            self._context.note("the image was written to after the clone was made: it is stale")
            fresh = False
        await self._context.journal(fresh=fresh, stamp=stamp)
        return fresh

    async def _stop_ve(self, target: Target, *, frozen: bool, gently: bool) -> bool:
        """Until nothing holds the volume; whether nobody can have written to it after a thaw."""
        ve, image, nobody_wrote = target.ve, scope.require_volume(target), True
        if self._context.record.journal.get("detached"):
            self._outage.ve_goes_down()
            await self._context.journal(ve_down=True)
        if gently:
            told = await ve_control.stop(ve, self._context.settings)
        else:
            await asyncio.to_thread(ve_control.send_kill, ve)
            if frozen:
                sealed = await self._freeze.seal()
                self._stamp = image.stamp()
                nobody_wrote = await self._freeze.thaw() and sealed
            told = await ve_control.clean_up_after_kill(ve, self._context.settings)
        self._context.note(f"{ve.ve_id}: {told}")
        holder = await ve_control.wait_released(target.superblock, image, RELEASE_TIMEOUT_S)
        if holder is not None:
            text = f"after the stop, {holder}; the original is untouched"
            raise refuse("stopped half-way", text, Next.OPERATOR)
        return nobody_wrote

    async def _detach(self, target: Target, hot: Declared) -> bool:
        """Take the volume out of its VE, which goes on; False where that has to be stopped."""
        ve, image = target.ve, scope.require_volume(target)
        self._context.progress(None, f"taking {hot.mountpoint} out of {ve.ve_id}")
        settings = self._context.settings
        told, holder = await hot_volume.detach(hot, target.superblock, image, settings)
        if holder is None:
            self._context.note(f"{ve.ve_id} goes on without {hot.mountpoint}: {told}")
            return True
        self._context.note(f"{hot.mountpoint} cannot be taken out of {ve.ve_id}: {told}; {holder}")
        return False

    def _keep_active(self, image: Volume) -> None:
        """Open a logical volume of which there is a clone: what is open nobody deactivates.

        With a volume that its platform puts away goes what was counted of its writes, and the clone
        would have to be made again while the VE is down.
        """
        if isinstance(image, LogicalVolume) and self._clone is not None:
            with suppress(OSError):
                self._kept_active = os.open(image.node, os.O_RDONLY | os.O_CLOEXEC)

    def _let_go(self) -> None:
        if self._kept_active is not None:
            os.close(self._kept_active)
            self._kept_active = None

    # --- from the image that stands still to the VE that runs on the repaired one ---------------

    async def finish(self, target: Target, *, fresh: bool) -> StepResult:
        """Make a clone if there is no fresh one, exchange, start, verify. Raises StepEnded."""
        image = scope.require_volume(target)
        await self._in(target).wake()
        for _ in range(_CLONE_ATTEMPTS):
            if not fresh:
                await self._drop_clone()
                await self._context.journal(fresh=False, stamp=image.stamp())
                await self._make_clone(target)
                await self._cure()
                if self._needs_nothing and not self._is_ours_to_start():
                    raise first_look.whole_as_it_stands(self._context)
                await self._context.journal(fresh=True)
            # Somebody may have started the VE, and stopped it again: then the clone lacks that.
            stamp = RepairJournal.read(self._context.record.journal).stamp
            if stamp is not None and await self._swap(target, stamp):
                return await self.start(target)
            self._context.note("the image has changed since it was cloned: the clone is stale")
            fresh = False
        text = f"{image.path} is still being written to, although nothing has it mounted"
        raise refuse("stale", text, Next.OPERATOR)

    def _is_ours_to_start(self) -> bool:
        """Whether the VE was stopped by us, or has lost what its owner has to be shown."""
        return bool(self._context.record.journal.get("stopping") or self._context.incident.lost)

    def resume_outage(self, target: Target, journal: RepairJournal) -> None:
        """An earlier run of the daemon has stopped the VE, or only taken its volume out of it."""
        self._in(target)
        self._outage.begin_again(target.ve, target.volume, journal)

    async def adopt(self, made: Volume) -> None:
        """Take over the clone of an earlier run, after proving it again. Raises StepEnded."""
        self._clone = made
        await self._prove()

    async def _make_clone(self, target: Target) -> None:
        image = scope.require_volume(target)
        lies_in = self._in(target)
        try:
            path = await lies_in.free_name(clone.clone_path(image, self._incident_id, "clone"))
            await self._context.journal(clone=None, cloning=path)
            self._context.progress(None, "cloning")
            begin = partial(progress.begin, self._context, "copying the image")
            earlier = await self._preview.take() if self._preview is not None else None
            self._clone = await lies_in.make(path, begin, earlier)
        except OSError as error:
            raise refuse("cannot clone", f"no clone can be made: {error}") from None
        await self._context.journal(clone=self._clone.describe())

    async def _cure(self, on_repaired: Callable[[], None] | None = None) -> None:
        """Replay, repair and prove the clone. Raises StepEnded when it does not come out clean.

        `on_repaired` as of `cure.cure`.
        """
        made = self._require_clone()
        async with self._beside.at_work(made) as path:
            done = await cure_clone(
                self._context,
                self._tools,
                path,
                image=self._image_path,
                open_files=self._open_files,
                shown=self._shown,
                on_repaired=on_repaired,
            )
        self._findings = done.summary()
        self._needs_nothing = done.repaired.clean
        self._context.note(f"{self._tools.name} on the clone: {self._findings}")
        if not done.proof.clean:
            raise await first_look.not_curable(self._context, self._tools, done.proof.summary())
        await consent.within_bounds(self._context, self._step, done, done.seconds)
        await self._beside.sync(made)

    async def _prove(self) -> None:
        made = self._require_clone()
        self._context.progress(None, "proving the clone")
        async with self._beside.at_work(made) as path:
            proof = await self._tools.check(path, self._timeout_s)
        if not proof.clean:
            raise await first_look.not_curable(self._context, self._tools, proof.summary())
        await self._beside.sync(made)

    async def _swap(self, target: Target, stamp: Stamp) -> bool:
        """Exchange the two; False where the image is not what was cloned any more."""
        image, made = scope.require_volume(target), self._require_clone()
        lies_in = self._in(target)
        kept = await lies_in.free_name(damaged_path(image, self._incident_id))
        await self._context.journal(swapping=True, keeping=kept)
        try:
            await lies_in.exchange(made, kept, stamp)
        except StaleError:
            return False
        except SwapError as error:
            text = f"{error}; the original is untouched"
            raise refuse("not exchanged", text, Next.OPERATOR) from None
        except HalfSwappedError as error:
            self._clone = None  # a person may need both
            self._outage.end()
            running = ve_control.is_running(target.ve)
            text = f"{error}; {target.ve.ve_id} {'runs without it' if running else 'stays stopped'}"
            raise refuse("half exchanged", text, Next.OPERATOR) from None
        self._clone = None  # it is the VE's image from here on, nothing of ours to delete
        self._let_go()
        await self.keep_original(target)
        return True

    async def keep_original(self, target: Target) -> None:
        """After the exchange: give the original the name under which it is kept."""
        image = scope.require_volume(target)
        journal, _ = into_use.exchanged(self._context, self._outage, target)
        beside = journal.clone.path if journal.clone else ""
        kept = journal.keeping or damaged_path(image, self._incident_id)
        try:
            kept = await self._in(target).keep(beside, kept)
        except SwapError as error:
            self._context.note(f"the damaged original stays at {beside}: {error}")
            kept = beside
        await self._context.journal(kept=kept)

    async def start(self, target: Target) -> StepResult:
        """Start the VE on the repaired image and prove it healthy."""
        keep_s, done = self._step.keep_original, self._findings or "repaired"
        return await into_use.start(self._context, self._outage, target, keep_s=keep_s, done=done)

    @property
    def _tools(self) -> Tools:
        return scope.tools_for(self._context.incident.filesystem)

    @property
    def _incident_id(self) -> str:
        return self._context.incident.incident_id

    @property
    def _image_path(self) -> str:
        image = RepairJournal.read(self._context.record.journal).image
        return image.node if image is not None else ""

    def _in(self, target: Target) -> Storage:
        """What the volume lies in, and its clone."""
        self._storage = storage.of(scope.require_volume(target), self._context.settings)
        return self._storage

    @property
    def _beside(self) -> Storage:
        """The same for the clone, once there is one."""
        if self._storage is None:
            raise refuse("internal", "nothing was cloned", Next.OPERATOR)
        return self._storage

    def _require_clone(self) -> Volume:
        if self._clone is None:
            raise refuse("internal", "there is no clone", Next.OPERATOR)
        return self._clone

    async def _drop_clone(self) -> None:
        made, self._clone = self._clone, None
        if made is not None:
            await self._beside.discard(made)

    async def _drop_preview(self) -> None:
        if self._preview is not None:
            await self._preview.drop()
