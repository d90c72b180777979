"""Whether a base stays what its children were made of: time and size of every backing file.

A base that is written changes what its children read, and no filesystem says so. What is seen is a
sign only, so nothing is ever done on the word of it (`base_digests` reads them). Not here: lower
layers of overlays, which are directories, and origins that are devices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

from fswatchd.engine.attribution import Attribution
from fswatchd.events import EventClass, FsEvent, printable, usual_severity
from fswatchd.incidents import Filesystem
from fswatchd.inventory.bases import children_of_image
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import ImageKey, VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernel.patience import Patience
from fswatchd.sources.probes import Memory

log = logging.getLogger(__name__)

_EVERY_S = 5.0
_ANSWER_S = 3.0
# Somebody runs on the base: one event a minute says so as well as one a look.
_AGAIN_S = 60.0
_NAMED = 3

Seen = list[int]  # inode, mtime in nanoseconds, size


class BaseWatch:
    """Looks at the backing files that the inventory knows; remembers them across restarts."""

    def __init__(
        self,
        inventory: Inventory,
        memory: Memory,
        report: Callable[[FsEvent, Attribution], None],
    ) -> None:
        self._inventory = inventory
        self._memory = memory
        self._report = report
        self._quiet_until: dict[str, float] = {}
        self._patience = Patience()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Compare every base with what was remembered of it."""
        view = self._inventory.view
        wanted = {base: view.image_paths[base] for base in view.image_bases.values()}
        if not wanted:
            return
        try:
            found = await asyncio.to_thread(
                self._patience.ask, "bases", lambda: _stat(wanted), _ANSWER_S
            )
        except TimeoutError:
            log.warning("the bases of images do not answer: not compared")
            return
        for base, now in found.items():
            name = f"base:{wanted[base]}"
            before = self._memory.load(name)
            if before == now or time.monotonic() < self._quiet_until.get(name, 0.0):
                continue
            self._memory.save(name, now)
            if before is not None:
                self._quiet_until[name] = time.monotonic() + _AGAIN_S
                path = wanted[base]
                what = _what(path, before, now)
                # A sign only: its time may have been set with nothing written.
                sign = event_about(view, base, path, EventClass.CORRUPTION, what, confirms=False)
                self._report(*sign)


def event_about(
    view: NodeView, base: ImageKey, path: str, klass: EventClass, what: str, *, confirms: bool
) -> tuple[FsEvent, Attribution]:
    """An event about a base, which concerns every VE that has an image on it. Pure but for times.

    `what` says it, and the children are named after it.
    """
    children = children_of_image(view, base)
    more = f" and {len(children) - _NAMED} others" if len(children) > _NAMED else ""
    ves = dict.fromkeys(
        owner for image, owner in view.image_owners.items() if base in view.chain(image)
    )
    event = FsEvent(
        source="state",
        klass=klass,
        severity=usual_severity(klass),
        confirms=confirms,
        time_ns=time.time_ns(),
        mono_ns=time.monotonic_ns(),
        detail=printable(f"{what} under {', '.join(children[:_NAMED])}{more}"),
    )
    filesystem = Filesystem(
        devno=None, device=None, fstype=None, image=path, image_inode=(str(base[0]), base[1])
    )
    return event, Attribution(filesystem=filesystem, ves=tuple(map(VeId, ves)))


def _what(path: str, before: Seen, now: Seen) -> str:
    what = "replaced" if before[0] != now[0] else "resized" if before[2] != now[2] else "written"
    return f"the base {path} was {what}"


def _stat(wanted: dict[ImageKey, str]) -> dict[ImageKey, Seen]:
    found: dict[ImageKey, Seen] = {}
    for base, path in wanted.items():
        with suppress(OSError):
            status = os.stat(path)
            found[base] = [status.st_ino, status.st_mtime_ns, status.st_size]
    return found
