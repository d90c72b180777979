"""Exchange an image with its repaired clone, and back: one atomic rename, then a fsync.

At every moment the image's name leads to a whole filesystem: the one from before, or the proven
one. What the name leads to is told by inode, so an interrupted exchange is recognised afterwards.
"""

from __future__ import annotations

import os

from fswatchd.kernel.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from fswatchd.repair.logical_volume import Stamp
from fswatchd.repair.volume import ImageFile, Volume

_NAMES_TRIED = 1000
_GOING_S = 3.0


class SwapError(Exception):
    """The exchange was not made, and nothing was changed."""


class StaleError(SwapError):
    """It was not made because the volume was written to since the clone was."""


class HalfSwappedError(Exception):
    """Names were changed, and not as they should be: who has which is in the text.

    Nothing is deleted then, and nothing is started: that is for a person to put right.
    """


def exchange(image: ImageFile, clone: ImageFile, stamp: Stamp | None = None) -> None:
    """Give the clone the image's name, and the image the clone's.

    With the `stamp` of the image that was cloned it has to have that still: whoever uses it for a
    moment, and is waited for, may have written to it.

    Raises StaleError then. Raises SwapError when either is not the file it should be, when anything
    anywhere has one of them open for writing or attached (it would go on writing to a file that has
    lost its name), or when the filesystem cannot exchange names. Blocks while what uses them is on
    its way out.
    """
    if image.directory != clone.directory:
        raise SwapError(f"{clone.path} is not in the directory of {image.path}")
    directory = os.open(image.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for file in (image, clone):
            if not file.is_at(file.path):
                raise SwapError(f"{file.path} is another file now")
            if holder := file.held_by(_GOING_S):
                raise SwapError(holder)
        if stamp is not None and not image.is_unchanged(stamp):
            raise StaleError(f"{image.path} was written to since it was cloned")
        try:
            renameat2(directory, image.name, clone.name, RENAME_EXCHANGE)
        except OSError as error:
            raise SwapError(f"cannot exchange names: {error}") from None
        os.fsync(directory)
    finally:
        os.close(directory)


def is_exchanged(image: ImageFile, clone: ImageFile) -> bool:
    """Whether the image's name already leads to the clone."""
    return clone.is_at(image.path)


def rename(old: str, new: str) -> None:
    """Rename within one directory without ever replacing a file; raises SwapError."""
    directory = os.path.dirname(old)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        renameat2(fd, os.path.basename(old), os.path.basename(new), RENAME_NOREPLACE)
        os.fsync(fd)
    except OSError as error:
        raise SwapError(f"cannot rename {old} to {new}: {error.strerror}") from None
    finally:
        os.close(fd)


def damaged_path(volume: Volume, incident_id: str) -> str:
    """Where the damaged original is kept, where that name is free: an incident may have several."""
    return f"{volume.path}.damaged-{incident_id}"


def free_name(path: str) -> str:
    """`path`, with a number behind it where something has that name already."""
    names = (path, *(f"{path}-{number}" for number in range(2, _NAMES_TRIED)))
    return next((name for name in names if not os.path.lexists(name)), path)
