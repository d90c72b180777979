"""The way back to a snapshot of the volume: for damage that nothing repairs, or not safely (btrfs).

What takes the volume's place is a clone of the snapshot that was checked and is clean, so that the
snapshot can be used again. What the VE has written since is in the volume that is put aside.
"""

from __future__ import annotations

import asyncio
import glob
import os
import stat
import time
from contextlib import suppress

from fswatchd.errors import RefusedError
from fswatchd.incidents import Incident
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import magic
from fswatchd.repair import clone, owner, progress, put_back, scope, storage
from fswatchd.repair.journal import read_file, read_stamp
from fswatchd.repair.put_back import Goal
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionContext, Next, StepResult, refuse
from fswatchd.units import show_duration

_KIND = "restore"
_NO_SNAPSHOT = "FSW-REFUSED-NO-SNAPSHOT"


def check(incident: Incident, path: str, *, discard_newer: bool) -> None:
    """Raise RefusedError where the volume cannot or should not go back to the snapshot at `path`.

    Asks the disk.
    """
    if (why := _unfit(incident, path) or _is_elsewhere(incident)) is not None:
        raise RefusedError(f"not rolled back: {why}", code=_NO_SNAPSHOT)
    if not discard_newer:
        age_s = max(time.time() - os.stat(path).st_mtime, 0.0)
        names = ", ".join(incident.ves)
        raise RefusedError(
            f"{path} is {show_duration(age_s)} old: what {names} has written since would be lost",
            hint="to go back all the same: --discard-newer (the volume of now is kept beside it)",
            code="FSW-REFUSED-NEWER-DATA",
        )


def offer(incident: Incident) -> str:
    """How to go back to the newest snapshot of the volume, for a person; empty without one."""
    image = incident.filesystem.image
    if image is None:
        return ""
    found = glob.glob(f"{glob.escape(image)}.snapshot-*")
    fit = [path for path in found if _unfit(incident, path) is None]
    if not fit:
        return ""
    newest = max(fit, key=lambda path: os.stat(path).st_mtime)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(os.stat(newest).st_mtime))
    first = "" if os.path.exists(image) else f"once the volume is {image} again, "
    return (
        f"; {first}a snapshot of {made} can take its place: "
        f"fswatch rollback {incident.incident_id} --to {newest}"
    )


def _unfit(incident: Incident, path: str) -> str | None:
    """Why this is no snapshot of the incident's volume."""
    image = incident.filesystem.image
    if not path.startswith("/"):
        return f"{path} is not an absolute path"
    if image is None:
        return f"the filesystem of {incident.incident_id} is in no image file"
    try:
        real = os.path.realpath(path)
        found = os.lstat(real)
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is not a regular file"
        if os.path.dirname(real) != os.path.dirname(os.path.realpath(image)):
            return f"{path} is not in the directory of {image}: copy it there first"
        if os.path.exists(image) and os.path.samefile(real, image):
            return f"{path} is the volume itself"
        wanted, there = _uuid(incident), _uuid_in(real)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror}"
    if wanted is None:
        return f"the UUID of the filesystem in {image} is not known: nothing tells whose copy it is"
    if there != wanted:
        what = f"the filesystem {there}" if there else "no filesystem that is known"
        return f"{path} holds {what}, not the filesystem {wanted} of {image}"
    return None


def _is_elsewhere(incident: Incident) -> str | None:
    """Why it could not take the place of what the incident is about: a repair in place has left
    that aside, or something else has its name by now."""
    known, image = incident.filesystem.uuid, incident.filesystem.image
    if image is None:
        return None
    if os.path.lexists(image):
        there = _uuid_in(image)
        if None in {known, there} or there == known:
            return None  # what cannot be read is damaged, and no other
        return f"{image} holds the filesystem {there} now, not {known}: it was made anew"
    aside = f"{image}.under-repair-{incident.incident_id}"
    what = (
        f"rename {aside} to it first, and start nothing" if os.path.lexists(aside) else "it is gone"
    )
    return f"{image} is not there: {what}"


def _uuid(incident: Incident) -> str | None:
    """As the kernel has told it, else as it stands in the image."""
    known, image = incident.filesystem.uuid, incident.filesystem.image
    return known or (_uuid_in(image) if image is not None else None)


def _uuid_in(path: str) -> str | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return magic.uuid_of(fd)
    finally:
        os.close(fd)


async def run(context: ActionContext) -> StepResult:
    """Clone and check the snapshot, stop the VE, exchange, start it. Raises StepEnded."""
    path = str(context.record.options["to"])
    made = await _made_before(context)
    if made is None:
        made = await _make(context, path)
    try:
        return await put_back.run(context, _goal(context, path, made))
    except Exception:
        # What is at its name after the exchange is the volume: that is another file.
        clone.discard(made)
        raise


