"""Whether the daemon trusts itself. Where it does not, it observes (`PolicyState.distrust`).

A daemon that cannot read what it has kept, whose clocks or whose node are not those that it
remembers, that cannot read who has mounted what, or that is deaf, knows less than it thinks. What
is wrong is a `Doubt`. One that `heals` ends by itself when what it is about was read again and
found in order; another one ends when a person has looked (`fswatch arm --node`). Who arms while a
source is still deaf has decided that: it is doubted again when the source has heard something and
goes deaf once more.

Not here: finding out what is wrong (`engine.selfcheck`, `engine.hearing`, `inventory`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fswatchd import views
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_KEY = "doubt:"
SOURCE = "source "
_MOUNTS = "mounts"

# Called with "lost" or "regained", and what is told.
Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something that is wrong with the daemon itself: `what` it is about (`store`, `clock`,
    `identity`, `mounts`, `source NAME`), since when (CLOCK_REALTIME), and who has accepted it."""

    what: str
    text: str
    since_ns: int
    heals: bool
    accepted_by: str | None = None

    def document(self) -> dict[str, Any]:
        """In `status` and in notices."""
        ends = "by fswatch arm --node"
        if self.heals:
            ends = f"when it was read again and found in order, or {ends}"
        return {
            "what": self.what,
            "text": self.text,
            "since": views.timestamp(self.since_ns),
            "ends": ends,
        }


class Trust:
    """See the module. `load` before use; `on_change` is called when decisions may be others."""

    def __init__(self, store: Store, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._doubts: dict[str, Doubt] = {}
        self.on_change: Callable[[], None] = lambda: None

    async def load(self) -> None:
        """Take up what an earlier run of the daemon has doubted."""
        for key, value in (await self._store.facts(_KEY)).items():
            what = key.removeprefix(_KEY)
            self._doubts.setdefault(what, Doubt(what=what, **value))

    def doubts(self) -> tuple[Doubt, ...]:
        """Those that nobody has accepted, the oldest first."""
        open_ = (doubt for doubt in self._doubts.values() if doubt.accepted_by is None)
        return tuple(sorted(open_, key=lambda doubt: doubt.since_ns))

    @property
    def why(self) -> str:
        """Why the daemon does not trust itself; empty where it does."""
        return "; ".join(doubt.text for doubt in self.doubts())

    def has(self, what: str) -> bool:
        """Whether there is such a doubt, accepted or not."""
        return what in self._doubts

    def doubted_sources(self) -> set[str]:
        """The sources that were deaf when last heard of."""
        return {w.removeprefix(SOURCE) for w in self._doubts if w.startswith(SOURCE)}

    def doubt(self, what: str, text: str, *, heals: bool) -> None:
        """Something is wrong; the same once more is no news."""
        if what in self._doubts:
            return
        found = Doubt(what=what, text=text, since_ns=time.time_ns(), heals=heals)
        self._keep(found)
        log.critical("the daemon does not trust itself and only observes: %s", text)
        self._tell("lost", {**found.document(), "doubts": self._documents()})
        self.on_change()

    def settle(self, what: str, how: str) -> None:
        """What was wrong is in order again."""
        found = self._doubts.pop(what, None)
        if found is None:
            return
        self._store.set_fact(f"{_KEY}{what}", None)
        log.warning("%s: %s", found.text, how)
        self._told(found, how)

    def keep(self) -> None:
        """Write again what could not be written."""
        for doubt in self._doubts.values():
            self._keep(doubt)

    def follow_sources(self, deaf: Mapping[str, str]) -> None:
        """Exactly these sources do not hear, and why; see `Hearing.on_deaf`."""
        for name, detail in deaf.items():
            self.doubt(f"{SOURCE}{name}", f"{name} does not hear: {detail}", heals=True)
        for name in self.doubted_sources() - deaf.keys():
            self.settle(f"{SOURCE}{name}", "it hears again")

    def follow_mounts(self, wrong: str) -> None:
        """What is wrong with the last look at the node, empty where nothing is; see
        `Inventory.on_refreshed`."""
        if wrong:
            text = f"the mounts of this node cannot be read: {wrong}"
            self.doubt(_MOUNTS, text, heals=True)
        else:
            self.settle(_MOUNTS, "they were read again")

    def accept(self, by: str) -> list[str]:
        """A person has looked, and wants the daemon to go on; returns what was doubted."""
        accepted = self.doubts()
        for found in accepted:
            if found.what.startswith(SOURCE):
                self._keep(Doubt(**{**asdict(found), "accepted_by": by}))
            else:
                del self._doubts[found.what]
                self._store.set_fact(f"{_KEY}{found.what}", None)
            log.warning("%s: %s trusts the daemon all the same", found.text, by)
            self._told(found, f"accepted by {by}")
        return [found.text for found in accepted]

    def _documents(self) -> list[dict[str, Any]]:
        return [doubt.document() for doubt in self.doubts()]

    def document(self) -> list[dict[str, Any]]:
        """In `status`."""
        return self._documents()

    def _keep(self, doubt: Doubt) -> None:
        self._doubts[doubt.what] = doubt
        value = asdict(doubt)
        del value["what"]
        self._store.set_fact(f"{_KEY}{doubt.what}", value)

    def _told(self, doubt: Doubt, how: str) -> None:
        if doubt.accepted_by is None and not self.doubts():
            self._tell("regained", {**doubt.document(), "how": how, "doubts": []})
        self.on_change()
