"""When so many VEs fail at once that a repair is not what helps. Pure.

Fifty filesystems that break within a minute have one cause: a disk, a controller, memory, a kernel.
Repairing them one after the other would stop fifty VEs, and perhaps write on what lies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fswatchd.incidents import Incident
from fswatchd.rules.model import Storm

NS = 1_000_000_000
# A share of a node with few VEs is no storm.
_SHARE_AT_LEAST = 3
_MOST = 0.8


def failing(settings: Storm, failed_ns: Mapping[str, int], now_ns: int) -> tuple[str, ...]:
    """The VEs that have failed within the window, from when each last did (CLOCK_BOOTTIME)."""
    since = now_ns - settings.window * NS
    return tuple(ve for ve, when in failed_ns.items() if when > since)


def breaks_out(settings: Storm, count: int, total: int) -> bool:
    """Whether so many failing VEs, of so many on the node, are a storm."""
    if settings.ves is not None and count > settings.ves:
        return True
    return (
        settings.share is not None
        and count >= _SHARE_AT_LEAST
        and count > settings.share * max(total, count)
    )


def over_after_s(settings: Storm, failed_ns: Mapping[str, int], now_ns: int) -> float | None:
    """Seconds until the storm ends by itself; None where an operator has to say so."""
    if settings.resume is None:
        return None
    last = max(failed_ns.values(), default=now_ns - int(settings.resume * NS))
    return max(settings.resume - (now_ns - last) / NS, 0.0)


def likely_cause(incidents: Sequence[Incident]) -> str:
    """What most of these faults have in common, in words: what they rest on, or else what they
    are."""
    count = len(incidents)
    wanted = max(2, _MOST * count)
    devices: Counter[str] = Counter()
    for incident in incidents:
        names = (str(layer["device"]) for layer in incident.stack[1:] if layer.get("device"))
        devices.update([*dict.fromkeys(names)])
    # Of what lies beneath all of them the nearest says most; disks come last in every stack.
    for name, number in devices.most_common(1):
        if number >= wanted:
            return f"{number} of {count} rest on {name}"
    for what, kinds in (
        ("are on", Counter(incident.filesystem.fstype or "" for incident in incidents)),
        ("report", Counter(incident.klass.value for incident in incidents)),
    ):
        for name, number in kinds.most_common(1):
            if name and number >= wanted:
                return f"{number} of {count} {what} {name}, and share no device that is known"
    return "they have nothing in common that is known"
