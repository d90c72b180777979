"""What can happen to a node: each method `do_…` is a verb that a scenario may use."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from fswatchd.cause import Layer
from fswatchd.events import EventClass, FsEvent, Severity, usual_severity
from fswatchd.incidents import Incident, State
from fswatchd.rules.model import assemble
from fswatchd.situation import NODE, Disarm, label_target
from fswatchd.units import parse_duration
from tests.simulator.clock import NS
from tests.simulator.decisions import DecidingNode

_INCIDENT = TypeAdapter(Incident)


class Simulator(DecidingNode):
    """Plays one scenario; `log` is what was decided and what came of it."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document)
        for entry in document.get("do", ()):
            self._schedule(parse_duration(entry["at"]), lambda entry=entry: self._do(entry))

    def _do(self, entry: dict[str, Any]) -> None:
        verbs = [key for key in entry if hasattr(self, f"do_{key}")]
        assert len(verbs) == 1, entry
        more = {key: value for key, value in entry.items() if key not in {"at", verbs[0]}}
        getattr(self, f"do_{verbs[0]}")(entry[verbs[0]], **more)

    def do_fault(self, who: Any, times: int = 1, every: str = "0s", **more: Any) -> None:
        for number in range(times):
            for name in self._ves(who):
                when = self.clock.now_s + number * parse_duration(every)
                if when == self.clock.now_s:
                    self._fault(name, **more)
                else:
                    self._schedule(when, lambda name=name: self._fault(name, **more))

    def _fault(
        self,
        ve: str,
        klass: str = "corruption",
        source: str = "fanotify",
        count: int = 1,
        volume: str = "root",
        severity: str | None = None,
        fstype: str | None = None,
    ) -> None:
        chosen = EventClass(klass)
        found = self._find(ve, volume, chosen) or self._open(ve, volume, chosen, fstype)
        event = FsEvent(
            source=source,
            klass=chosen,
            severity=Severity.parse(severity) if severity else usual_severity(chosen),
            confirms=source not in {"kmsg", "journal"},
            time_ns=self.clock.wall_ns(),
            mono_ns=self.clock.boottime_ns(),
            detail="scripted",
            device=found.filesystem.device,
            count=count,
            fstype=found.filesystem.fstype,
        )
        found = found.joined(event, self.clock.boottime_ns())
        ahead_ns = self.clock.wall_ns() - self.clock.boottime_ns()
        self._put(found.on_clock(self.clock.boot, ahead_ns))
        if found.state is State.VERIFYING and found.confirmed:
            self._put(replace(self.incidents[found.incident_id], state=State.NEEDS_OPERATOR))
            self._say(found, "needs-operator (again)")
        else:
            self._decide(found.incident_id)

    def do_approve(self, who: str) -> None:
        for found in self._waiting(who):
            approved = replace(
                found,
                approved_by="op",
                approved_ns=self.clock.boottime_ns(),
                approved_for=found.rule,
                approved_does=found.rule_does,
                denied_by=None,
            )
            self._put(approved)
            self._decide(found.incident_id)

    def do_deny(self, who: str) -> None:
        for found in self._waiting(who):
            self._put(replace(found, denied_by="op", approved_by=None))
            self._decide(found.incident_id)

    def do_request(self, who: str, *, force: bool = False) -> None:
        found = self._find(who, "root", EventClass.CORRUPTION)
        found = found or self._open(who, "root", EventClass.CORRUPTION, None)
        if found.state in {State.ACTING, State.VERIFYING}:
            return
        self._put(
            replace(found, requested_by="root", forced=force, state=State.OPEN, denied_by=None)
        )
        self._decide(found.incident_id)

    def do_ack(self, who: str) -> None:
        if who == "storm":
            self._end_storm()
            return
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            if found.state is State.NEEDS_OPERATOR:
                self._close(found, "dismissed")

    def do_gone(self, who: str) -> None:
        """Its volume is not mounted any more, and nobody has it."""
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            if found.state is not State.ACTING:
                self._close(found, "dismissed")

    def do_stop(self, who: str) -> None:
        """The VE has put its volume down, and has it still."""
        self._mount(who, mounted=False)

    def do_start(self, who: str) -> None:
        """The same volume is mounted again."""
        self._mount(who, mounted=True)

    def _mount(self, who: str, *, mounted: bool) -> None:
        self.stopped -= {who}
        if not mounted:
            self.stopped |= {who}
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            self._decide(found.incident_id)

    def do_disarm(self, who: str, **more: str) -> None:
        until = None
        if "for" in more:
            until = self.clock.boottime_ns() + round(parse_duration(more["for"]) * NS)
        disarm = Disarm(target=_target(who), reason="work", by="op", until_ns=until)
        asyncio.run(self.history.disarm(disarm))
        self._decide_all()

    def do_arm(self, who: str) -> None:
        asyncio.run(self.history.arm(_target(who)))
        self._decide_all()

    def do_doubt(self, why: str) -> None:
        """The daemon finds something wrong with itself; nothing where `why` is empty."""
        self.distrust = why
        self._decide_all()

    def do_reload(self, text: str) -> None:
        rules, problems = assemble([("test.toml", text)])
        if problems:
            self._line("reload refused, the last good rules stay")
            return
        self.rules = rules
        self._decide_all()

    def do_disk(self, name: str, errors: int = 0, free: int | None = None) -> None:
        """A disk reports errors, or is well again; `free` bytes are left on its filesystem."""
        self.layers[name] = Layer(
            kind="device" if free is None else "filesystem",
            name=f"/dev/{name}" if free is None else f"ext4 /{name}",
            errors=errors,
            free_bytes=free,
            total_bytes=1 << 40,
        )
        self._decide_all()

    def do_label(self, who: str, **labels: str) -> None:
        self.node.label[who] = {**self.node.label.get(who, {}), **labels}
        self._decide_all()

    def do_labels(self, who: str, *, told: bool) -> None:
        """Its platform has not told its labels, or does now."""
        (self.untold.discard if told else self.untold.add)(who)
        self._decide_all()

    def do_clock(self, jump: str) -> None:
        """The wall clock is set; CLOCK_BOOTTIME knows nothing of it."""
        sign = -1 if jump.startswith("-") else 1
        self.clock.jumped_s += sign * parse_duration(jump.lstrip("+-"))

    def do_busy(self, who: str, why: str = "") -> None:
        self.busy[who] = why
        self._decide_all()

    def do_shared(self, who: str, by: str = "the node") -> None:
        self.foreign[who] = (by,)

    def do_elsewhere(self, who: str, why: str = "it is on DRBD") -> None:
        self.elsewhere[who] = why

    def do_asks(self, who: str, what: str = "writers would wait 12 s") -> None:
        """A step wants an approval before it goes on."""
        for found in [i for i in self.incidents.values() if self._name(i) == who]:
            self.plans.pop(found.incident_id, None)
            self._put(replace(found, state=State.WAITING, asks=what, approved_by=None))
            self._decide(found.incident_id)

    def do_restart(self, _what: object) -> None:
        """The daemon is killed and started: what is not stored is lost."""
        stored = [_INCIDENT.dump_json(found) for found in self.incidents.values()]
        self._start()
        ahead_ns = self.clock.wall_ns() - self.clock.boottime_ns()
        for text in stored:
            found = _INCIDENT.validate_json(text).on_clock(self.clock.boot, ahead_ns)
            self.incidents[found.incident_id] = found
        self._decide_all()

    def do_reboot(self, down: str) -> None:
        """The node is off for a while; nothing that ran is running then."""
        self.plans.clear()
        self._due.clear()
        for found in list(self.incidents.values()):
            if found.state is State.ACTING:
                self._put(replace(found, state=State.OPEN))

        def up() -> None:
            self.clock.boots += 1
            self.clock.booted_s = self.clock.now_s - 30
            self.do_restart(None)

        self._schedule(self.clock.now_s + parse_duration(down), up)


def _target(who: str) -> str:
    if "=" in who:
        return label_target(*who.split("=", 1))
    return who if who == NODE else f"lxc:{who}"
