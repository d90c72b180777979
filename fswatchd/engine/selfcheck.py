"""Finds out what is wrong with what the daemon has kept, and when that is in order again.

* `store`: the database cannot be written or read, does not answer, or its file was removed or
  replaced. It is in order when all open incidents were written and read back as they are, and
  SQLite finds no fault in it (PRAGMA quick_check).
* `records`: a database, or some of what was in it, could not be read at the start and was set
  aside. What it said of repairs, disarms and cool-downs is lost: a person has to look.
* `clock`: what is remembered lies in the future. After a reboot that is a node whose clock was not
  set yet, and ends when it is; within one boot the clock has gone back (a virtual machine that was
  taken back to a snapshot), and a person has to look.
* `identity`: what is kept was written on another machine (machine-id(5)).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from fswatchd.book import IncidentBook
from fswatchd.engine.history import History
from fswatchd.engine.trust import Trust
from fswatchd.store.store import Store, StoreError
from fswatchd.units import show_duration

log = logging.getLogger(__name__)

MACHINE_ID = Path("/etc/machine-id")

_MACHINE = "machine"
_LOOK_EVERY_S = 30.0
_PAUSE_S = (1.0, 60.0)


class SelfCheck:
    """See the module. `begin` after the store was opened, before anything acts."""

    def __init__(
        self,
        store: Store,
        book: IncidentBook,
        history: History,
        trust: Trust,
        machine_id: Path = MACHINE_ID,
    ) -> None:
        self._store = store
        self._book = book
        self._history = history
        self._trust = trust
        self._machine_id = machine_id
        self._wake = asyncio.Event()
        self._pause_s = _PAUSE_S[0]
        store.on_trouble = self._trouble

    async def begin(self) -> None:
        """Look at what was read."""
        if self._store.set_aside is not None:
            text = f"the database could not be read and was set aside as {self._store.set_aside}"
            self._trust.doubt("records", text, heals=False)
        if self._store.unreadable:
            some = ", ".join(self._store.unreadable[:5])
            count = len(self._store.unreadable)
            text = f"{count} entries of the database could not be read ({some})"
            self._trust.doubt("records", text, heals=False)
        self._look_at_clock()
        await self._look_at_machine()

    async def run(self) -> None:
        """For ever: look now and then, and soon again where something is wrong."""
        while True:
            pause_s = self._pause_s if self._is_healing() else _LOOK_EVERY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            self._wake.clear()
            await self.look()

    async def look(self) -> None:
        """Once."""
        if not self._is_healing():
            self._pause_s = _PAUSE_S[0]
            wrong = await self._asked_store()
            if wrong is not None:
                self._trust.doubt("store", wrong, heals=True)
            return
        self._pause_s = min(self._pause_s * 2, _PAUSE_S[1])
        if self._trust.has("store"):
            wrong = await self._asked_store() or await self._reread()
            if wrong is None:
                self._trust.settle("store", "what is kept was written and read again, all of it")
        if self._trust.has("clock") and self._history.ahead is not None:
            with suppress(StoreError):
                await self._history.load()
            if self._history.ahead is None:
                self._trust.settle("clock", "the clock was set, nothing lies in the future now")

    def _is_healing(self) -> bool:
        waits_for_clock = self._history.ahead is not None and not self._history.ahead.same_boot
        return self._trust.has("store") or (self._trust.has("clock") and waits_for_clock)

    def _trouble(self, text: str) -> None:
        if not self._trust.has("store"):
            self._trust.doubt("store", text, heals=True)
            self._wake.set()

    async def _asked_store(self) -> str | None:
        try:
            return await self._store.displaced()
        except StoreError as error:
            return str(error.message)

    async def _reread(self) -> str | None:
        self._book.flush()
        self._history.keep()
        self._trust.keep()
        try:
            return await self._store.reread(self._book.open_incidents())
        except StoreError as error:
            return str(error.message)

    def _look_at_clock(self) -> None:
        ahead = self._history.ahead
        if ahead is None:
            return
        left = show_duration(ahead.by_s)
        if ahead.same_boot:
            text = f"the clock of this boot has gone back by {left} or more"
            self._history.forget_future()
        else:
            text = f"the node's clock is {left} or more behind what was remembered before its boot"
        self._trust.doubt("clock", text, heals=not ahead.same_boot)

    async def _look_at_machine(self) -> None:
        try:
            here = (await asyncio.to_thread(self._machine_id.read_text, encoding="ascii")).strip()
        except (OSError, UnicodeDecodeError):
            return  # a node without one cannot be told from another
        kept = (await self._store.facts(_MACHINE)).get(_MACHINE)
        if here and kept is not None and kept != here:
            text = f"what is kept in state_dir was written on another machine ({kept})"
            self._trust.doubt("identity", text, heals=False)
        if here and kept != here:
            self._store.set_fact(_MACHINE, here)
