"""All sources together: made, started, handed every filesystem, stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fswatchd import views
from fswatchd.config import SourcesTable
from fswatchd.devno import Devno
from fswatchd.engine.hearing import Hearing
from fswatchd.engine.intake import Intake
from fswatchd.events import SourceState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.inventory.watch import InventoryWatch
from fswatchd.kernlog import grammar
from fswatchd.sources import Source, SourceStatus
from fswatchd.sources.fanotify import FanotifySource
from fswatchd.sources.journal import JournalSource
from fswatchd.sources.kmsg import KmsgSource
from fswatchd.sources.quota import QuotaSource
from fswatchd.sources.state import StateSource
from fswatchd.sources.uevent import UeventSource
from fswatchd.sources.vzevent import VzEventSource
from fswatchd.sources.xfs_health import XfsHealthSource
from fswatchd.store.memory import FactCursor, VolumeMemory
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_MARKS_EVERY_S = 4.0
_MARKS_AGAIN_S = 30.0


class Listening:
    """The sources of one daemon, and who minds them (`hearing`)."""

    def __init__(
        self,
        store: Store,
        intake: Intake,
        inventory: Inventory,
        watch: InventoryWatch,
        switches: SourcesTable,
        canary_s: float,
    ) -> None:
        self._inventory = inventory
        self._watch = watch
        self._switches = switches
        self._canary_s = canary_s
        self.memory = VolumeMemory(store)
        self._cursors = {name: FactCursor(store, name) for name in ("kmsg", "journal")}
        self.state = StateSource(intake, inventory, self.memory)
        self._fanotify = FanotifySource(intake, self._options_now)
        self._uevent = UeventSource(intake, self._superblock, watch.poke, self.state.check_soon)
        self._xfs_health = XfsHealthSource(intake)
        patterns = grammar.shipped()
        self._sources: Mapping[str, Source] = {
            "fanotify": self._fanotify,
            "kmsg": KmsgSource(intake, patterns, self._cursors["kmsg"]),
            "journal": JournalSource(
                intake,
                patterns,
                self._cursors["journal"],
                on_healer=self._xfs_health.healer_says,
            ),
            "uevent": self._uevent,
            "quota": QuotaSource(intake),
            "state": self.state,
            "vzevent": VzEventSource(intake, watch.poke),
            "xfs_health": self._xfs_health,
        }
        self.hearing = Hearing(self._sources, intake, canary_s, self._announce_all)
        intake.state = self.state
        intake.hearing = self.hearing

    async def load_stored(self) -> None:
        """Read what an earlier run has remembered."""
        await self.memory.load_stored()
        for cursor in self._cursors.values():
            await cursor.load_stored()

    async def start(self) -> None:
        """Start those that are wanted, and have every filesystem handed to them."""
        self._inventory.subscribe(on_superblock=self._appeared, on_vanished=self._vanished)
        for name, source in self._sources.items():
            switch = getattr(self._switches, name)
            if switch is False:
                source.status.detail = "switched off in fswatchd.toml"
                continue
            source.status.demanded = switch is True
            await source.start()
            status = source.status
            if status.demanded and status.state is not SourceState.OK:
                log.error("source %s is demanded and %s: %s", name, status.state, status.detail)

    async def stop(self) -> None:
        """Stop all."""
        for source in self._sources.values():
            await source.stop()

    async def keep_marked(self) -> None:
        """A filesystem that was unmounted and mounted between two looks has lost its mark.

        Looks do not always show that: before Linux 6.12 the new mount may have the id of the old.
        """
        changes = self._watch.changes()
        again_s = _MARKS_EVERY_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await changes.get()
            lost, again_s = self.state.lost(), _MARKS_EVERY_S
            try:
                lost |= self._fanotify.unmarked()
            except OSError as error:
                log.error("which filesystems have lost their mark cannot be read: %s", error)
                again_s = _MARKS_AGAIN_S
            found = (self._superblock(devno) for devno in sorted(lost))
            await self._announce([superblock for superblock in found if superblock is not None])

    def statuses(self) -> list[SourceStatus]:
        """What each says of itself."""
        return [source.status for source in self._sources.values()]

    def document(self) -> dict[str, Any]:
        """The sources' part of `fswatch status`."""
        return {
            "sources": [views.source(status) for status in self.statuses()],
            "canary": {"every": self._canary_s, "problem": self.hearing.problem},
            "unreached": self._inventory.unreached(),
        }

    def _superblock(self, devno: Devno) -> Superblock | None:
        return self._inventory.view.superblock_on(devno)

    def _options_now(self, devno: Devno) -> tuple[str, ...]:
        found = self._superblock(devno)
        return (self._inventory.current_options(found) or ()) if found else ()

    def _appeared(self, superblock: Superblock, fd: int) -> None:
        self._fanotify.watch(superblock, fd)
        self.state.watch(superblock)
        self._uevent.watch(superblock)
        self._xfs_health.watch(superblock, fd)

    def _vanished(self, superblock: Superblock) -> None:
        self._fanotify.forget(superblock)
        self.state.forget(superblock)
        self._uevent.forget(superblock)
        self._xfs_health.forget(superblock)

    async def _announce_all(self) -> None:
        await self._announce(list(self._inventory.view.superblocks.values()))

    async def _announce(self, superblocks: Sequence[Superblock]) -> None:
        reached = [await self._inventory.announce(superblock) for superblock in superblocks]
        if not all(reached):
            self._watch.poke()  # refreshes try again those that nobody listens to now
