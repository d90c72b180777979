"""Take one volume out of a VE that goes on running, and put it back.

Only by the commands that its declaration has for that (`detach` and `attach` of a volume in ve.d):
what uses the volume has to end first, and which services those are only its admin knows. Whether
it is out, or mounted, the kernel is asked; whether what uses it runs again only `attach` can tell.
`attach` is for the VE from which the volume was taken: one that was started since mounts it itself,
and nothing may be mounted twice.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.model import Volume as Declared
from fswatchd.repair import ve_control
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionSettings

_RELEASE_TIMEOUT_S = 30.0
_AFTER_FAILURE_S = 1.0


@dataclass(frozen=True, slots=True)
class Attached:
    """What has happened, and whether all that uses the volume can be taken to run again."""

    story: str
    succeeded: bool


def of(ve: Ve, image: Volume) -> Declared | None:
    """The declaration of this volume, None where its VE has to be stopped for it."""
    return next((one for one in ve.volumes if one.detach and leads_to(one, image)), None)


def named(ve: Ve, path: str | None) -> Declared | None:
    """The same by the path that stands there, whatever that leads to now."""
    return next((one for one in ve.volumes if one.attach and one.path == path), None)


def leads_to(declared: Declared, image: Volume) -> bool:
    """Whether what is declared is this volume, by whichever of its names."""
    if isinstance(image, LogicalVolume):
        with suppress(OSError):
            if Devno.of(os.stat(declared.path).st_rdev) == image.devno:
                return True
    return image.is_at(declared.path) or image.is_at(os.path.realpath(declared.path))


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


async def attach(declared: Declared, image: Volume, settings: ActionSettings) -> Attached:
    """Run its command, unless the volume is held or is another one: nothing is mounted twice."""
    if image.is_displaced:
        text = f"not attached: {image.path} is another volume than the one that was to be"
        return Attached(text, succeeded=False)
    if (holder := await asyncio.to_thread(image.held_by)) is not None:
        return Attached(f"not attached: {holder}", succeeded=False)
    try:
        ended = await process.run(declared.attach, timeout_s=settings.start_timeout_s, unit="start")
    except process.ProcessError as error:
        return Attached(error.message, succeeded=False)
    return Attached(ended.describe(), ended.succeeded)
