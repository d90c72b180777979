"""`fswatch why`: an incident told in words, from what was recorded when it happened. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fswatchd import codes, guards, summary, views
from fswatchd.events import (
    CONSEQUENCES,
    Domain,
    names_filesystem,
    printable,
    witnesses,
)
from fswatchd.incidents import Filesystem, Incident, StepRecord
from fswatchd.rules.model import Budget
from fswatchd.units import show_duration

_NS = 1_000_000_000
_LINE = 4000
_VES_SHOWN = 20
_FILES_SHOWN = 20
CONSEQUENCES_SHOWN = 20
_UNSAID = "what was not on the disk when the kernel stopped writing; it does not say of which files"


def why(
    incident: Incident,
    consequences: Sequence[Incident] = (),
    budget: tuple[Budget, int] | None = None,
) -> str:
    """The whole story: in short, evidence, identity, rule, guards, decision, steps.

    `consequences` are the first of those that `incident` names, `budget` is that of its rule, with
    how many repairs run now.
    """
    lines = [
        *_head(incident),
        *_lost(incident),
        *_came_of_it(incident, consequences),
        "",
        *_evidence(incident),
        "",
        *_decision(incident),
        *([_budget(*budget)] if budget and incident.guards else []),
        *_steps(incident),
        "",
        "What happened:",
        *(f"  {views.timestamp(when)}  {text}" for when, text in incident.log),
    ]
    # Paths and names in it may be a tenant's choice, and this is shown on terminals.
    return "\n".join(printable(line, _LINE) for line in lines)


def _head(incident: Incident) -> list[str]:
    state = incident.state.value
    if incident.outcome:
        state += f", {incident.outcome.value}"
    if incident.waiting_for:
        state += f" for {incident.waiting_for}"
    if incident.domain is Domain.STORM:
        sentences = (f"  {sentence}" for sentence in summary.sentences(incident))
        return [f"Incident {incident.incident_id}: a storm, {state}", "", *sentences]
    filesystem = incident.filesystem
    where = filesystem.device or filesystem.image or filesystem.server or "an unknown device"
    what = f"{incident.klass.value} ({incident.severity.label})"
    lines = [
        f"Incident {incident.incident_id}: {what}, {state}",
        "",
        *(f"  {sentence}" for sentence in summary.sentences(incident)),
        "",
        f"  VE          {', '.join(incident.direct_ves) or 'none: it belongs to no VE'}",
        (
            f"  Filesystem  {filesystem.fstype or 'unknown'} on {where}"
            if names_filesystem(filesystem.fstype) or filesystem.devno is None
            else f"  Device      {where}"
        )
        + (f" ({filesystem.devno})" if filesystem.devno else ""),
    ]
    if filesystem.image:
        lines.append(f"  Image       {filesystem.image}")
    if proof := _identity(filesystem):
        lines.append(f"  Identity    {proof}")
    if incident.stack:
        lines.append(f"  Stack       {views.chain(incident.stack)}")
    if incident.through:
        lines.append(f"  Concerned   {_concerned(incident)}")
    if (mute := views.muted(incident)) is not None:
        why_muted = f": {mute['reason']}" if mute["reason"] else ""
        lines.append(f"  Muted       by {mute['by']} until {mute['until']}{why_muted}")
    if incident.cause:
        lines.append(f"  Cause       {cause(incident.cause)}")
        if others := summary.others_of(incident.cause, incident):
            lines.append(f"              {others}")
        if incident.cause.get("incident"):
            link = "is about that" if incident.part_of else "was about that"
            lines.append(f"              incident {incident.cause['incident']} {link}")
    return lines


def _identity(filesystem: Filesystem) -> str:
    """What says that it is the same filesystem, and not another one of the same name."""
    parts = []
    if filesystem.disk_sequence is not None:
        of = " in an earlier boot" if filesystem.boot is not None else ""
        parts.append(f"attachment {filesystem.disk_sequence} of {filesystem.devno} (DISKSEQ){of}")
    if filesystem.uuid:
        parts.append(f"UUID {filesystem.uuid}")
    if filesystem.image_inode:
        devno, inode = filesystem.image_inode
        parts.append(f"image inode {inode} on {devno}")
    return ", ".join(parts)


def _lost(incident: Incident) -> list[str]:
    """Which files have lost data: as far as the kernel has said."""
    if not incident.lost:
        if incident.cause and incident.klass in CONSEQUENCES:
            return [f"  Lost        {_UNSAID}"]
        return []
    whose = f" of {', '.join(incident.direct_ves)}" if incident.direct_ves else ""
    lines = [f"  Lost        data of files{whose}, as far as the kernel says:"]
    lines += [f"              {views.lost([file])}" for file in incident.lost[:_FILES_SHOWN]]
    if (more := len(incident.lost) - _FILES_SHOWN) > 0:
        lines.append(f"              and {more} more")
    if (incident.filesystem.fstype or "").startswith("ext"):
        device = incident.filesystem.device
        lines.append(f"              debugfs -R 'ncheck INODE' /dev/{device} tells a file's name")
    else:
        lines.append(
            "              find MOUNTPOINT -xdev -inum INODE, in the VE, tells a file's name"
        )
    return lines


def _came_of_it(incident: Incident, shown: Sequence[Incident]) -> list[str]:
    if not incident.consequences:
        return []
    lines = [f"  Came of it  {len(incident.consequences)} incidents:"]
    for one in shown:
        whose = ", ".join(one.direct_ves) or one.filesystem.device or "unknown"
        state = one.state.value + (f", {one.outcome.value}" if one.outcome else "")
        if one.lost:
            state += f", data of {len(one.lost)} file{'s' if len(one.lost) > 1 else ''} lost"
        lines.append(f"              {one.incident_id}  {whose}: {one.klass.value}, {state}")
    if (more := len(incident.consequences) - len(shown)) > 0:
        lines.append(f"              and {more} more")
    return lines


def cause(found: Mapping[str, Any]) -> str:
    """What is to blame, in words."""
    over = f", until {found['until']}" if "until" in found else ""
    return f"{found['object']}: {found['text']} (since {found['since']}{over})"


def _concerned(incident: Incident) -> str:
    shown = ", ".join(incident.through[:_VES_SHOWN])
    more = len(incident.through) - _VES_SHOWN
    more_words = f" and {more} more" if more > 0 else ""
    return f"{len(incident.through)} VEs through what rests on it: {shown}{more_words}"


def _evidence(incident: Incident) -> list[str]:
    if incident.domain is Domain.STORM:
        return ["Evidence: that of the incidents above."]
    count = len(witnesses(incident.sources))
    told = "one witness" if count == 1 else f"{count} independent witnesses"
    proof = (
        "a fact of the kernel's state confirms it"
        if incident.confirmed
        else "nothing but log lines says so"
    )
    counts = ", ".join(f"{source} {number}" for source, number in incident.counts.items())
    return [
        f"Evidence: {told} ({', '.join(incident.sources)}); {proof}.",
        *([f"  errors seen: {counts}"] if counts else []),
    ]


def _decision(incident: Incident) -> list[str]:
    if not incident.guards:
        return ["Nothing has been decided yet."]
    lines = [f"Decision by rule {incident.rule}:" if incident.rule else "Decision:"]
    for guard, passed, text in incident.guards:
        mark, code = ("yes", "") if passed else ("NO ", f" [{codes.of_guard(guard)}]")
        lines.append(f"  {mark} {guard:<10} {text}{code}")
    answered = [guard for guard, _, _ in incident.guards]
    if not incident.guards[-1][1] and len(answered) > 1 and (left := guards.not_asked(answered)):
        lines.append(f"      not asked after that: {', '.join(left)}")
    return lines


def _budget(allowed: Budget, running: int) -> str:
    """Also where the asking ended before the guard of that name: it is what comes next."""
    limits = [f"{allowed.node} on the node", f"{allowed.device} on a device"]
    if allowed.filesystem is not None:
        limits.append(f"{allowed.filesystem} on a filesystem with images")
    limits += [f"{count} with the same label {key}" for key, count in allowed.label.items()]
    now = f"{running or 'none'} run{'s' if running == 1 else ''} now"
    return f"      its budget is {', '.join(limits)}; {now}"


def _steps(incident: Incident) -> list[str]:
    if not incident.steps:
        return []
    return ["", "Steps:", *(_step(record) for record in incident.steps)]


def _step(record: StepRecord) -> str:
    took = ""
    if record.started_ns and record.ended_ns:
        took = f" in {show_duration((record.ended_ns - record.started_ns) / _NS)}"
    result = f": {record.result}" if record.result else ""
    detail = f" ({record.detail})" if record.detail else ""
    return f"  {record.do:<9} {record.state.value}{took}{result}{detail}"
