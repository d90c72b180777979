"""Decisions, by the daemon's own policy, and the plans and storms that come of them."""

from __future__ import annotations

from dataclasses import replace

from fswatchd import policy, storm
from fswatchd.cause import blame
from fswatchd.events import Severity
from fswatchd.incidents import Incident, Load, State
from fswatchd.policy import Decision, Verdict
from fswatchd.situation import PolicyState, RunningRepair, Scope, StormState, VeFacts
from tests.simulator.node import Plan, SimulatedNode


class DecidingNode(SimulatedNode):
    """A node that decides, and whose plans take a while."""

    def decide(self, found: Incident) -> Decision:
        """What the policy says now; nothing is done."""
        rules = policy.for_request(self.rules) if found.requested_by else self.rules
        now = self.clock.boottime_ns()
        return policy.decide(rules, found, self.scope(found), self.state(), now)

    def scope(self, found: Incident) -> Scope:
        """Whom it belongs to."""
        name = found.ves[0].removeprefix("lxc:")
        disk = self._disk(name)
        layer = self.layers.get(disk)
        return Scope(
            ves=(
                VeFacts(
                    ve_id=f"lxc:{name}",
                    name=name,
                    platform=self.node.platform,
                    labels=self.node.label.get(name, {}),
                    labels_known=name not in self.untold,
                    busy=self.busy.get(name) or None,
                ),
            ),
            foreign_users=self.foreign.get(name, ()),
            shared_with=self.elsewhere.get(name),
            devices=(str(found.filesystem.devno), disk),
            filesystems=(f"ext4 /{disk}",),
            beneath=(layer,) if layer else (),
            unmounted=name in self.stopped,
            role="rootfs" if str(found.filesystem.device).endswith("-root") else "data",
            copies=self._copies(name),
            held_by=next(
                (
                    self._name(one)
                    for one in self.incidents.values()
                    if one.state is State.NEEDS_OPERATOR
                    and one is not found
                    and one.ves == found.ves
                ),
                None,
            ),
        )

    def state(self) -> PolicyState:
        """The rest."""
        running = (self.incidents[one] for one in self.plans)
        return PolicyState(
            mode=self.node.mode,
            distrust=self.distrust,
            disarms=self.history.current_disarms(),
            running=tuple(RunningRepair(incident_id=i.incident_id, load=i.load) for i in running),
            last_action_ns=self.history.last_action_ns,
            failures=self.history.failures,
            repaired_ns=self.history.repaired_ns,
            begun_ns=self.history.begun_ns,
            queue=self.turns.queue,
            storm=self.storm,
            local_s=self.clock.local(),
        )

    def _decide(self, incident_id: str) -> None:
        found = self.incidents.get(incident_id)
        if found is None or found.state not in {State.OPEN, State.WAITING}:
            return
        if not found.guards and blame(self.scope(found).beneath) is None:
            self._count_failure(found)
        scope = self.scope(found)
        decision = self.decide(found)
        reached = any(a.guard == "threshold" and a.passed for a in decision.answers)
        found = replace(
            found,
            rule=decision.rule,
            rule_does=decision.does,
            healthy_s=decision.healthy_s,
            guards=tuple((a.guard, a.passed, a.text) for a in decision.answers),
            reached_threshold_of=decision.rule if reached else found.reached_threshold_of,
            state=State.WAITING if decision.verdict is Verdict.WAIT else State.OPEN,
            waiting_for=decision.waiting_for,
        )
        self._put(found)
        last = decision.answers[-1]
        words = [decision.verdict.value, decision.rule or "-"]
        words += [last.guard] if not last.passed else []
        for shadow in decision.shadows:
            words += [f"| shadow {shadow.rule} {shadow.verdict.value}"]
        text = " ".join(words)
        if self._last.get(incident_id) != text or decision.verdict is Verdict.ACT:
            self._last[incident_id] = text
            self._say(found, text)
        if decision.waiting_for == "budget":
            rule = next(one for one in self.rules.rules if one.name == decision.rule)
            self.turns.waits(found, found.ves[0], rule.budget, scope.load)
        else:
            self.turns.gone(incident_id)
        if decision.verdict is Verdict.ACT:
            self._act(found, decision, scope.load)
        elif decision.retry_after_s is not None:
            self._ask_again(incident_id, decision.retry_after_s)

    def _ask_again(self, incident_id: str, delay_s: float) -> None:
        when = self.clock.now_s + max(min(delay_s, 3600.0), 0.001)
        if (
            self._due.get(incident_id, when + 1) <= when
            and self._due[incident_id] > self.clock.now_s
        ):
            return
        self._due[incident_id] = when

        def again() -> None:
            if self._due.get(incident_id) == when:
                del self._due[incident_id]
                self._decide(incident_id)

        self._schedule(when, again)

    def _decide_all(self) -> None:
        for found in sorted(self.incidents.values(), key=lambda one: one.opened_ns):
            self._decide(found.incident_id)

    # --- plans ----------------------------------------------------------------------------------

    def _act(self, found: Incident, decision: Decision, load: Load) -> None:
        self.history.begun(found.ves[0])
        steps = [step.do for step in decision.steps if step.do != "notify"]
        self._put(replace(found, state=State.ACTING, load=load, attempts=found.attempts + 1))
        plan = self.plans[found.incident_id] = Plan(found.incident_id, steps)
        self._step(plan, self.node.repair_s / len(steps))

    def _step(self, plan: Plan, each_s: float) -> None:
        """As the executor does: nothing is begun on what was disarmed meanwhile."""
        found = self.incidents.get(plan.incident_id)
        if self.plans.get(plan.incident_id) is not plan or found is None:
            return
        if not plan.steps:
            self._end(found)
            return
        disarmed = self.history.why_disarmed(self.scope(found).ves)
        if not plan.begun and (disarmed or (self.distrust and not found.requested_by)):
            del self.plans[plan.incident_id]
            self._put(replace(found, state=State.WAITING, waiting_for="armed" if disarmed else ""))
            self._say(found, "cancelled")
            self._decide_all()
            return
        plan.begun = plan.begun or plan.steps[0] != "snapshot"
        plan.steps.pop(0)
        self._schedule(self.clock.now_s + each_s, lambda: self._step(plan, each_s))

    def _end(self, found: Incident) -> None:
        del self.plans[found.incident_id]
        name, volume = self._name(found), found.filesystem.volume_key
        failed = self.node.fails.get(name, 0) > 0
        self.history.acted(found.rule or "", volume, failed=failed)
        self.history.repaired(volume)
        if failed:
            self.node.fails[name] -= 1
            self._put(replace(found, state=State.NEEDS_OPERATOR))
            self._say(found, "failed, needs-operator")
        else:
            self._put(replace(found, state=State.VERIFYING))
            self._say(found, "repaired")
            self._schedule(self.clock.now_s + found.healthy_s, lambda: self._verified(found))
        self._decide_all()

    def _verified(self, found: Incident) -> None:
        current = self.incidents.get(found.incident_id)
        if current is not None and current.state is State.VERIFYING:
            self._close(current, "repaired")

    # --- storms ---------------------------------------------------------------------------------

    def _count_failure(self, found: Incident) -> None:
        settings, now = self.rules.storm, self.clock.boottime_ns()
        if found.requested_by or found.severity < Severity.ERROR:
            return
        self.history.failed(found.ves[0])
        if settings is None:
            return
        failing = storm.failing(settings, self.history.failed_ns, now)
        total = sum(len(ves) for ves in self.node.disks.values())
        if self.storm is None and storm.breaks_out(settings, len(failing), total):
            self.storm = StormState(incident_id="storm", text="a storm")
            self._line(f"storm begins: {len(failing)} VEs")
            self._schedule(self.clock.now_s, self._decide_all)
        if self.storm is not None:
            self._look_at_storm()

    def _look_at_storm(self) -> None:
        settings = self.rules.storm
        if settings is None or self.storm is None:
            return
        left_s = storm.over_after_s(settings, self.history.failed_ns, self.clock.boottime_ns())
        if left_s == 0:
            self._end_storm()
        elif left_s is not None:
            self._schedule(self.clock.now_s + left_s, self._look_at_storm)

    def _end_storm(self) -> None:
        self.storm = None
        self.history.forget_failures(*self.history.failed_ns)
        self._line("storm ends")
        self._decide_all()
