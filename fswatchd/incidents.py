"""Incidents: what a fault is made of, and how events join it. Pure values.

One open incident exists per filesystem and domain (damage, space, quota, remote): the same fault
heard by several sources, and a second fault on the same filesystem, are one incident. Its class
and severity follow from the set of its events, not from their order. A storm is about no
filesystem.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from fswatchd.devno import Devno
from fswatchd.events import (
    CONSEQUENCES,
    DEVICE_CLASSES,
    Domain,
    EventClass,
    FsEvent,
    LostWrite,
    Severity,
    is_of_device,
    worst_class,
)
from fswatchd.units import parse_timestamp

RECENT_LIMIT = 512
RECENT_MERGE_NS = 1_000_000_000
LOG_LIMIT = 200
LOST_LIMIT = 256


class State(enum.StrEnum):
    """Where an incident is in its life."""

    OPEN = "open"
    WAITING = "waiting"
    ACTING = "acting"
    VERIFYING = "verifying"
    CLOSED = "closed"
    NEEDS_OPERATOR = "needs-operator"


UNDECIDED = frozenset({State.OPEN, State.WAITING})
_BY_A_PLAN = frozenset({"contained", "repaired", "verified"})


class Outcome(enum.StrEnum):
    """How an incident ended."""

    REPAIRED = "repaired"
    RECOVERED = "recovered"
    FALSE_ALARM = "false-alarm"
    DISMISSED = "dismissed"


class StepState(enum.StrEnum):
    """Where a step of the plan is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """One superblock, as an incident remembers it: enough to know it again, and to name it.

    `disk_sequence` tells two uses of one device number apart; `image` and `image_inode` are the
    backing file of a loop device and its (device, inode). With a `server` it is all that this one
    serves to the node: when it does not answer, that is one fault. `boot` is the earlier boot (its
    id) that number and sequence are of: both are dealt anew since. None is the present one.
    `unmounted` says that it was seen unmounted: whoever is mounted with its number is another
    mount, also where that is of the same device.
    """

    devno: Devno | None
    device: str | None
    fstype: str | None
    uuid: str | None = None
    disk_sequence: int | None = None
    image: str | None = None
    image_inode: tuple[str, int] | None = None
    mountpoints: tuple[str, ...] = ()
    server: str | None = None
    boot: str | None = None
    unmounted: bool = False

    @property
    def key(self) -> str:
        """Identity: never equal for two different attachments of one device number, nor for two
        volumes that are not attached at all."""
        if self.server is not None:
            return f"server:{self.fstype or ''}:{self.server}"
        if self.devno is None:
            # By its path: the inode is another one after a repair has exchanged it.
            return f"name:{self.device or ''}:{self.fstype or ''}:{self.image or ''}"
        number = str(self.devno) if self.boot is None else f"{self.boot}/{self.devno}"
        if self.unmounted:
            number = f"unmounted/{number}"
        if self.devno.major == 0:
            # The kernel gives the number of a filesystem that lies on no single device (btrfs) to
            # the next one at once, and counts no attachments of it. An image may be renamed, or
            # another one may get its path.
            return f"{number}/{self.image_inode or self.image or self.device or ''}"
        return f"{number}/{self.disk_sequence or 0}"

    def is_volume_of(self, other: Filesystem) -> bool:
        """Whether both are of one image. Of devices that cannot be told: names are dealt anew, and
        UUIDs are copied with a template."""
        return self.image is not None and self.volume_key == other.volume_key

    @property
    def volume_key(self) -> str:
        """Identity of the storage across remounts: image file or device, and UUID."""
        return f"{self.image or self.device or ''}/{self.uuid or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of the plan and what became of it.

    `journal` is the action's own record of how far it got, written before each phase; it is what
    a daemon that starts after `kill -9` decides from. `progress` is 0..1 while running.
    """

    do: str
    options: dict[str, object] = field(default_factory=dict)
    state: StepState = StepState.PENDING
    started_ns: int | None = None
    ended_ns: int | None = None
    result: str = ""
    detail: str = ""
    progress: float | None = None
    journal: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a repair keeps busy, as budgets count it: block devices, filesystems that hold its
    images, and the labels of its VEs."""

    devices: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute:
    """Somebody wants to hear nothing more of the incident, as long as it does not get worse.

    `until_ns` is CLOCK_REALTIME, for people; `expiry` is what the daemon goes by (see
    `engine.history`). The rest is how the incident was when it was muted.
    """

    by: str
    reason: str
    since_ns: int
    until_ns: int
    expiry: dict[str, object]
    classes: frozenset[EventClass]
    severity: Severity
    confirmed: bool
    state: State
    ves: tuple[str, ...]
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One fault on one filesystem, from the first event to its end.

    Times ending in `_ns` are CLOCK_REALTIME. `timeline` holds CLOCK_MONOTONIC nanoseconds of the
    milestones (`detected`, `attributed`, `decided`, `contained`, `repaired`, `verified`,
    `notified`), those in `earlier` of an earlier boot: nothing of this one compares with them
    (`reached_ns`). `counts` is how many errors each source reported: of one fault all of them tell,
    so they are never added up. `recent` is (CLOCK_BOOTTIME ns, source, count) of the latest events,
    for thresholds. `cursor` is that of the last event that joined. `log` is the prose of `fswatch
    why`, recorded when things happened. `guards` are the answers of the last decision. `mute` says
    who wants to hear nothing of it. `decided` is what came of the last decision, with the facts
    that it was made from (see `engine.decider`). `preview` is what a yes to its question would do,
    empty where that cannot be seen. `asks` is what a step wants approved before it goes on.
    `rule_does` is a digest of what its rule would have done at the last decision (`Rule.does`).
    `approved_for` is the rule that was approved, and `approved_does` what it would have done then,
    at `approved_ns` (CLOCK_BOOTTIME), `requested_ns` when a person asked for the repair. `forced`
    says that a person wants the repair although the volume was repaired again and again.
    `reached_threshold_of` names the rule whose threshold was reached. `load` is what its plan keeps
    busy while it runs. `undo` is what `rollback` needs, `evidence` where and when it was seen what
    the volume was like before the plan. `clock` is the boot (its id) that times in CLOCK_BOOTTIME
    belong to, and what CLOCK_REALTIME was ahead of that clock, of a closed incident when it was
    closed.

    `ves` are all that depend on the filesystem, those in `through` only through what rests on it.
    `stack` is what lies beneath, as in `views.stack`. `device_errors` is how many errors the device
    itself reported, since `device_since_ns`. `lost` is the data of files that could not be written
    or read, one entry a file. `cause` names what is to blame instead of the filesystem; one that is
    over has `until`, and `classes_since` are those of the events after it. `limits` are the
    quotas that somebody is above (`sources.quota`). `consequences` are the incidents that this one
    is, or was, to blame for; `untold` says that nobody was told of this one, because its cause has
    an incident that was.
    """

    incident_id: str
    node: str
    domain: Domain
    filesystem: Filesystem
    opened_ns: int
    updated_ns: int
    classes: frozenset[EventClass] = frozenset()
    severity: Severity = Severity.INFO
    confirmed: bool = False
    state: State = State.OPEN
    waiting_for: str = ""
    outcome: Outcome | None = None
    closed_ns: int | None = None
    ves: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    stack: tuple[dict[str, object], ...] = ()
    sources: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    errno: int | None = None
    device_errors: int = 0
    device_since_ns: int | None = None
    lost: tuple[LostWrite, ...] = ()
    cause: dict[str, object] | None = None
    classes_since: frozenset[EventClass] = frozenset()
    limits: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    untold: bool = False
    rule: str | None = None
    rule_does: str | None = None
    channels: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    recent: tuple[tuple[int, str, int], ...] = ()
    cursor: int = 0
    timeline: dict[str, int] = field(default_factory=dict)
    earlier: frozenset[str] = frozenset()
    guards: tuple[tuple[str, bool, str], ...] = ()
    decided: dict[str, object] | None = None
    log: tuple[tuple[int, str], ...] = ()
    preview: dict[str, object] | None = None
    asks: str = ""
    approved_by: str | None = None
    approved_ns: int | None = None
    approved_for: str | None = None
    approved_does: str | None = None
    denied_by: str | None = None
    requested_by: str | None = None
    requested_ns: int | None = None
    forced: bool = False
    acknowledged_by: str | None = None
    mute: Mute | None = None
    reached_threshold_of: str | None = None
    attempts: int = 0
    healthy_s: float = 60.0
    load: Load = Load()
    undo: dict[str, object] | None = None
    evidence: dict[str, object] | None = None
    clock: tuple[str, int] | None = None

    @property
    def klass(self) -> EventClass:
        """The class of the fault (see `worst_class`)."""
        return worst_class(self.classes)

    @property
    def klass_of_its_own(self) -> EventClass:
        """The class of what is wrong with the filesystem itself.

        What a failed device has left behind is for a person, and new damage after it was well
        again counts by itself. Errors that came of a full host are no fault of a device: what they
        have left behind is.
        """
        if not self.cause_is_over or self.cause is None:
            return self.klass
        if self.classes_since - CONSEQUENCES and not self.classes_since & DEVICE_CLASSES:
            return worst_class(self.classes_since)
        if self.cause["kind"] == "space":
            # Lost data is lost; what can be repaired is what else there is.
            for past in (DEVICE_CLASSES | {EventClass.DATA_LOSS}, DEVICE_CLASSES):
                left = worst_class(self.classes - past)
                if left is not EventClass.NONE:
                    return left
        return self.klass

    @property
    def direct_ves(self) -> tuple[str, ...]:
        """The VEs that use the filesystem themselves."""
        return tuple(ve for ve in self.ves if ve not in self.through)

    @property
    def cause_is_over(self) -> bool:
        """Whether something else was to blame, and is well again."""
        return self.cause is not None and "until" in self.cause

    @property
    def part_of(self) -> str | None:
        """The incident of what is to blame: as long as that lasts this one is a part of it."""
        if self.cause is None or self.cause_is_over or self.state not in UNDECIDED:
            return None
        incident = self.cause.get("incident")
        return str(incident) if incident else None

    @property
    def events(self) -> int:
        """How many errors there were, as far as any one source saw them."""
        return max(max(self.counts.values()), 1) if self.counts else 0

    @property
    def is_open(self) -> bool:
        """Whether events can still join it."""
        return self.state is not State.CLOSED

    @property
    def key(self) -> tuple[str, Domain]:
        """What an event must share with the incident to join it."""
        return (self.filesystem.key, self.domain)

    def joined(self, event: FsEvent, boottime_ns: int, cursor: int = 0) -> Incident:
        """The incident with one more event, the one with this cursor in the store."""
        # That the filesystem has stopped is what came of an error, not another one.
        errors = 0 if event.klass in CONSEQUENCES else event.count
        # What was read of a device is no error that it has reported.
        from_device = is_of_device(event.klass, event.fstype) and event.source != "state"
        sources = self.sources
        if event.source not in sources:
            sources = (*sources, event.source)
        return replace(
            self,
            classes=self.classes | {event.klass},
            classes_since=self.classes_since | ({event.klass} if self._is_past(event) else set()),
            severity=max(self.severity, event.severity),
            confirmed=self.confirmed or event.confirms,
            sources=sources,
            counts={**self.counts, event.source: self.counts.get(event.source, 0) + errors},
            device_errors=self.device_errors + (event.count if from_device else 0),
            device_since_ns=self.device_since_ns or (event.time_ns if from_device else None),
            errno=self.errno if self.errno is not None else event.errno,
            updated_ns=event.time_ns,
            recent=_counted(self.recent, boottime_ns, event.source, errors),
            cursor=max(self.cursor, cursor),
            lost=self.lost if event.lost is None else _added(self.lost, event.lost),
        )

    def _is_past(self, event: FsEvent) -> bool:
        """Whether what was to blame was well again by then."""
        if self.cause is None or not self.cause_is_over:
            return False
        return event.time_ns > parse_timestamp(str(self.cause["until"]))

    def with_lost(self, file: LostWrite) -> Incident:
        """The incident with what is known of a file whose data were lost."""
        return replace(self, lost=_added(self.lost, file))

    def on_clock(self, boot: str, ahead_ns: int) -> Incident:
        """The incident with its times on the clock of this boot, which CLOCK_REALTIME is
        `ahead_ns` ahead of; its device's number stays that of the boot before.

        What passed between two boots only the wall clock knows: it is an estimate.
        """
        if self.clock is None or self.clock[0] == boot:
            return replace(self, clock=(boot, ahead_ns))
        shift = self.clock[1] - ahead_ns
        filesystem = self.filesystem
        if filesystem.devno is not None and filesystem.boot is None:
            filesystem = replace(filesystem, boot=self.clock[0])
        return replace(
            self,
            clock=(boot, ahead_ns),
            filesystem=filesystem,
            recent=tuple((when + shift, source, count) for when, source, count in self.recent),
            approved_ns=None if self.approved_ns is None else self.approved_ns + shift,
            requested_ns=None if self.requested_ns is None else self.requested_ns + shift,
            earlier=frozenset(self.timeline),
        )

    def noted(self, time_ns: int, text: str) -> Incident:
        """The incident with one more line in its log; the oldest middle lines make room."""
        log = (*self.log, (time_ns, text))
        if len(log) > LOG_LIMIT:
            log = (*log[: LOG_LIMIT // 2], *log[-LOG_LIMIT // 2 :])
        return replace(self, log=log, updated_ns=time_ns)

    def reached(self, milestone: str, mono_ns: int) -> Incident:
        """The incident with the first time of a milestone in this boot, or in its newest plan where
        plans reach it; later ones move nothing."""
        if milestone in self.timeline and milestone not in self.earlier:
            return self
        timeline = {**self.timeline, milestone: mono_ns}
        return replace(self, timeline=timeline, earlier=self.earlier - {milestone})

    def with_new_plan(self, steps: tuple[StepRecord, ...]) -> Incident:
        """The incident with a plan that begins: of what plans do, it has reached nothing yet."""
        timeline = {name: at for name, at in self.timeline.items() if name not in _BY_A_PLAN}
        return replace(self, steps=steps, timeline=timeline, earlier=self.earlier - _BY_A_PLAN)

    def reached_ns(self, milestone: str) -> int | None:
        """When it was reached (CLOCK_MONOTONIC), None where that was not in this boot."""
        return None if milestone in self.earlier else self.timeline.get(milestone)

    def with_step(self, index: int, step: StepRecord) -> Incident:
        """The incident with the step at `index` replaced."""
        steps = list(self.steps)
        steps[index] = step
        return replace(self, steps=tuple(steps))


def worse_than_muted(found: Incident) -> str | None:
    """What has got worse since the incident was muted, in words; None when nothing has."""
    mute = found.mute
    if mute is None:
        return None
    if found.state is State.NEEDS_OPERATOR and mute.state is not State.NEEDS_OPERATOR:
        return "it needs an operator"
    if found.severity > mute.severity:
        return f"it is {found.severity.label} now, not {mute.severity.label}"
    if new := sorted(k.value for k in found.classes - mute.classes if k.is_problem):
        return f"it is {', '.join(new)} now too"
    if found.confirmed and not mute.confirmed:
        return "it is confirmed now"
    if more := [ve for ve in found.ves if ve not in mute.ves]:
        return f"it concerns {', '.join(more[:8])} now" + (" and others" if more[8:] else "")
    return "more data was lost" if len(found.lost) > mute.lost else None


def _added(lost: tuple[LostWrite, ...], more: LostWrite) -> tuple[LostWrite, ...]:
    """One entry a file; past the limit only files that are known already."""
    for index, known in enumerate(lost):
        if known.inode == more.inode:
            return (*lost[:index], known.plus(more), *lost[index + 1 :])
    return (*lost, more) if len(lost) < LOST_LIMIT else lost


def _counted(
    recent: tuple[tuple[int, str, int], ...], boottime_ns: int, source: str, count: int
) -> tuple[tuple[int, str, int], ...]:
    """Events of one source within a second share an entry, so that a storm does not push out older
    ones, also where several sources take turns to tell of it."""
    for place in range(len(recent) - 1, -1, -1):
        when, other, known = recent[place]
        if boottime_ns - when >= RECENT_MERGE_NS:
            break
        if other == source:
            return (*recent[:place], (when, source, known + count), *recent[place + 1 :])
    if len(recent) >= RECENT_LIMIT:
        recent = _coarser(recent)
    return (*recent, (boottime_ns, source, count))


def _coarser(recent: tuple[tuple[int, str, int], ...]) -> tuple[tuple[int, str, int], ...]:
    """Entries of the older half joined in pairs, each with the time of its older one: what counts
    then leaves a threshold's window too early rather than too late."""
    half = len(recent) // 2
    joined: list[tuple[int, str, int]] = []
    single: dict[str, int] = {}
    for when, source, count in recent[:half]:
        place = single.pop(source, None)
        if place is None:
            single[source] = len(joined)
            joined.append((when, source, count))
        else:
            joined[place] = (joined[place][0], source, joined[place][2] + count)
    return (*joined, *recent[half:])