def _goal(context: ActionContext, path: str, made: ImageFile) -> Goal:
    journal = context.record.journal
    image = read_file(journal["image"])
    if image is None:
        raise refuse("internal", "the journal does not say what is replaced", Next.OPERATOR)
    return Goal(
        ve=str(journal["ve"]),
        image=image.path,
        there=image,
        beside=made.path,
        volume=made,
        aside=f"{image.path}.damaged-{context.incident.incident_id}",
        name=f"what {path} holds",
        name_of_other="the volume of before",
        proven=True,
    )


async def _made_before(context: ActionContext) -> ImageFile | None:
    """The clone that an earlier run has proven, if it is still what that has left."""
    journal = context.record.journal
    made, image = read_file(journal.get("clone")), read_file(journal.get("image"))
    if image is not None:
        kept = journal.get("kept")
        names = (made.path if made else None, str(kept) if kept else None)
        await owner.wait_seen(context, image, *names)
    if made is None or image is None:
        if isinstance(begun := journal.get("cloning"), str):
            clone.discard_unfinished(begun)
        return None
    made = made.today(made.path, image.path)
    if made.is_at(image.path) or made.is_unchanged(read_stamp(journal.get("proven"))):
        return made
    if not journal.get("stopping"):
        clone.discard(made)
        return None
    text = f"the clone of the snapshot is not what it was; {journal['ve']} was stopped for it"
    raise refuse("stale", text, Next.OPERATOR)


async def _make(context: ActionContext, path: str) -> ImageFile:
    """A clone of the snapshot beside the volume, proven clean. Raises StepEnded, OSError."""
    if (why := _unfit(context.incident, path)) is not None:
        raise refuse("refused", why, Next.OPERATOR)
    target = await _resolve(context)
    image, source = scope.require_image(target), scope.image_file(path)
    lies_in = storage.of(source, context.settings)
    name = await lies_in.free_name(clone.clone_path(image, context.incident.incident_id, _KIND))
    begun = {"image": image.describe(), "ve": target.ve.ve_id, "cloning": name, "clone": None}
    # What an earlier run was about to exchange was the clone that it had made.
    await context.journal(**begun, repaired=None, original=None, kept=None)
    try:
        made = await lies_in.make(
            name, lambda: progress.begin(context, f"copying {os.path.basename(path)}")
        )
    except OSError as error:
        raise refuse("cannot clone", f"no clone can be made: {error}", Next.OPERATOR) from None
    if not isinstance(made, ImageFile):
        raise TypeError(f"not an image file: {made}")
    try:
        clone.dress(made, like=image)
        await storage.while_there_is_room(_prove(context, target, made), lies_in)
        await lies_in.sync(made)
        await context.journal(clone=made.describe(), proven=made.stamp())
    except BaseException:
        with suppress(OSError):
            clone.discard(made)
        raise
    return made


async def _prove(context: ActionContext, target: Target, made: ImageFile) -> None:
    """Raises StepEnded unless it is clean, as it was when the snapshot was made."""
    tools, timeout_s = scope.tools_for(target.filesystem), context.settings.tool_timeout_s
    context.progress(None, "replaying the journal of the snapshot's clone")
    found = await tools.replay(made.path, timeout_s)
    if found.usable:
        begun = progress.begin(context, "checking the snapshot's clone")
        found = await tools.check(made.path, timeout_s, begun)
    if not found.clean:
        text = f"the snapshot is damaged as well ({found.summary()}); nothing was changed"
        raise refuse("not curable", text, Next.OPERATOR)


async def _resolve(context: ActionContext) -> Target:
    """The volume, mounted as whatever device it is now, or of a VE that is stopped."""
    await context.inventory.refresh()
    incident = context.incident
    if (why := await asyncio.to_thread(_is_elsewhere, incident)) is not None:
        raise refuse("refused", why, Next.OPERATOR)
    if (mounted := _mounted(context, incident.filesystem.image)) is not None:
        users = context.inventory.view.users[mounted.devno].ves
        if not set(users) <= set(incident.direct_ves):
            text = f"{incident.filesystem.image} is used by {', '.join(users)} now"
            raise refuse("refused", f"{text}; nothing is stopped", Next.OPERATOR)
        context.filesystem_is_now(mounted)
    return await scope.resolve(context, unmounted=True)


def _mounted(context: ActionContext, image: str | None) -> Superblock | None:
    try:
        file = ImageFile.at(os.path.realpath(image)) if image is not None else None
    except OSError:
        return None
    found = context.inventory.view.superblocks.values()
    return next((one for one in found if file is not None and file.carries(one)), None)
