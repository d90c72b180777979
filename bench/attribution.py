"""From an error to its VE: this alone, with nothing stored and nobody told.

Of errors of all VEs in turn, half of them as fanotify tells of them (a device number), half as a
kernel line does (a device name). In processor time, so that what else the machine does counts less.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from bench.bench import summary
from fswatchd.engine.attribution import attribute
from fswatchd.events import EventClass, FsEvent, Severity
from fswatchd.inventory.inventory import Inventory
from fswatchd.kernel import block
from fswatchd.platforms import scope
from fswatchd.platforms.every import EveryPlatform


async def measure(directory: Path, devices: dict[str, str], rounds: int) -> dict[str, Any]:
    """Milliseconds for VEs that run, declared in the directory: `devices` are VE → its device.

    Raises AssertionError where one is attributed to anybody else.
    """
    inventory = Inventory(EveryPlatform([directory]).drivers, unclaimed=scope.describe)
    try:
        before, began = os.times(), time.monotonic()
        await inventory.refresh()
        after = os.times()
        look_s, look_cpu_s = time.monotonic() - began, after.user + after.system
        look_cpu_s -= before.user + before.system
        events = {name: _events(device) for name, device in devices.items()}
        first, took = 0.0, []
        for number in range(rounds):
            for name, both in events.items():
                event = both[number % 2]
                begin = time.thread_time()
                found = attribute(event, inventory.view)
                took.append(time.thread_time() - begin)
                assert found.ves == (f"declared:{name}",), (name, found)
        first, took = took[0], took[1:]
    finally:
        await inventory.close()
    return {
        **summary(took),
        "first": round(first * 1000, 3),
        "look_s": round(look_s, 2),
        "look_cpu_s": round(look_cpu_s, 2),
    }


def run(directory: Path, devices: dict[str, str], events: int = 10_000) -> dict[str, Any]:
    """The same for at least so many events."""
    return asyncio.run(measure(directory, devices, 2 * max(events // len(devices) // 2, 1)))


def _events(device: str) -> tuple[FsEvent, FsEvent]:
    def event(source: str, **where: Any) -> FsEvent:
        return FsEvent(
            source=source,
            klass=EventClass.CORRUPTION,
            severity=Severity.CRITICAL,
            confirms=source == "fanotify",
            time_ns=time.time_ns(),
            mono_ns=time.monotonic_ns(),
            detail="bench",
            fstype="ext4",
            **where,
        )

    return event("fanotify", devno=block.devno_of(device)), event("kmsg", device=device)
