"""What decisions remember things by: the clocks of a node, and facts that survive a restart."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

NS = 1_000_000_000
DAY_S = 86400


@dataclass
class Clock:
    """CLOCK_BOOTTIME and CLOCK_REALTIME of the node; `now_s` is the scenario's own time."""

    now_s: float = 0.0
    booted_s: float = -100_000.0
    jumped_s: float = 0.0
    boots: int = 0
    local_s: int = 12 * 3600

    @property
    def boot(self) -> str:
        return f"boot{self.boots}"

    def boottime_ns(self) -> int:
        return round((self.now_s - self.booted_s) * NS)

    def wall_ns(self) -> int:
        return round((1_800_000_000 + self.now_s + self.jumped_s) * NS)

    def local(self) -> int:
        return int(self.local_s + self.now_s + self.jumped_s) % DAY_S


class Facts:
    """The store's facts, which survive a restart."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    async def facts(self, prefix: str) -> dict[str, Any]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def set_fact(self, key: str, value: Any, *, durable: bool = False) -> Any:
        if value is None:
            self.kept.pop(key, None)
        else:
            self.kept[key] = value
        return asyncio.sleep(0) if durable else None
