"""Take one volume out of a VE that goes on running, and put it back.

Only by the commands that its declaration has for that (`detach` and `attach` of a volume in ve.d):
what uses the volume has to end first, and which services those are only its admin knows. What came
of a command the kernel is asked, as after the stop of a VE.
"""

from __future__ import annotations

from fswatchd import process
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.model import Volume as Declared
from fswatchd.repair import ve_control
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionSettings

_RELEASE_TIMEOUT_S = 30.0
_AFTER_FAILURE_S = 1.0


def of(ve: Ve, image: Volume) -> Declared | None:
    """The declaration of this volume, None where its VE has to be stopped for it."""
    return next((one for one in ve.volumes if one.detach and image.is_at(one.path)), None)


def named(ve: Ve, path: str) -> Declared | None:
    """The same by the path that stands there, whatever that leads to now."""
    return next((one for one in ve.volumes if one.attach and one.path == path), None)


async def detach(
    declared: Declared, superblock: Superblock | None, image: Volume, settings: ActionSettings
) -> tuple[str, str | None]:
    """Run its command; what happened, and what still holds the volume (None: nothing)."""
    try:
        ended = await process.run(declared.detach, timeout_s=settings.stop_timeout_s, unit="start")
    except process.ProcessError as error:
        return error.message, await ve_control.wait_released(superblock, image, 0)
    timeout_s = _RELEASE_TIMEOUT_S if ended.succeeded else _AFTER_FAILURE_S
    return ended.describe(), await ve_control.wait_released(superblock, image, timeout_s)


async def attach(declared: Declared, image: Volume, settings: ActionSettings) -> str:
    """Run its command, unless the volume is still held or is another one; what happened."""
    if image.is_displaced:
        return f"not attached: {image.path} is another volume than the one that was to be"
    if (holder := await ve_control.wait_released(None, image, _AFTER_FAILURE_S)) is not None:
        return f"not attached: {holder}"
    try:
        ended = await process.run(declared.attach, timeout_s=settings.start_timeout_s, unit="start")
    except process.ProcessError as error:
        return error.message
    return ended.describe()
