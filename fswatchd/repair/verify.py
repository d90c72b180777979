"""Prove that a repaired VE is well, by facts and not by exit codes."""

from __future__ import annotations

import asyncio
import errno
import os
import time

from fswatchd.helpers.client import HelperError
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.kernel import fs
from fswatchd.kernel.patience import Patience
from fswatchd.repair import ve_control
from fswatchd.repair.volume import Volume
from fswatchd.sources.state import StateSource
from fswatchd.steps import ActionContext

_PROBE_TIMEOUT_S = 10.0
_patience = Patience()
_LOOK_EVERY_S = 0.02
_FULL = {errno.ENOSPC, errno.EDQUOT}
_STOPPED = {"emergency_ro", "shutdown", "ro"}


async def find_mounted(
    context: ActionContext, ve: Ve, image: Volume, timeout_s: float
) -> tuple[Ve, Superblock] | str:
    """The running VE and its superblock on this very image; or what is missing."""
    deadline = time.monotonic() + timeout_s
    running = await ve_control.wait_running(context, ve, timeout_s)
    if running is None:
        return f"{ve.ve_id} did not come up within {timeout_s:.0f} s"
    while True:
        for superblock in context.inventory.view.superblocks_of(running.ve_id):
            if image.carries(superblock):
                return running, superblock
        if time.monotonic() > deadline:
            return f"{ve.ve_id} runs, but has not mounted {image.path}"
        await asyncio.sleep(_LOOK_EVERY_S)
        await context.inventory.refresh()


async def healthy(
    inventory: Inventory,
    state: StateSource,
    superblock: Superblock,
    *,
    may_be_full: bool = False,
) -> str | None:
    """None when options, error counter and a write prove health; otherwise what does not.

    One that `may_be_full` is well also where a write ends with no more than ENOSPC or EDQUOT: that
    is what a whole filesystem without room says.
    """
    options = inventory.current_options(superblock)
    if options is None:
        return f"{superblock.device} is not mounted"
    stopped = _STOPPED & set(options)
    if stopped:
        return f"the superblock has the option {', '.join(sorted(stopped))}"
    state.check(superblock.devno)
    errors = state.errors(superblock.devno)
    # Those of btrfs are of its device and its past; no repair and no new mount sets them back.
    if errors and superblock.fstype != "btrfs":
        return f"the filesystem has recorded {errors} errors"
    return await writable(inventory, superblock, may_be_full=may_be_full)


async def writable(
    inventory: Inventory, superblock: Superblock, *, may_be_full: bool = False
) -> str | None:
    """None when a write to it succeeds; otherwise what happens. `may_be_full` as above."""
    name = str(superblock.devno)
    try:
        async with inventory.opened(superblock) as mount:
            if _patience.hangs(name):
                return "an earlier write has not returned yet"
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)

            def write() -> None:
                try:
                    fs.write_probe(directory)
                finally:
                    os.close(directory)  # here: it may be in use for longer than anybody waits

            await _patience.answer(name, write, _PROBE_TIMEOUT_S)
    except TimeoutError:
        return f"a write did not return within {_PROBE_TIMEOUT_S:.0f} s"
    except (OSError, HelperError) as error:
        if may_be_full and getattr(error, "errno", None) in _FULL:
            return None
        return f"a write fails: {error}"
    return None
