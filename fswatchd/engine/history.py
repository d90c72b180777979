"""What decisions remember across restarts: disarms, and when rules last acted on which volume.

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


def boottime_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class History:
    """See the module. `load` before use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._boot = proc.boot_id()
        self.last_action_ns: dict[tuple[str, str], int] = {}
        self.disarms: dict[str, Disarm] = {}

    async def load(self) -> None:
        """Read what is remembered."""
        for key, value in (await self._store.facts("action:")).items():
            rule, _, volume = key.removeprefix("action:").partition("\n")
            self.last_action_ns[rule, volume] = self.here(value)
        for key, value in (await self._store.facts("disarm:")).items():
            target = key.removeprefix("disarm:")
            until = value.get("until")
            self.disarms[target] = Disarm(
                target=target,
                reason=value["reason"],
                by=value["by"],
                until_ns=self.here(until) if until else None,
            )

    def acted(self, rule: str, volume: str) -> None:
        """A plan of `rule` on `volume` has ended now."""
        now = boottime_ns()
        self.last_action_ns[rule, volume] = now
        self._store.set_fact(f"action:{rule}\n{volume}", self.stamp(now))

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
        now = boottime_ns()
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
        wall_ns = time.time_ns() + moment_ns - boottime_ns()
        return {"boot": self._boot, "boottime_ns": moment_ns, "wall_ns": wall_ns}

    def here(self, stamp: Mapping[str, Any]) -> int:
        """The moment (CLOCK_BOOTTIME of this boot) that `stamp` was made of."""
        if stamp["boot"] == self._boot:
            return int(stamp["boottime_ns"])
        return boottime_ns() - (time.time_ns() - int(stamp["wall_ns"]))
