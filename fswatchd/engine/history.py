"""What decisions remember across restarts: disarms, when rules last acted on which volume and how
often that failed, when it was repaired, when a repair of a VE last began, and when it failed.

Times are CLOCK_BOOTTIME, which no clock change touches; beside each the boot id and the wall clock
are kept, so that after a reboot the time that passed is estimated instead of forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fswatchd.events import printable
from fswatchd.kernel import proc
from fswatchd.situation import Disarm, Labelled
from fswatchd.store.store import Store

# What clocks may differ by from one boot to the next without it being worth a word.
_AHEAD_S = 60.0
_NS = 1_000_000_000
_REPAIRS_KEPT = 8
_FAILED_KEPT = 4096


def boottime_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class NodeClock:
    """The clocks of this node, in nanoseconds, and which boot it is."""

    def __init__(self) -> None:
        self.boot = proc.boot_id()

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        return boottime_ns()

    def wall_ns(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns()


@dataclass(frozen=True, slots=True)
class Ahead:
    """Something that was remembered lies so far in the future; `same_boot` says that it was
    remembered since the node was booted."""

    by_s: float
    same_boot: bool


class History:
    """See the module. `load` before use; `ahead` is set where a moment that was remembered has not
    come yet: then a clock is not what it was."""

    def __init__(self, store: Store, clock: NodeClock | None = None) -> None:
        self._store = store
        self._clock = clock or NodeClock()
        self.last_action_ns: dict[tuple[str, str], int] = {}
        self.failures: dict[tuple[str, str], int] = {}
        self.repaired_ns: dict[str, tuple[int, ...]] = {}
        self.begun_ns: dict[str, int] = {}
        self.failed_ns: dict[str, int] = {}
        self.disarms: dict[str, Disarm] = {}
        self.ahead: Ahead | None = None

    async def load(self) -> None:
        """Read what is remembered."""
        self.ahead = None
        for key, value in (await self._store.facts("action:")).items():
            rule, _, volume = key.removeprefix("action:").partition("\n")
            self.last_action_ns[rule, volume] = self._past(value)
            self.failures[rule, volume] = int(value.get("failures", 0))
        for key, value in (await self._store.facts("repaired:")).items():
            times = tuple(self._past(stamp) for stamp in value)
            self.repaired_ns[key.removeprefix("repaired:")] = times
        for key, value in (await self._store.facts("begun:")).items():
            self.begun_ns[key.removeprefix("begun:")] = self._past(value)
        for key, value in (await self._store.facts("failed:")).items():
            self.failed_ns[key.removeprefix("failed:")] = self._past(value)
        for key, value in (await self._store.facts("disarm:")).items():
            target = key.removeprefix("disarm:")
            until = value.get("until")
            self.disarms[target] = Disarm(
                target=target,
                reason=value["reason"],
                by=value["by"],
                until_ns=self.here(until) if until else None,
                since_ns=int(value.get("since_ns", 0)),
            )

    def keep(self) -> None:
        """Write again what could not be written."""
        for key, moment in self.last_action_ns.items():
            value = {**self.stamp(moment), "failures": self.failures.get(key, 0)}
            self._store.set_fact(f"action:{key[0]}\n{key[1]}", value)
        for volume, times in self.repaired_ns.items():
            self._store.set_fact(f"repaired:{volume}", [self.stamp(one) for one in times])
        for prefix, moments in (("begun", self.begun_ns), ("failed", self.failed_ns)):
            for ve, moment in moments.items():
                self._store.set_fact(f"{prefix}:{ve}", self.stamp(moment))
        for disarm in self.disarms.values():
            self._store.set_fact(f"disarm:{disarm.target}", self._kept(disarm))

    def forget_future(self) -> None:
        """What lies in the future is taken for now, which is the most careful reading."""
        now = self._clock.boottime_ns()
        last, repaired = self.last_action_ns, self.repaired_ns
        last.update({key: min(moment, now) for key, moment in last.items()})
        repaired.update({v: tuple(min(one, now) for one in times) for v, times in repaired.items()})
        for moments in (self.begun_ns, self.failed_ns):
            moments.update({ve: min(moment, now) for ve, moment in moments.items()})
        self.keep()

    def begun(self, ve: str) -> None:
        """A repair of the VE begins now."""
        self.begun_ns[ve] = self._clock.boottime_ns()
        self._store.set_fact(f"begun:{ve}", self.stamp(self.begun_ns[ve]))

    def failed(self, ve: str) -> None:
        """A filesystem of the VE has failed now, by itself as far as is known."""
        self.failed_ns.pop(ve, None)
        self.failed_ns[ve] = self._clock.boottime_ns()
        self._store.set_fact(f"failed:{ve}", self.stamp(self.failed_ns[ve]))
        if len(self.failed_ns) > _FAILED_KEPT:
            self.forget_failures(next(iter(self.failed_ns)))

    def forget_failures(self, *ves: str) -> None:
        """The failures of these VEs are settled."""
        for ve in ves:
            if self.failed_ns.pop(ve, None) is not None:
                self._store.set_fact(f"failed:{ve}", None)

    def acted(self, rule: str, volume: str, *, failed: bool = False) -> None:
        """A plan of `rule` on `volume` has ended now."""
        now, key = self._clock.boottime_ns(), (rule, volume)
        self.last_action_ns[key] = now
        self.failures[key] = self.failures.get(key, 0) + 1 if failed else 0
        value = {**self.stamp(now), "failures": self.failures[key]}
        self._store.set_fact(f"action:{rule}\n{volume}", value)

    def repaired(self, volume: str) -> None:
        """A plan that has changed `volume` has ended now, well or not."""
        times = (*self.repaired_ns.get(volume, ()), self._clock.boottime_ns())[-_REPAIRS_KEPT:]
        self.repaired_ns[volume] = times
        self._store.set_fact(f"repaired:{volume}", [self.stamp(one) for one in times])

    async def disarm(self, disarm: Disarm) -> None:
        """Nobody acts on the target any more; returns when that is on the disk."""
        self.disarms[disarm.target] = disarm
        await self._store.set_fact(f"disarm:{disarm.target}", self._kept(disarm), durable=True)

    async def arm(self, target: str) -> bool:
        """Act again; False when it was not disarmed."""
        known = self.disarms.pop(target, None) is not None
        await self._store.set_fact(f"disarm:{target}", None, durable=True)
        return known

    def current_disarms(self) -> tuple[Disarm, ...]:
        """All that hold now; those that have run out are forgotten."""
        now = self._clock.boottime_ns()
        for target in [t for t, d in self.disarms.items() if d.until_ns and d.until_ns <= now]:
            del self.disarms[target]
            self._store.set_fact(f"disarm:{target}", None)
        return tuple(self.disarms.values())

    def disarm_of(self, ves: Collection[Labelled]) -> Disarm | None:
        """The first disarm of one of the VEs, of a label of theirs, or of the node."""
        return next((one for one in self.current_disarms() if one.holds(ves)), None)

    def why_disarmed(self, ves: Collection[Labelled]) -> str | None:
        """Who has disarmed one of these, and why; None when nobody has."""
        found = self.disarm_of(ves)
        if found is None:
            return None
        return printable(f"{found.target} was disarmed by {found.by}: {found.reason}")

    def wall_ns(self, moment_ns: int | None) -> int | None:
        """A moment of CLOCK_BOOTTIME by the wall clock as it is set now."""
        if moment_ns is None:
            return None
        return self._clock.wall_ns() + moment_ns - self._clock.boottime_ns()

    def _kept(self, disarm: Disarm) -> dict[str, Any]:
        until = None if disarm.until_ns is None else self.stamp(disarm.until_ns)
        told = {"reason": disarm.reason, "by": disarm.by, "since_ns": disarm.since_ns}
        return {**told, "until": until}

    def _past(self, stamp: Mapping[str, Any]) -> int:
        moment = self.here(stamp)
        by_s = (moment - self._clock.boottime_ns()) / _NS
        if by_s > max(_AHEAD_S, self.ahead.by_s if self.ahead else 0.0):
            self.ahead = Ahead(by_s, stamp["boot"] == self._clock.boot)
        return moment

    def stamp(self, moment_ns: int) -> dict[str, Any]:
        """A moment of CLOCK_BOOTTIME in a form that can be kept over a reboot."""
        wall_ns = self.wall_ns(moment_ns)
        return {"boot": self._clock.boot, "boottime_ns": moment_ns, "wall_ns": wall_ns}

    def here(self, stamp: Mapping[str, Any]) -> int:
        """The moment (CLOCK_BOOTTIME of this boot) that `stamp` was made of."""
        if stamp["boot"] == self._clock.boot:
            return int(stamp["boottime_ns"])
        return self._clock.boottime_ns() - (self._clock.wall_ns() - int(stamp["wall_ns"]))
