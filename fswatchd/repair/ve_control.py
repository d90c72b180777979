"""Stop, kill and start one VE, and see for ourselves whether it happened.

The platform's command does it, its exit code is noted, and facts decide: the processes, the
superblock, the loop devices.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.errors import FswatchError
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.kernel import block, cgroup, fs, loop, mounts, proc
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, ActionSettings

_POLL_S = 0.003
_SLOW_POLL_S = 0.05
_AFTER_STOP_S = 1.0
_VOLUMES_TIMEOUT_S = 10.0


def tasks(ve: Ve) -> list[int]:
    """Every process of the VE that can be told: of its cgroup, and of its mount namespace."""
    found = dict.fromkeys(cgroup.pids(ve.cgroup) if ve.cgroup else ())
    found.update(dict.fromkeys(_in_namespace(ve)))
    if ve.init_pid is not None and proc.is_alive(ve.init_pid, ve.init_started):
        found[ve.init_pid] = None
    return list(found)


def _in_namespace(ve: Ve) -> list[int]:
    if ve.namespace is None:
        return []
    members = [pid for pid in proc.pids() if proc.mount_namespace_inode(pid) == ve.namespace]
    if ve.namespace_id is not None:
        wanted = (ve.namespace, ve.namespace_id)
        return [pid for pid in members if mounts.namespace_of(pid) == wanted]
    # Only the inode is known, which the next namespace gets as soon as this one has ended. It has
    # not while the init that it was read from is in it; asked after the listing, so that the
    # answer is about all of it.
    init = ve.init_pid
    sure = init is not None and proc.is_alive(init, ve.init_started) and init in members
    return members if sure and proc.mount_namespace_inode(init or 0) == ve.namespace else []


class WrongTargetError(FswatchError):
    """What would be killed is more than one VE."""


def can_tell_tasks(ve: Ve) -> bool:
    """Whether a kill reaches every process: not when the VE has neither cgroup nor namespace."""
    return ve.cgroup is not None or ve.namespace is not None


def send_kill(ve: Ve) -> None:
    """SIGKILL to every process of the VE; returns at once, also when they cannot die yet.

    Raises WrongTargetError, and kills nobody, where that would reach the node's own processes.
    """
    found = tasks(ve)
    if {1, os.getpid()} & set(found) or ve.namespace == proc.mount_namespace_inode("self"):
        raise WrongTargetError(
            f"{ve.ve_id} is not killed: processes of the node itself pass for its own",
            hint="see its cgroup, pid_file or init in ve.d",
        )
    _kill(found)
    if ve.cgroup:
        cgroup.kill(ve.cgroup)
    _kill(tasks(ve))  # what was forked meanwhile


def _kill(found: list[int]) -> None:
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def is_running(ve: Ve) -> bool:
    """Whether any process of the VE is alive."""
    return any(proc.is_alive(pid, None) for pid in tasks(ve))


async def dead_are_gone(ve: Ve, timeout_s: float) -> bool:
    """Wait for those of its processes that were killed already; False where they cannot die."""
    return await _wait_until(lambda: not any(map(proc.is_dying, tasks(ve))), timeout_s)


async def stop(ve: Ve, settings: ActionSettings) -> str:
    """Stop in the platform's way, kill when that takes too long; returns what happened.

    The stop command of a guest may only ask it to shut down (virsh(1)): it gets the whole time.
    """
    story = []
    patience_s = settings.stop_timeout_s if ve.guest else _AFTER_STOP_S
    if ve.commands.stop:
        ended = await _command(ve.commands.stop, settings.stop_timeout_s)
        story.append(ended)
    if not ve.commands.stop or await _wait_until(lambda: not is_running(ve), patience_s) is False:
        story.append(await kill(ve, settings))
    return "; ".join(story)


async def kill(ve: Ve, settings: ActionSettings) -> str:
    """Kill all processes and let the platform clean up after them; returns what happened."""
    await asyncio.to_thread(send_kill, ve)
    return await clean_up_after_kill(ve, settings)


async def clean_up_after_kill(ve: Ve, settings: ActionSettings) -> str:
    """Let the platform notice that its VE was killed."""
    command = ve.commands.kill or ve.commands.stop
    if not command:
        return "killed"
    ended = await _command(command, settings.kill_timeout_s)
    return f"killed; {ended}"


async def start(ve: Ve, settings: ActionSettings, image: Volume | None = None) -> str:
    """Run the platform's start command, unless the volume is still held; returns what happened.

    A start command takes a new loop device and mounts the image a second time, while an old
    superblock may still write to it: two writers that know nothing of each other. `image` must not
    be attached or mounted at all, and be what its name leads to, for nothing else was proven; no
    volume that the VE declares may be mounted from a loop device. Those of a VE that has just ended
    go one after the other: that is waited for.
    """
    if image is not None and image.is_displaced:
        return f"not started: {image.path} is another volume than the one that was to be started on"
    deadline = time.monotonic() + _VOLUMES_TIMEOUT_S
    while (holder := await asyncio.to_thread(_attached, ve, image)) is not None:
        if time.monotonic() > deadline:
            return f"not started: {holder}"
        await asyncio.sleep(_SLOW_POLL_S)
    return await _command(ve.commands.start, settings.start_timeout_s, unit="start")


async def wait_released(
    superblock: Superblock | None, image: Volume | None, timeout_s: float
) -> str | None:
    """Wait until nothing holds the superblock or the image; else say what still does.

    Gone means: the filesystem's directory in sysfs is gone, no loop device anywhere is attached
    to the image's inode, and for a device or logical volume the kernel grants an exclusive open.
    """
    deadline = time.monotonic() + timeout_s
    pause = _POLL_S
    while True:
        holder = await asyncio.to_thread(_holder, superblock, image)
        if holder is None or time.monotonic() > deadline:
            return holder
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, _SLOW_POLL_S)


async def wait_running(context: ActionContext, ve: Ve, timeout_s: float) -> Ve | None:
    """Wait until the VE runs again, as its platform lists it."""
    deadline = time.monotonic() + timeout_s
    while True:
        await context.inventory.refresh()
        now = context.inventory.view.ves.get(ve.ve_id)
        if now is not None and now.init_pid is not None and is_running(now):
            return now
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_POLL_S * 3)


def _attached(ve: Ve, image: Volume | None) -> str | None:
    if image is not None and (held := image.holder()) is not None:
        return held
    for volume in ve.volumes:
        if volume.image is None:
            continue
        try:
            found = os.stat(volume.image)
        except OSError:
            continue  # an image that is not there is for the start command to tell
        name = os.path.basename(os.path.realpath(volume.image))
        for device in loop.holders(Devno.of(found.st_dev), found.st_ino, name):
            if _may_be_claimed(device):
                return f"{volume.image} is still mounted from {device}"
    return None


def _may_be_claimed(device: str) -> bool:
    """One that cannot be asked may be mounted: what has just gone is not there at the next look."""
    try:
        return block.is_claimed(device)
    except OSError:
        return True


def _holder(superblock: Superblock | None, image: Volume | None) -> str | None:
    # With another DISKSEQ the device went with the VE, and its number is somebody else's.
    if superblock and block.disk_sequence(superblock.devno) == superblock.disk_sequence:
        # A btrfs has no number by which to tell that, and its device may be an ext4's by now.
        if superblock.devno.major != 0 and fs.has_superblock(superblock.device):
            return f"the filesystem on {superblock.device} is still mounted somewhere"
        if image is None and _is_claimed(f"/dev/{superblock.device}"):
            return f"/dev/{superblock.device} is still in use"
    return image.holder() if image is not None else None


def _is_claimed(device: str) -> bool:
    """A device that went with the VE (a volume that its stop has deactivated) holds nothing."""
    try:
        return block.is_claimed(device)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
            return False
        raise


async def _command(argv: tuple[str, ...], timeout_s: float, *, unit: str = "") -> str:
    try:
        ended = await process.run(argv, timeout_s=timeout_s, unit=unit)
    except process.ProcessError as error:
        return error.message
    return ended.describe()


async def _wait_until(question: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(question):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_SLOW_POLL_S)
    return True
