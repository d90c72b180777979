"""An incident in a few sentences, for whoever is woken by it. Pure.

What is broken, what is to blame, who else suffers, what happens next and what to do. The facts are
in `fswatch why`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fswatchd.events import Domain, EventClass, names_filesystem, printable
from fswatchd.incidents import Incident, Outcome, State
from fswatchd.units import show_duration

_NAMES_SHOWN = 8

_BROKEN = {
    EventClass.DEVICE_LOST: "has lost the device beneath it",
    EventClass.IO_ERROR: "gets I/O errors from the device beneath it",
    EventClass.CORRUPTION: "is damaged",
    EventClass.DATA_LOSS: "has lost data of files",
    EventClass.SHUTDOWN: "is shut down: nothing on it can be read or written",
    EventClass.READONLY: "can be read, and not written",
    EventClass.MOUNT_FAILURE: "cannot be mounted",
    EventClass.DEGRADED: "has lost its redundancy",
    EventClass.SPACE: "has no room left",
    EventClass.QUOTA: "has reached a quota",
    EventClass.NOT_RESPONDING: "does not get an answer from its server",
}
# Of a device that only other things rest on: nothing is beneath it that could be at fault.
_BROKEN_DEVICE = _BROKEN | {
    EventClass.DEVICE_LOST: "is gone, or does not run",
    EventClass.IO_ERROR: "cannot be read or written as a whole",
}
_REMEDY = {
    "space": "Make room there",
    "device": "See to that device",
    "filesystem": "See to that filesystem",
}
_ENDED = {
    Outcome.REPAIRED: "It was repaired.",
    Outcome.RECOVERED: "It is well again without a repair.",
    Outcome.FALSE_ALARM: "It was a false alarm.",
    Outcome.DISMISSED: "It was closed without a repair.",
}


def of(found: Incident) -> str:
    """The sentences, on one line."""
    return printable(" ".join(sentences(found)), 4000)


def sentences(found: Incident) -> list[str]:
    """The sentences, in the order in which they matter."""
    return [_what(found), *_whom(found), *_to_blame(found), *_lost(found), *_next(found)]


def _what(found: Incident) -> str:
    if found.domain is Domain.STORM:
        return _storm(found)
    filesystem = found.filesystem
    bare = filesystem.device is not None and not names_filesystem(filesystem.fstype)
    what = (_BROKEN_DEVICE if bare else _BROKEN).get(found.klass, "has a fault")
    layer = found.stack[0] if found.stack else {}
    point = layer.get("mountpoint") if layer.get("kind") == "filesystem" else None
    device = f"/dev/{filesystem.device}" if filesystem.device else filesystem.image or "a volume"
    thing = f"{point} ({filesystem.fstype} on {device})" if point else device
    if found.requested_by and not found.events:
        whose = f" of {names(found.direct_ves)}" if found.direct_ves else ""
        wanted = f"{found.requested_by} asked for a repair of {thing}{whose}"
        return f"{wanted}; no source has heard an error of it."
    if found.direct_ves:
        verb = "" if found.confirmed else ", as far as log lines tell,"
        return f"{thing} of {names(found.direct_ves)}{verb} {what}."
    return f"{thing} of this node {what}."


def _storm(found: Incident) -> str:
    if found.state is State.CLOSED:
        failed = _count(len(found.ves), "VE", "VEs")
        return f"{failed} had failed at once ({names(found.ves)}): nothing was repaired meanwhile."
    failed = _count(len(found.ves), "VE has", "VEs have")
    return f"{failed} failed at once ({names(found.ves)}): nothing is repaired until it ends."


def _whom(found: Incident) -> list[str]:
    if not found.through or found.domain is Domain.STORM:
        return []
    said = [f"{_count(len(found.through), 'VE rests', 'VEs rest')} on it: {names(found.through)}."]
    if found.consequences:
        broken = _count(len(found.consequences), "incident", "incidents")
        said.append(f"So far {broken} came of it.")
    return said


def _to_blame(found: Incident) -> list[str]:
    cause = found.cause
    if cause is None:
        return []
    if found.cause_is_over:
        return [f"The cause was {cause['object']}, which is well again."]
    said = [f"The cause is {cause['object']} beneath it: {cause['text']}."]
    others = others_of(cause, found)
    if others:
        said.append(f"{others} too.")
    if found.state in {State.OPEN, State.WAITING}:
        remedy = _REMEDY.get(str(cause["kind"]), "See to that")
        where = f" (incident {cause['incident']})" if cause.get("incident") else ""
        said.append(
            f"{remedy}{where}; until then nothing is done here, and then it goes on by itself."
        )
    return said


def others_of(cause: Mapping[str, Any], found: Incident) -> str:
    """Who else suffers from a cause: `It concerns 19 other VEs (ve102, …)`."""
    others = [ve for ve in cause.get("ves") or () if ve not in found.direct_ves]
    own = sum(ve in found.direct_ves for ve in cause.get("ves") or ())
    count = int(cause.get("ve_count") or 0) - own
    if count <= 0:
        return ""
    return f"It concerns {_count(count, 'other VE', 'other VEs')} ({names(tuple(others), count)})"


def _lost(found: Incident) -> list[str]:
    if not found.lost:
        return []
    count = _count(len(found.lost), "file", "files")
    return [f"Data of {count} was lost and cannot be brought back: fswatch why names the inodes."]


def _next(found: Incident) -> list[str]:
    if found.state is State.CLOSED and found.outcome is not None:
        return [_ENDED[found.outcome]]
    if found.domain is Domain.STORM:
        # It is handed to an operator where only he ends it; else the rules say after which time.
        alone = found.state is not State.NEEDS_OPERATOR
        or_alone = ", or by itself where resume of [storm] is a time" if alone else ""
        return [f"It ends with fswatch ack {found.incident_id}{or_alone}."]
    if found.state is State.NEEDS_OPERATOR:
        return ["It needs you: fswatch why says what was tried."]
    if found.state is State.WAITING and found.waiting_for == "approval":
        said = [f"It waits for you: fswatch approve {found.incident_id}."]
        if found.preview:
            pause = show_duration(float(str(found.preview["seconds"])))
            would = f"A repair would do: {found.preview['would_do']}"
            said.append(f"{would}; writers would wait about {pause}.")
        return said
    if found.state is State.ACTING:
        return ["It is being repaired."]
    if found.state is State.VERIFYING:
        return ["It was repaired, and is watched whether it stays well."]
    return []


def names(ves: tuple[str, ...], count: int | None = None) -> str:
    """Some names, and how many more."""
    count = len(ves) if count is None else count
    more = count - len(ves[:_NAMES_SHOWN])
    return ", ".join(ves[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
