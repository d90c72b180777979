"""What decisions remember across restarts: disarms, when rules last acted on which volume and how
often that failed, when it was repaired, when a repair of a VE last began, and when it failed.

Times are CLOCK_BOOTTIME, which no clock change touches; beside each the boot id and the wall clock
are kept, so that after a reboot the time that passed is estimated instead of forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from fswatchd.kernel import proc
from fswatchd.situation import Disarm
from fswatchd.store import Store

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


class History:
    """See the module. `load` before use."""

    def __init__(self, store: Store, clock: NodeClock | None = None) -> None:
        self._store = store
        self._clock = clock or NodeClock()
        self.last_action_ns: dict[tuple[str, str], int] = {}
        self.failures: dict[tuple[str, str], int] = {}
        self.repaired_ns: dict[str, tuple[int, ...]] = {}
        self.begun_ns: dict[str, int] = {}
        self.failed_ns: dict[str, int] = {}
        self.disarms: dict[str, Disarm] = {}

    async def load(self) -> None:
        """Read what is remembered."""
        for key, value in (await self._store.facts("action:")).items():
            rule, _, volume = key.removeprefix("action:").partition("\n")
            self.last_action_ns[rule, volume] = self.here(value)
            self.failures[rule, volume] = int(value.get("failures", 0))
        for key, value in (await self._store.facts("repaired:")).items():
            times = tuple(self.here(stamp) for stamp in value)
            self.repaired_ns[key.removeprefix("repaired:")] = times
        for key, value in (await self._store.facts("begun:")).items():
            self.begun_ns[key.removeprefix("begun:")] = self.here(value)
        for key, value in (await self._store.facts("failed:")).items():
            self.failed_ns[key.removeprefix("failed:")] = self.here(value)
        for key, value in (await self._store.facts("disarm:")).items():
            target = key.removeprefix("disarm:")
            until = value.get("until")
            self.disarms[target] = Disarm(
                target=target,
                reason=value["reason"],
                by=value["by"],
                until_ns=self.here(until) if until else None,
            )

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
        until = None if disarm.until_ns is None else self.stamp(disarm.until_ns)
        value = {"reason": disarm.reason, "by": disarm.by, "until": until}
        await self._store.set_fact(f"disarm:{disarm.target}", value, durable=True)

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

    def why_disarmed(self, ves: Iterable[str]) -> str | None:
        """Who has disarmed one of the VEs or the node, and why; None when nobody has."""
        wanted = {"node", *ves}
        for disarm in self.current_disarms():
            if disarm.target in wanted:
                return f"{disarm.target} was disarmed by {disarm.by}: {disarm.reason}"
        return None

    def stamp(self, moment_ns: int) -> dict[str, Any]:
        """A moment of CLOCK_BOOTTIME in a form that can be kept over a reboot."""
        wall_ns = self.wall_ns(moment_ns)
        return {"boot": self._clock.boot, "boottime_ns": moment_ns, "wall_ns": wall_ns}

    def wall_ns(self, moment_ns: int) -> int:
        """What the wall clock shows at a moment of CLOCK_BOOTTIME, as it goes now."""
        return self._clock.wall_ns() + moment_ns - self._clock.boottime_ns()

    def here(self, stamp: Mapping[str, Any]) -> int:
        """The moment (CLOCK_BOOTTIME of this boot) that `stamp` was made of."""
        if stamp["boot"] == self._clock.boot:
            return int(stamp["boottime_ns"])
        return self._clock.boottime_ns() - (self._clock.wall_ns() - int(stamp["wall_ns"]))
