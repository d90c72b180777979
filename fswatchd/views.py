"""The JSON that users and their scripts get: one place where values become documents. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fswatchd import codes, summary
from fswatchd.cause import Cause
from fswatchd.devno import Devno
from fswatchd.events import Health, LostWrite, VeState, printable
from fswatchd.incidents import Filesystem, Incident, StepRecord, StepState
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    RemoteFilesystem,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.view import NodeView
from fswatchd.rules.model import RuleSet
from fswatchd.sources import SourceStatus
from fswatchd.store.store import StoredEvent
from fswatchd.units import show_size

NS = 1_000_000_000
# Of the documents that docs/events.md and data/schema/event.schema.json describe: grows when one of
# them changes in a way that a reader could stumble over.
EVENT_SCHEMA = 1
_SHOWN = 200  # of a path or name among others in one line
_VES_KEPT = 32  # in each of the incidents that one object is to blame for
_FILES_SHOWN = 20


def timestamp(time_ns: int | None) -> str | None:
    """RFC 3339 in UTC with microseconds; None stays None."""
    if time_ns is None:
        return None
    seconds, rest = divmod(time_ns, NS)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{rest // 1000:06d}Z"


def incident(found: Incident) -> dict[str, Any]:
    """One incident, as in `fswatch incident --json` and in notices."""
    return {
        "id": found.incident_id,
        "class": found.klass.value,
        "severity": found.severity.label,
        "confirmed": found.confirmed,
        "state": found.state.value,
        "waiting_for": found.waiting_for or None,
        "outcome": found.outcome.value if found.outcome else None,
        "node": found.node,
        "ves": list(found.ves),
        "ves_through_stack": list(found.through),
        "filesystem": filesystem(found.filesystem),
        "stack": list(found.stack),
        "stack_text": chain(found.stack) or None,
        "stack_lines": lines(found.stack, found.cause),
        "cause": found.cause,
        "part_of": found.part_of,
        "consequences": list(found.consequences),
        "lost": [_lost(file) for file in found.lost],
        "summary": summary.of(found),
        "sources": list(found.sources),
        "events": found.events,
        "errno": found.errno,
        "rule": found.rule,
        "guards": [
            {"guard": name, "passed": passed, "text": text, "code": codes.of_guard(name)}
            for name, passed, text in found.guards
        ],
        "preview": found.preview or None,
        "steps": [step(record) for record in found.steps],
        "attempts": found.attempts,
        "approved_by": found.approved_by,
        "denied_by": found.denied_by,
        "requested_by": found.requested_by,
        "acknowledged_by": found.acknowledged_by,
        "muted": muted(found),
        "opened": timestamp(found.opened_ns),
        "updated": timestamp(found.updated_ns),
        "closed": timestamp(found.closed_ns),
        "timeline_mono_ns": dict(found.timeline),
        "evidence": _evidence(found),
        "can_roll_back": found.undo is not None and "original" in found.undo,
    }


def _evidence(found: Incident) -> dict[str, Any] | None:
    if found.evidence is None:
        return None
    taken = found.evidence["taken_ns"]
    return {
        "bytes": found.evidence["bytes"],
        "taken": timestamp(taken if isinstance(taken, int) else None),
    }


def muted(found: Incident) -> dict[str, Any] | None:
    """Who wants to hear nothing of the incident, why, and until when."""
    if found.mute is None:
        return None
    return {
        "by": found.mute.by,
        "reason": found.mute.reason or None,
        "since": timestamp(found.mute.since_ns),
        "until": timestamp(found.mute.until_ns),
    }


def decided(found: Incident) -> dict[str, Any]:
    """What was decided about an incident, and all that other rules need to be asked about it."""
    moments = [s.started_ns for s in found.steps if s.started_ns], [s.ended_ns for s in found.steps]
    ended = [moment for moment in moments[1] if moment]
    took_s = (max(ended) - min(moments[0])) / NS if moments[0] and ended else None
    return {
        "incident": found.incident_id,
        "node": found.node,
        "filesystem": filesystem(found.filesystem),
        "cause": found.cause,
        "requested_by": found.requested_by,
        "approved_by": found.approved_by,
        "denied_by": found.denied_by,
        "closed": timestamp(found.closed_ns),
        "took_s": took_s,
        "failed": any(step.state is StepState.FAILED for step in found.steps),
        "ves": list(found.ves),
        "decided": found.decided,
    }


def rules(found: RuleSet) -> list[dict[str, Any]]:
    """Every rule in the order in which they are tried, in short."""
    origin = dict(found.origin)
    return [
        {
            "name": rule.name,
            "file": origin.get(rule.name),
            "mode": rule.mode,
            "approvers": rule.approvers,
            "continue": rule.carry_on,
            "description": rule.description or None,
            "steps": [step.do for step in rule.step],
        }
        for rule in found.rules
    ]


def step(record: StepRecord) -> dict[str, Any]:
    """One step of a plan."""
    return {
        "do": record.do,
        "state": record.state.value,
        "started": timestamp(record.started_ns),
        "ended": timestamp(record.ended_ns),
        "result": record.result or None,
        "detail": printable(record.detail, 4000) or None,
        "code": codes.of_step(record.result) if record.result else None,
        "progress": record.progress,
        "preview": record.journal.get("preview"),
    }


def filesystem(found: Filesystem) -> dict[str, Any]:
    """The filesystem of an incident."""
    return {
        "device": found.device,
        "devno": str(found.devno) if found.devno else None,
        "fstype": found.fstype,
        "uuid": found.uuid,
        "image": printable(found.image) if found.image else None,
        "mountpoints": [printable(point) for point in found.mountpoints],
        "server": printable(found.server) if found.server else None,
    }


def superblock(
    found: Superblock,
    health: Health,
    namespace: NamespaceKey | None = None,
    host: Callable[[Devno], Devno] = lambda devno: devno,
) -> dict[str, Any]:
    """A mounted filesystem in `status`, with its mount points as `namespace` sees them.

    Without a namespace, or where it is not mounted there, with all of them. `host` is
    `NodeView.host`.
    """
    inside = [place for place in found.mounts if place.namespace == namespace]
    return {
        "device": found.device,
        "devno": str(found.devno),
        "fstype": found.fstype,
        "uuid": found.uuid,
        "mountpoints": [
            printable(point)
            for point in dict.fromkeys(place.mount.point for place in inside or found.mounts)
        ][:16],
        "health": health.value,
        "backing": backing(found.backing, host),
    }


def stack(view: NodeView, found: Superblock, ve: VeId | None = None) -> list[dict[str, Any]]:
    """The layers from a filesystem down to the disks, nearest first, each once.

    The first is named by where the VE has it mounted.
    """
    layers: list[dict[str, Any]] = []
    for devno in (found.devno, *view.beneath(found.devno)):
        superblock = view.mounted(devno)
        if superblock is not None:
            layers.append(_filesystem_layer(view, superblock, ve if superblock is found else None))
        remote = view.remote.get(devno)
        if remote is not None:
            layers.append(_remote_layer(view, remote))
        device = view.devices.get(devno)
        if device is not None:
            layers.append(_device_layer(view, device))
    return layers


def chain(layers: Sequence[Mapping[str, Any]]) -> str:
    """The way from a filesystem to the disk: `/ is ext4 on loop1, image /a.raw, on xfs /vz …`."""
    return ", ".join(words for words, _ in _worded(layers))


def lines(
    layers: Sequence[Mapping[str, Any]], cause: Mapping[str, object] | None = None
) -> list[str]:
    """The same, one layer a line, with a mark at the one that is to blame."""
    blamed = "" if cause is None or "until" in cause else str(cause["object"])
    marked: list[str] = []
    for words, layer in _worded(layers):
        own = {f"/dev/{layer['device']}"} if layer["kind"] != "filesystem" else {words, words[3:]}
        mark = f"   <-- the cause: {cause['text']}" if cause and blamed in own else ""
        marked.append(f"{'  ' if marked else ''}{words}{mark}")
    return marked


def _worded(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    words: list[tuple[str, Mapping[str, Any]]] = []
    for layer in layers:
        if layer["kind"] == "filesystem":
            words.append((_filesystem_words(layer, first=not words), layer))
        elif layer["kind"] == "loop" or layer["image"]:
            where = layer["image"] or f"a file without a known name (inode {layer['inode']})"
            words.append((f"image {where}", layer))
        elif layer["on"]:
            label = f" {layer['label']}" if layer["label"] else ""
            on = ", ".join(layer["on"])
            words.append((f"{layer['kind']} {layer['device']}{label} of {on}", layer))
    return words


def _filesystem_words(layer: Mapping[str, Any], *, first: bool) -> str:
    devices = ", ".join(layer["on"]) or layer["device"]
    if first:
        return f"{layer['mountpoint']} is {layer['fstype']} on {devices}"
    return f"on {layer['fstype']} {layer['mountpoint']} ({devices})"


def _filesystem_layer(view: NodeView, found: Superblock, ve: VeId | None) -> dict[str, Any]:
    return {
        "kind": "filesystem",
        "device": found.device,
        "devno": str(found.devno),
        "fstype": found.fstype,
        "mountpoint": printable(_mount_point(view, found, ve), _SHOWN),
        "on": [view.devices[one].name for one in found.members if one in view.devices],
    }


def _remote_layer(view: NodeView, found: RemoteFilesystem) -> dict[str, Any]:
    source = printable(found.source, _SHOWN)
    return {
        "kind": "filesystem",
        "device": f"{source}, served by {found.served_by}" if found.served_by else source,
        "devno": str(found.devno),
        "fstype": printable(found.fstype, _SHOWN),
        "mountpoint": printable(_mount_point(view, found, None), _SHOWN),
        "on": [],
    }


def _device_layer(view: NodeView, found: BlockDevice) -> dict[str, Any]:
    image = found.backing.image
    return {
        "kind": found.kind,
        "device": found.name,
        "devno": str(found.devno),
        "label": printable(found.label, _SHOWN) or None,
        "image": printable(image, _SHOWN) if image else None,
        "inode": found.backing.image_inode,
        "on": [view.devices[one].name for one in found.lower if one in view.devices],
    }


def filesystem_name(view: NodeView, found: Superblock) -> str:
    """A filesystem in a few words: `xfs /vz (loop0)`."""
    point = printable(_mount_point(view, found, None), _SHOWN)
    return f"{found.fstype} {point} ({found.device})"


def _mount_point(view: NodeView, found: Superblock | RemoteFilesystem, ve: VeId | None) -> str:
    """Where the VE has it mounted, or the node, or whoever has; the whole of it, if anybody."""
    owner = view.ves.get(ve) if ve is not None else None
    wanted = owner.namespace if owner is not None else view.node_namespace

    def rank(place: NamespaceMount) -> tuple[bool, bool, int]:
        return (place.namespace != wanted, place.mount.root != "/", len(place.mount.point))

    return min(found.mounts, key=rank).mount.point


def cause(found: Cause, now_ns: int) -> dict[str, object]:
    """What is to blame, as an incident keeps and shows it."""
    return {
        "kind": found.kind,
        "object": printable(found.name),
        "since": timestamp(found.since_ns or now_ns),
        "text": printable(found.text),
        "incident": found.incident,
        "ves": list(found.ves[:_VES_KEPT]),
        "ve_count": len(found.ves),
    }


def lost(files: Sequence[LostWrite]) -> str:
    """The data that was lost, in words."""
    shown = "; ".join(_lost_words(file) for file in files[:_FILES_SHOWN])
    more = len(files) - _FILES_SHOWN
    return shown + (f"; and {more} more files" if more > 0 else "")


def _lost_words(file: LostWrite) -> str:
    words = f"{printable(file.path)} (inode {file.inode})" if file.path else f"inode {file.inode}"
    if file.size is not None:
        words += f", at most {show_size(file.size)}"
    elif file.blocks is not None:
        words += f", at most {file.blocks} blocks"
    if file.offset is not None:
        words += f", from byte {file.offset} on"
    return words


def _lost(file: LostWrite) -> dict[str, Any]:
    return {
        "inode": file.inode,
        "path": printable(file.path) if file.path else None,
        "offset": file.offset,
        "size": file.size,
        "blocks": file.blocks,
        "count": file.count,
    }


def backing(found: Backing, host: Callable[[Devno], Devno]) -> dict[str, Any]:
    """What a device rests on."""
    if found.kind != "loop" and found.image is None:
        return {"kind": found.kind}
    return {
        "kind": found.kind,
        "image": printable(found.image) if found.image else None,
        "on": str(host(found.image_devno)) if found.image_devno else None,
    }


def ve(
    found: Ve, state: VeState, filesystems: list[dict[str, Any]], incidents: list[str]
) -> dict[str, Any]:
    """A VE in `status`."""
    return {
        "id": found.ve_id,
        "platform": found.platform,
        "name": found.name,
        "state": state.value,
        "labels": dict(found.labels),
        "aliases": list(found.aliases),
        "busy": found.busy,
        "filesystems": filesystems,
        "guest_filesystems": [asdict(one) for one in found.guest_filesystems],
        "incidents": incidents,
    }


def source(status: SourceStatus) -> dict[str, Any]:
    """A source in `status`."""
    return {
        "name": status.name,
        "state": status.state.value,
        "events": status.events,
        "lost": status.lost,
        "detail": status.detail,
        "blind": [
            {"since": timestamp(since), "until": timestamp(until), "lost": count}
            for since, until, count in status.blind
        ],
        "proven": timestamp(status.proven_ns) if status.proven_ns else None,
        "demanded": status.demanded,
        "code": codes.of_source(status.state.value),
    }


def stored_event(stored: StoredEvent) -> dict[str, Any]:
    """One event, as in `fswatch events --json`."""
    event = stored.event
    return {
        "schema": EVENT_SCHEMA,
        "cursor": stored.cursor,
        "time": timestamp(event.time_ns),
        "stored": timestamp(stored.stored_ns or None),
        "source": event.source,
        "class": event.klass.value,
        "severity": event.severity.label,
        "confirms": event.confirms,
        "device": event.device,
        "devno": str(event.devno) if event.devno else None,
        "fstype": event.fstype,
        "errno": event.errno,
        "count": event.count,
        "ves": list(stored.ves),
        "incident": stored.incident_id,
        "detail": event.detail,
    }


def event_row(row: dict[str, Any], ves: list[str]) -> dict[str, Any]:
    """The same document from a row of the store."""
    return {
        "schema": EVENT_SCHEMA,
        "cursor": row["id"],
        "time": timestamp(row["time_ns"]),
        "stored": timestamp(row["stored_ns"]),
        "source": row["source"],
        "class": row["class"],
        "severity": row["severity"],
        "confirms": bool(row["confirms"]),
        "device": row["device"],
        "devno": row["devno"],
        "fstype": row["fstype"],
        "errno": row["errno"],
        "count": row["count"],
        "ves": ves,
        "incident": row["incident"],
        "detail": row["detail"],
    }


def gap(after: int, upto: int, count: int | None, reason: str) -> dict[str, Any]:
    """What a reader of events cannot have any more, in the place of these events."""
    return {
        "schema": EVENT_SCHEMA,
        "gap": {"from": after, "to": upto, "count": count, "reason": reason},
    }


def owners(view: NodeView, found: Superblock) -> list[str]:
    """Everybody who uses a filesystem, for people."""
    users = view.users[found.devno]
    return [*users.ves, *(printable(text) for text in users.foreign)]
