"""`strategy = "offline"`: stop the VE, check its volume in place, start it.

What e2fsck changes an undo file takes back. Nothing does for XFS: there the volume is changed only
where a check has found damage, and what does not come out clean stays where no start finds it.
btrfs is checked and never changed; after an abort the next mount is the cure.

While a tool works on an image, the image has another name: whoever starts the VE meanwhile (an HA
manager, a reboot, an admin) finds no image instead of a half-repaired one. A device cannot be
renamed; it is held with O_EXCL from before the check until after the write, and the tool works on
a loop device on top of our descriptor.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.kernel import block, loop
from fswatchd.repair import (
    outsiders,
    owner,
    progress,
    restore,
    scope,
    scratch,
    swap,
    ve_control,
    verify,
)
from fswatchd.repair.check import CheckResult
from fswatchd.repair.device import DeviceIdentity
from fswatchd.repair.journal import read_file
from fswatchd.repair.logical_volume import Stamp
from fswatchd.repair.outage import RELEASE_TIMEOUT_S, Outage
from fswatchd.repair.scope import Target
from fswatchd.repair.tools import Tools
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import FsckStep
from fswatchd.sandbox import Sandbox
from fswatchd.steps import ActionContext, Next, StepEnded, StepResult, refuse

_UNDO_TIMEOUT_S = 3600.0
_GOING_S = 3.0
_DETACH_POLLS = 500


async def run(context: ActionContext, step: FsckStep) -> StepResult:
    """The whole classic way. Raises StepEnded."""
    target = await scope.resolve(context, strategy="offline")
    if not target.ve.commands.start:
        text = f"{target.ve.ve_id} has no start command: it could not be started again"
        raise refuse("refused", text)
    if target.image is None and (different := _other_device(target)):
        raise refuse("refused", f"{target.device}: {different}")
    tools = scope.tools_for(target.filesystem)
    undo_file = _undo_file(context, target) if tools.undoes else None
    await context.journal(
        ve=target.ve.ve_id,
        image=target.image.describe() if target.image else None,
        device=target.device,
        identity=target.identity.describe() if target.identity else None,
        undo_file=undo_file,
        stopping=False,
    )
    target = replace(target, ve=await context.lock_ve(target.ve))
    async with Outage(context) as outage:
        await _stop(context, target, outage)
        return await repair_stopped(context, target, step, undo_file, outage)


async def repair_stopped(
    context: ActionContext,
    target: Target,
    step: FsckStep,
    undo_file: str | None,
    outage: Outage,
    *,
    half_done: bool = False,
) -> StepResult:
    """Check in place what nobody holds any more, then start the VE if it came out clean.

    `half_done` says that an earlier run was cut off in the middle of its writes: what this one
    finds is not what the volume was before, and undoing this one does not bring that back.
    """
    context.reached("contained")
    tools = scope.tools_for(target.filesystem)
    try:
        hold = await Hold.take(target, context.incident.incident_id)
    except (StepEnded, OSError, swap.SwapError) as error:
        raise _not_taken(target, error, outage, half_done=half_done) from error
    proven = restored = False
    try:
        await context.journal(writing=True)
        path = hold.device if tools.undoes or hold.file is None else hold.file.path
        repaired, proof = await _in_place(context, tools, path, undo_file)
        left = proof.summary()
        if repaired.usable and proof.clean:
            # What was proven may have been read from memory.
            unwritten = await hold.sync()
            left = f"what it has written does not reach the disk: {unwritten}"
            proven = unwritten is None
        restored = proven or (
            not half_done and (await hold.untouched() or await _undone(hold.device, undo_file))
        )
    except Exception:  # a tool that cannot be run, a journal that cannot be written
        restored = not half_done and await hold.untouched()
        raise
    finally:
        if not (proven or restored):
            outage.end()  # nobody starts a VE on what is half-repaired
        left_aside = await hold.release(in_place=proven or restored)
        if left_aside is not None:
            context.note(f"the volume of {target.ve.ve_id} is left at {left_aside}")
            outage.end()
    if left_aside is not None and restored:
        text = f"{hold.device} is still attached, a tool hangs; {target.ve.ve_id} stays stopped"
        raise refuse("still in use", f"{text}, its volume is {left_aside}", Next.OPERATOR)
    if not proven:
        where = None if restored else left_aside or target.device
        snapshot = await asyncio.to_thread(restore.offer, context.incident)
        raise _not_curable(tools, target, left, undo_file, where, snapshot)
    await context.journal(writing=False, proven=repaired.summary(), undone_by=undo_file)
    outage.end()
    return await _start(context, target, step, repaired.summary(), undo_file)


async def _in_place(
    context: ActionContext, tools: Tools, path: str, undo_file: str | None
) -> tuple[CheckResult, CheckResult]:
    """What was done to the volume, and the check after it."""
    timeout_s = context.settings.tool_timeout_s
    text = f"{tools.name} in place"
    if undo_file is not None:
        repaired = await tools.repair(path, timeout_s, undo_file, progress.begin(context, text))
    else:
        context.progress(None, "replaying the journal in place")
        repaired = await tools.replay(path, timeout_s)
        if repaired.usable:
            begun = progress.begin(context, f"{text}: looking")
            repaired = await tools.check(path, timeout_s, begun)
        if repaired.damaged:
            repaired = await tools.repair(path, timeout_s, None, progress.begin(context, text))
    if not repaired.usable:
        return repaired, repaired
    begun = progress.begin(context, f"{text}: proving")
    return repaired, await tools.check(path, timeout_s, begun)


def _not_taken(target: Target, error: Exception, outage: Outage, *, half_done: bool) -> StepEnded:
    """The VE gets back what nobody has changed; not what an earlier run has half-written."""
    text = f"{target.image.path if target.image else target.device} cannot be checked: {error}"
    if half_done:
        outage.end()
        text += f"; an earlier repair was cut off, and {target.ve.ve_id} stays stopped"
    else:
        text += "; nothing was changed"
    return refuse("not taken", text, Next.OPERATOR)


async def _undone(device: str, undo_file: str | None) -> bool:
    """Take back what e2fsck wrote (e2undo(8)); whether the volume is what it was."""
    if undo_file is None:
        return False
    sandbox = Sandbox(device=device, directory=os.path.dirname(undo_file))
    argv = ("e2undo", undo_file, device)
    ended = await process.run(argv, timeout_s=_UNDO_TIMEOUT_S, sandbox=sandbox)
    return ended.succeeded


def _not_curable(
    tools: Tools, target: Target, left: str, undo_file: str | None, where: str | None, snapshot: str
) -> StepEnded:
    text = f"{tools.name} leaves damage ({left}); the volume is what it was before"
    if where is not None:
        text = f"{tools.name} leaves damage ({left}); {target.ve.ve_id} stays stopped, its volume "
        text += f"is {where}"
        if undo_file is not None:
            text += f" and what e2fsck changed is in {undo_file}, see e2undo(8)"
    if tools.no_cure:
        text += f"; {tools.no_cure}"
    return refuse("not curable", f"{text}{snapshot}", Next.OPERATOR)


async def recover(context: ActionContext, step: FsckStep) -> StepResult:
    """After a crash: the volume is checked again before anything is started. Raises StepEnded."""
    journal = context.record.journal
    file = read_file(journal.get("image"))
    begun = any(journal.get(mark) for mark in ("stopping", "writing", "proven"))
    if file is not None:
        aside = _aside(file, context.incident.incident_id)
        begun = begun or file.is_at(aside)
        file = file.today(file.path, aside)
    if not begun or (file is None and journal.get("device") is None):
        # Whoever has stopped the VE since, it was not this repair: all is asked again.
        return await run(context, step)
    left = f"its volume is {journal.get('device')}"
    if file is not None:
        left = f"its volume is {owner.where(file, _aside(file, context.incident.incident_id))}"
    ve = await owner.find(context, str(journal["ve"]), half_way=True, left=left)
    target = Target(
        filesystem=context.incident.filesystem,
        ve=ve,
        superblock=None,
        image=file,
        device=journal.get("device"),  # type: ignore[arg-type]
        identity=DeviceIdentity.read(journal.get("identity")),
    )
    if ve_control.is_running(ve):
        if (findings := journal.get("proven")) is None:
            await context.journal(stop_asked=bool(journal.get("stopping")))
            return await run(context, step)
        undo_file = str(journal["undone_by"]) if journal.get("undone_by") else None
        return await _verified(context, target, step, str(findings), undo_file)
    target = replace(target, ve=await context.lock_ve(ve))
    # What the earlier run had attached goes when its last program has died.
    holder = await ve_control.wait_released(None, file, RELEASE_TIMEOUT_S)
    if holder is not None:
        raise refuse("still in use", holder, Next.OPERATOR)
    # The tools are safe to repeat on what they left half-done; the first undo file stays as it is.
    undo_file = swap.free_name(str(journal["undo_file"])) if journal.get("undo_file") else None
    async with Outage(context) as outage:
        if journal.get("stopping"):
            outage.begin(target.ve, None, file)
        half_done = bool(journal.get("writing"))
        return await repair_stopped(context, target, step, undo_file, outage, half_done=half_done)


async def _stop(context: ActionContext, target: Target, outage: Outage) -> None:
    await context.inventory.refresh()
    if different := scope.still_the_same(target, context.inventory):
        raise refuse("cancelled", different, Next.CANCELLED)
    if ve_control.is_running(target.ve):
        await outsiders.require_none(context, target.ve, target.superblock)
        context.progress(None, f"stopping {target.ve.ve_id}")
        await context.about_to_stop(target.ve.ve_id)
        outage.begin(target.ve, target.superblock, target.image)
        context.note(f"{target.ve.ve_id}: {await ve_control.stop(target.ve, context.settings)}")
    holder = await ve_control.wait_released(target.superblock, target.image, RELEASE_TIMEOUT_S)
    if holder is not None:
        text = f"after the stop, {holder}; nothing was changed"
        raise refuse("still in use", text, Next.OPERATOR)


async def _start(
    context: ActionContext, target: Target, step: FsckStep, findings: str, undo_file: str | None
) -> StepResult:
    context.progress(None, f"starting {target.ve.ve_id}")
    await context.about_to_start(target.ve)
    story = await ve_control.start(target.ve, context.settings, target.image)
    return await _verified(context, target, step, findings, undo_file, story)


async def _verified(
    context: ActionContext,
    target: Target,
    step: FsckStep,
    findings: str,
    undo_file: str | None,
    story: str = "started before the daemon was",
) -> StepResult:
    """Whether the VE, started on what was proven, is up and well."""
    undo: dict[str, object] = {
        "undo_file": undo_file,
        "ve": target.ve.ve_id,
        "image": target.image.path if target.image else None,
        "device": target.device,
        "keep_s": step.keep_original,
    }
    timeout_s = context.settings.start_timeout_s
    running = await ve_control.wait_running(context, target.ve, timeout_s)
    context.reached("repaired")
    problem: str | None = f"{target.ve.ve_id} did not come up ({story})"
    if running is not None:
        problem = f"{target.ve.ve_id} runs, but has not mounted its volume"
        for superblock in context.inventory.view.superblocks_of(running.ve_id):
            on_image = target.image and superblock.backing.inode_key == (
                target.image.devno,
                target.image.inode,
            )
            on_device = target.identity and superblock.uuid == target.identity.uuid
            if on_image or on_device:
                context.filesystem_is_now(superblock)
                problem = await verify.healthy(
                    context.inventory, context.state, superblock, may_be_full=True
                )
                break
    if problem is not None:
        return StepResult(
            next=Next.FAILED, result="not healthy", detail=problem, changed=True, undo=undo
        )
    context.reached("verified")
    text = f"{findings}; {target.ve.ve_id} runs again"
    return StepResult(next=Next.CONTINUE, result="repaired", detail=text, changed=True, undo=undo)


class Hold:
    """A loop device of ours on a volume that nobody else can mount or start meanwhile.

    `file` is the image under the name that it has meanwhile, None for a device. Work on either of
    the two, and not on both: neither sees what the other has cached.
    """

    def __init__(self, target: Target, aside: str | None, base: int) -> None:
        self._target = target
        self._aside_path = aside
        self._base = base
        self._fd: int | None = None
        self._written: int | None = None
        self._stamp: Stamp | None = None
        self.device = ""
        self.file: ImageFile | None = None

    @classmethod
    async def take(cls, target: Target, incident_id: str) -> Hold:
        """Hold the volume, also one that an earlier run has left aside.

        Raises OSError, SwapError or StepEnded; nothing is held then, and the volume has the name
        that it had before.
        """
        aside, was_aside = None, False
        if target.image is None:
            base = os.open(target.device or "", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        else:
            aside = _aside(target.image, incident_id)
            was_aside = target.image.is_at(aside)
            if not was_aside:
                swap.rename(target.image.path, aside)
            try:
                renamed = replace(target.image, path=aside)
                if holder := await asyncio.to_thread(renamed.held_by, _GOING_S):
                    raise refuse("still in use", holder, Next.OPERATOR)
                base = os.open(aside, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except BaseException:
                if not was_aside:
                    swap.rename(aside, target.image.path)
                raise
        hold = cls(target, aside, base)
        try:
            if different := _other_volume(base, target):
                raise refuse("cancelled", different, Next.CANCELLED)
            hold.device, fd = await asyncio.to_thread(loop.attach, base, autoclear=True)
            hold._fd = fd
            await scratch.locked(fd)
            block.count_writes(hold._devno())
            hold._written = block.sectors_written(hold._devno())
            if target.image is not None and aside is not None:
                hold.file = replace(target.image, path=aside)
                hold._stamp = hold.file.stamp()
        except BaseException:
            await hold.release(in_place=not was_aside)
            raise
        return hold

    async def untouched(self) -> bool:
        """Whether nothing at all was written since it was taken."""
        if self._fd is None:
            return True
        if await self.sync() is not None:
            return False
        if self.file is not None and not self.file.is_unchanged(self._stamp):
            return False
        now = block.sectors_written(self._devno())
        return now is not None and now == self._written

    def _devno(self) -> Devno:
        return Devno.of(os.stat(self.device).st_rdev)

    async def sync(self) -> str | None:
        """Return when all is on the disk, or what has gone wrong with that."""
        try:
            for fd in (self._fd, self._base):
                if fd is not None:
                    await asyncio.to_thread(os.fsync, fd)
        except OSError as error:
            return error.strerror or type(error).__name__
        return None

    async def release(self, *, in_place: bool) -> str | None:
        """Let go. With `in_place` the image gets its name back; else where it was left.

        It is left there too while a tool that cannot be killed may go on writing to it, and where
        what was written does not reach the disk.
        """
        in_place = await self.sync() is None and in_place
        if self._fd is not None:
            os.close(self._fd)
            in_place = await _detached(self.device, self._base) and in_place
            self._fd = None
            in_place = await self.sync() is None and in_place
        os.close(self._base)
        if self._aside_path is None or self._target.image is None:
            return None
        if not in_place:
            return self._aside_path
        swap.rename(self._aside_path, self._target.image.path)
        return None


def _other_volume(base: int, target: Target) -> str | None:
    """None when what is open as `base` is the target's volume; otherwise why it may not be used."""
    if target.image is None:
        if target.identity is None:
            return "nothing is recorded that would tell the device from others"
        return target.identity.difference(base)
    status = os.fstat(base)
    if (Devno.of(status.st_dev), status.st_ino) != (target.image.devno, target.image.inode):
        return f"{target.image.path} is another file now"
    if loops := target.image.loops():
        return f"{target.image.path} is attached to {', '.join(loops)}"
    return None


def _other_device(target: Target) -> str | None:
    """The same while the VE still runs, so that it is not stopped for nothing. Raises OSError."""
    base = os.open(target.device or "", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _other_volume(base, target)
    finally:
        os.close(base)


async def _detached(device: str, base: int) -> bool:
    status = os.fstat(base)
    for _ in range(_DETACH_POLLS):
        if device not in loop.holders(Devno.of(status.st_dev), status.st_ino):
            return True
        await asyncio.sleep(0.01)
    return False


def _aside(image: ImageFile, incident_id: str) -> str:
    return f"{image.path}.under-repair-{incident_id}"


def _undo_file(context: ActionContext, target: Target) -> str:
    """A new name for the undo file, in the state directory: never on the volume itself.

    In a directory of its own, which is all that e2fsck may write beside the volume. One that is
    there already is of an earlier repair, which e2fsck does not add to.
    """
    directory = context.settings.state_dir / "undo" / context.incident.incident_id
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = os.path.basename(target.image.path if target.image else target.device or "volume")
    return swap.free_name(str(directory / f"{name}.e2undo"))
