"""Each guard: what it lets pass, and what it must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.cause import Layer, blame
from fswatchd.events import Domain, Health
from fswatchd.guards import refused_scope
from fswatchd.incidents import Load
from fswatchd.policy import Decision, Verdict, decide, for_request
from fswatchd.rules.model import RuleSet
from fswatchd.situation import Disarm, RunningRepair
from fswatchd.views import timestamp
from tests.unit.builders import NOW_NS, event, incident, policy_state, rules, scope, ve_facts

NS = 1_000_000_000

AUTO = """
[[rule]]
name = "repair"
match.class = ["corruption", "readonly"]
match.severity = ">= error"
match.fstype = "ext4"
threshold = "2 in 10m"
mode = "auto"
cooldown = "30m"
budget = { node = 2, device = 1 }
[[rule.step]]
do = "fsck"
[[rule.step]]
do = "notify"
to = ["ops"]

[[rule]]
name = "tell"
match.class = "*"
[[rule.step]]
do = "notify"
to = ["*"]
"""


def ask(
    found: Any = None, who: Any = None, state: Any = None, text: str = AUTO, now_ns: int = NOW_NS
) -> Decision:
    found = found or incident(event(count=2))
    return decide(rules(text), found, who or scope(), state or policy_state(), now_ns)


def guard(decision: Decision) -> str:
    """The guard that stopped it."""
    return decision.answers[-1].guard


def test_a_confirmed_fault_in_one_ve_is_repaired() -> None:
    decision = ask()
    assert decision.verdict is Verdict.ACT
    assert decision.rule == "repair"
    assert [step.do for step in decision.steps] == ["fsck", "notify"]
    assert decision.channels == ("ops",)


def test_a_rule_that_only_hands_over_to_a_person_does_that() -> None:
    text = """
[[rule]]
name = "hands-off"
match.class = "*"
mode = "auto"
[[rule.step]]
do = "quarantine"
[[rule.step]]
do = "notify"
to = ["*"]
"""
    decision = ask(text=text)
    assert decision.verdict is Verdict.ACT
    assert [step.do for step in decision.steps] == ["quarantine", "notify"]
    assert ask(text=text, state=policy_state(mode="observe")).verdict is not Verdict.ACT
    assert guard(ask(incident(event(count=2), denied_by="root"), text=text)) == "denied"
    shared = scope(ve_facts(), ve_facts(ve_id="lxc:b", name="b"))
    assert ask(text=text, who=shared).verdict is Verdict.ACT
    assert ask(who=shared).verdict is not Verdict.ACT


def test_every_guard_that_was_asked_leaves_its_answer() -> None:
    asked = [answer.guard for answer in ask().answers]
    assert asked == [
        "rule", "confirmed", "mount", "scope", "elsewhere", "threshold", "denied", "held", "armed",
        "storm", "cause", "mode", "asked", "copies", "flap", "cooldown", "budget",
    ]  # fmt: skip


def test_an_unconfirmed_fault_leads_to_nothing_but_a_notice() -> None:
    decision = ask(incident(event("kmsg", count=5)))
    assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "confirmed")


def test_the_first_matching_rule_decides() -> None:
    decision = ask(incident(event(klass="space")))
    assert (decision.verdict, decision.rule) == (Verdict.NOTIFY, "tell")


def test_no_rule_no_action() -> None:
    found = incident(event(klass="space"))
    decision = decide(RuleSet(), found, scope(), policy_state(), NOW_NS)
    assert decision.verdict is Verdict.NONE


def test_an_io_error_that_came_with_corruption_is_not_fsckd() -> None:
    found = incident(event(count=2), event("kmsg", "io_error"))
    assert ask(found).rule == "tell"


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (scope(ve_facts(), ve_facts(ve_id="lxc:ve102", name="ve102")), "share"),
        (scope(foreign_users=("the node",)), "the node"),
        (scope(ve_facts(hands_off=True)), "another daemon"),
    ],
)
def test_a_filesystem_that_others_use_is_never_repaired(who: Any, why: str) -> None:
    decision = ask(who=who)
    assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "scope")
    assert why in decision.answers[-1].text


@pytest.mark.parametrize(
    ("who", "again_s"),
    [
        (scope(foreign_users=("backup.service",)), 30.0),  # it may end, and nothing tells that
        (scope(ve_facts(), ve_facts(ve_id="lxc:ve102", name="ve102")), None),
        (scope(ve_facts(hands_off=True)), None),
    ],
)
def test_others_who_use_it_are_asked_for_again(who: Any, again_s: float | None) -> None:
    decision = ask(who=who)
    assert (decision.verdict, decision.retry_after_s) == (Verdict.NOTIFY, again_s)
    later = ask(who=who, now_ns=NOW_NS + 20 * 60 * NS)
    assert later.retry_after_s == (again_s and 300.0)
    assert ask(who=who, now_ns=NOW_NS + 86400 * NS).retry_after_s == (again_s and 600.0)


SEVERAL = scope(ve_facts(), ve_facts(ve_id="lxc:ve102", name="ve102"))
ROOM = """
[[rule]]
name = "room"
match.class = ["space", "corruption"]
mode = "auto"
cooldown = "0s"
[[rule.step]]
do = "exec"
run = ["/usr/local/sbin/extend"]
"""


@pytest.mark.parametrize(
    ("who", "text", "klass", "acts"),
    [
        (SEVERAL, ROOM, "space", True),
        (SEVERAL, ROOM, "corruption", False),
        (SEVERAL, ROOM + '[[rule.step]]\ndo = "remount"\n', "space", False),
        (replace(SEVERAL, foreign_users=("the node",)), ROOM, "space", False),
        (scope(ve_facts(), ve_facts(hands_off=True)), ROOM, "space", False),
        (replace(SEVERAL, shared_with="/dev/drbd0 is DRBD"), ROOM, "space", False),
    ],
)
def test_room_is_made_for_all_that_share_it_by_a_program_and_by_nothing_else(
    who: Any, text: str, klass: str, *, acts: bool
) -> None:
    found = incident(event("state", klass, device="dm-2", fstype="dm-thin"))
    found = replace(found, domain=Domain.SPACE if klass == "space" else Domain.DAMAGE)
    verdict = decide(rules(text), found, who, policy_state(), NOW_NS).verdict
    assert (verdict is Verdict.ACT) is acts


def test_what_may_not_be_repaired_here_is_told_and_nobody_is_asked_to_approve() -> None:
    who = scope(ve_facts(unrepairable="a virtual machine"))
    decision = ask(who=who, text=AUTO.replace('"auto"', '"approve"'))
    assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "scope")
    assert decision.answers[-1].text == "lxc:ve101 is a virtual machine"
    assert refused_scope(who) == "lxc:ve101 is a virtual machine"


def test_it_may_be_stopped_all_the_same() -> None:
    text = """
        [[rule]]
        name = "stop"
        match.class = "corruption"
        mode = "auto"
        [[rule.step]]
        do = "stop"
    """
    assert ask(who=scope(ve_facts(unrepairable="a pod")), text=text).verdict is Verdict.ACT


def test_a_ve_that_its_platform_works_on_is_waited_for() -> None:
    decision = ask(who=scope(ve_facts(busy="Proxmox: lock: backup")))
    assert (decision.verdict, decision.waiting_for) == (Verdict.WAIT, "scope")
    assert "lock: backup" in decision.answers[-1].text
    assert decision.retry_after_s is not None


def test_of_a_busy_ve_among_several_is_said_that_nothing_is_ever_done() -> None:
    decision = ask(who=scope(ve_facts(busy="backup"), ve_facts(ve_id="lxc:b", name="b")))
    assert decision.verdict is Verdict.NOTIFY


def test_the_nodes_own_filesystem_is_never_repaired() -> None:
    text = AUTO.replace('match.fstype = "ext4"\n', "")
    who = scope()
    nobody = type(who)(ves=(), devices=who.devices)
    decision = ask(who=nobody, text=text)
    assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "scope")


@pytest.mark.parametrize("target", ["node", "lxc:ve101"])
def test_disarmed_means_wait(target: str) -> None:
    disarm = Disarm(target=target, reason="migration", by="root", until_ns=NOW_NS + 60 * NS)
    decision = ask(state=policy_state(disarms=(disarm,)))
    assert (decision.verdict, decision.waiting_for) == (Verdict.WAIT, "armed")
    assert decision.retry_after_s == pytest.approx(60)


def test_a_disarm_of_another_ve_or_one_that_has_run_out_does_not_matter() -> None:
    other = Disarm(target="lxc:ve102", reason="x", by="root")
    past = Disarm(target="node", reason="x", by="root", until_ns=NOW_NS)
    assert ask(state=policy_state(disarms=(other, past))).verdict is Verdict.ACT


@pytest.mark.parametrize(("count", "acts"), [(1, False), (2, True), (3, True)])
def test_the_threshold_is_exact(count: int, acts: bool) -> None:
    decision = ask(incident(event(count=count)))
    assert (decision.verdict is Verdict.ACT) is acts
    if not acts:
        assert guard(decision) == "threshold"


@pytest.mark.parametrize(("apart_ns", "acts"), [(600 * NS, True), (600 * NS + 1, False)])
def test_errors_outside_the_window_do_not_count(apart_ns: int, acts: bool) -> None:
    found = incident(event()).joined(event(), NOW_NS + apart_ns)
    assert (ask(found, now_ns=NOW_NS + apart_ns).verdict is Verdict.ACT) is acts


def test_a_window_that_is_past_still_counts_while_the_incident_is_open() -> None:
    found = incident(event(count=2))
    assert ask(found, now_ns=NOW_NS + 86400 * NS).verdict is Verdict.ACT


def test_witnesses_of_the_same_error_are_not_added_up_to_the_threshold() -> None:
    assert guard(ask(incident(event("fanotify"), event("kmsg"), event("state")))) == "threshold"


@pytest.mark.parametrize("node_mode", ["observe", "approve", "auto"])
@pytest.mark.parametrize("rule_mode", ["observe", "approve", "auto"])
def test_no_rule_acts_wider_than_the_node(node_mode: Any, rule_mode: str) -> None:
    text = AUTO.replace('mode = "auto"', f'mode = "{rule_mode}"')
    decision = ask(state=policy_state(mode=node_mode), text=text)
    if "observe" in {node_mode, rule_mode}:
        assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "mode")
    elif "approve" in {node_mode, rule_mode}:
        assert (decision.verdict, decision.waiting_for) == (Verdict.WAIT, "approval")
    else:
        assert decision.verdict is Verdict.ACT


def test_that_the_filesystem_has_stopped_is_no_further_error() -> None:
    stopped = [event("state", "readonly"), event("kmsg", "readonly"), event("kmsg", "readonly")]
    one_error = incident(event("kmsg"), event("state"), *stopped)
    assert guard(ask(one_error)) == "threshold"
    assert one_error.events == 1
    only_stopped = incident(*stopped)
    assert only_stopped.events == 1
    once = AUTO.replace('"2 in 10m"', '"1 in 10m"')
    assert ask(only_stopped, text=once).verdict is Verdict.ACT


def test_a_threshold_that_was_reached_stays_reached_while_the_incident_waits() -> None:
    later = NOW_NS + 3600 * NS
    waited = incident(event(count=1), reached_threshold_of="repair", approved_by="root")
    assert ask(waited, now_ns=later).verdict is Verdict.ACT
    other_rule = incident(event(count=1), reached_threshold_of="another", approved_by="root")
    assert guard(ask(other_rule, now_ns=later)) == "threshold"


@pytest.mark.parametrize("requested_by", [None, "alice"])
def test_a_denial_forbids_in_every_mode_whoever_has_asked(requested_by: str | None) -> None:
    """A request that comes later takes an older denial away (`Operator.repair`)."""
    denied = incident(event(count=2), denied_by="root", requested_by=requested_by)
    assert (ask(denied).verdict, guard(ask(denied))) == (Verdict.NOTIFY, "denied")


def test_a_request_holds_as_long_as_an_approval() -> None:
    hour = 3600 * NS
    found = incident(event("kmsg"), requested_by="root", requested_ns=NOW_NS)
    ruleset = for_request(rules(AUTO))

    def after(ns: int, **more: Any) -> Decision:
        asked = replace(found, **more)
        return decide(ruleset, asked, scope(), policy_state(mode="observe"), NOW_NS + ns)

    assert after(4 * hour - 1).verdict is Verdict.ACT
    late = after(4 * hour)
    assert (late.verdict, late.waiting_for) == (Verdict.WAIT, "approval")
    assert "root asked for it 4 h ago; nobody has approved yet" in late.answers[-1].text
    again = after(4 * hour, approved_by="alice", approved_ns=NOW_NS + 4 * hour)
    assert again.verdict is Verdict.ACT


def test_an_approval_permits_and_a_denial_forbids() -> None:
    state = policy_state(mode="approve")
    assert ask(incident(event(count=2), approved_by="root"), state=state).verdict is Verdict.ACT
    assert ask(incident(event(count=2), denied_by="root"), state=state).verdict is Verdict.NOTIFY


CHANGED = [
    ('mode = "auto"', 'mode = "approve"'),
    ('do = "fsck"', 'do = "fsck"\nstrategy = "offline"'),
    ('do = "fsck"', 'do = "fsck"\nkeep_original = "1h"'),
    ('do = "fsck"', 'do = "stop"\n[[rule.step]]\ndo = "fsck"'),
]
UNCHANGED = [
    ("", ""),
    ('name = "repair"', '# why\nname = "repair"\ndescription = "x"'),
    ('do = "fsck"', 'do = "fsck"\nstrategy = "clone"'),
    ('to = ["ops"]', 'to = ["ops", "night"]'),
    ('[[rule.step]]\ndo = "notify"\nto = ["ops"]\n', ""),
    ('"2 in 10m"', '"1 in 10m"'),
    ('cooldown = "30m"', 'cooldown = "10m"'),
]


@pytest.mark.parametrize("asks", ["", "writers would wait 12 s"])
@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [*((*one, False) for one in CHANGED), *((*one, True) for one in UNCHANGED)],
)
def test_an_approval_is_for_what_the_rule_would_have_done_then(
    old: str, new: str, asks: str, *, counts: bool
) -> None:
    does = rules(AUTO).rules[0].does
    approved = incident(
        event(count=2), asks=asks, approved_by="alice", approved_for="repair", approved_does=does
    )
    decision = ask(approved, state=policy_state(mode="approve"), text=AUTO.replace(old, new))
    assert (decision.verdict is Verdict.ACT) is counts
    if not counts:
        assert decision.waiting_for == "approval"
        assert "rule repair was changed since alice approved" in decision.answers[-1].text


def test_an_approval_that_an_earlier_version_has_recorded_counts_as_before() -> None:
    approved = incident(event(count=2), approved_by="alice", approved_for="repair")
    for old, new in CHANGED:
        decision = ask(approved, state=policy_state(mode="approve"), text=AUTO.replace(old, new))
        assert decision.verdict is Verdict.ACT


def test_a_step_that_asked_says_that_its_rule_was_changed_since() -> None:
    approved = incident(
        event(count=2), asks="x", approved_by="alice", approved_for="repair", approved_does="y"
    )
    decision = ask(approved)
    assert (decision.verdict, guard(decision)) == (Verdict.WAIT, "approval")
    assert decision.answers[-1].text.startswith("x (rule repair was changed since alice")


def test_what_a_step_asked_for_is_waited_for_also_in_mode_auto() -> None:
    asking = incident(event(count=2), asks="writers would wait 12 s")
    decision = ask(asking)
    assert (decision.verdict, decision.waiting_for) == (Verdict.WAIT, "approval")
    assert ask(incident(event(count=2), asks="x", approved_by="root")).verdict is Verdict.ACT
    assert ask(incident(event(count=2), asks="x", denied_by="root")).verdict is Verdict.NOTIFY


def test_scratch_ves_of_a_drill_answer_to_their_rule_in_every_mode() -> None:
    who = scope(ve_facts(ve_id="drill:x", platform="drill", scratch=True))
    assert ask(who=who, state=policy_state(mode="observe")).verdict is Verdict.ACT


def test_a_ve_that_only_looks_like_a_drill_does_not() -> None:
    who = scope(ve_facts(ve_id="drill:x", platform="drill", labels={"scratch": "true"}))
    assert ask(who=who, state=policy_state(mode="observe")).verdict is Verdict.NOTIFY


def test_disarm_stops_a_drill_too() -> None:
    who = scope(ve_facts(scratch=True))
    disarm = Disarm(target="node", reason="x", by="root")
    assert ask(who=who, state=policy_state(disarms=(disarm,))).verdict is Verdict.WAIT


@pytest.mark.parametrize(("minutes", "acts"), [(29, False), (30, True)])
def test_the_cooldown_is_exact(minutes: int, acts: bool) -> None:
    found = incident(event(count=2))
    last = {("repair", found.filesystem.volume_key): NOW_NS - minutes * 60 * NS}
    decision = ask(found, state=policy_state(last_action_ns=last))
    assert (decision.verdict is Verdict.ACT) is acts
    if not acts:
        assert decision.retry_after_s == pytest.approx(60)


def test_another_volumes_cooldown_does_not_matter() -> None:
    last = {("repair", "/vz/other.raw/uuid"): NOW_NS}
    assert ask(state=policy_state(last_action_ns=last)).verdict is Verdict.ACT


def test_the_nodes_budget() -> None:
    def running(count: int) -> Any:
        runs = [
            RunningRepair(incident_id=f"i{n}", load=Load(devices=("9:9",))) for n in range(count)
        ]
        return policy_state(running=tuple(runs))

    assert ask(state=running(1)).verdict is Verdict.ACT
    assert ask(state=running(2)).waiting_for == "budget"


def test_one_repair_on_a_backing_device_at_a_time() -> None:
    run = RunningRepair(incident_id="other", load=Load(devices=("8:1",)))
    assert ask(state=policy_state(running=(run,))).waiting_for == "budget"


def test_the_incidents_own_plan_does_not_use_up_its_budget() -> None:
    found = incident(event(count=2))
    run = RunningRepair(incident_id=found.incident_id, load=Load(devices=("8:1",)))
    assert ask(found, state=policy_state(running=(run,))).verdict is Verdict.ACT


def test_a_request_of_root_is_the_approval_in_any_mode() -> None:
    found = incident(event("kmsg"), requested_by="root")
    ruleset = for_request(rules(AUTO))
    decision = decide(ruleset, found, scope(), policy_state(mode="observe"), NOW_NS)
    assert decision.verdict is Verdict.ACT


def test_a_request_that_no_rule_is_about_still_gets_a_check() -> None:
    found = incident(event(klass="space"), requested_by="root")
    decision = decide(for_request(rules(AUTO)), found, scope(), policy_state(), NOW_NS)
    assert (decision.verdict, decision.rule) == (Verdict.ACT, "operator-request")


def test_a_request_is_stopped_by_a_disarm_and_by_other_users() -> None:
    found = incident(requested_by="root")
    ruleset = for_request(rules(AUTO))
    disarmed = policy_state(disarms=(Disarm(target="node", reason="x", by="root"),))
    assert decide(ruleset, found, scope(), disarmed, NOW_NS).verdict is Verdict.WAIT
    shared = scope(foreign_users=("the node",))
    assert decide(ruleset, found, shared, policy_state(), NOW_NS).verdict is Verdict.NOTIFY


def test_continue_lets_a_later_rule_act_and_keeps_both_channels() -> None:
    text = AUTO.replace(
        '[[rule]]\nname = "repair"',
        '[[rule]]\nname = "log"\ncontinue = true\n[[rule.step]]\ndo = "notify"\nto = ["log"]\n'
        '[[rule]]\nname = "repair"',
    )
    decision = ask(text=text)
    assert decision.rule == "repair"
    assert decision.channels == ("log", "ops")


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ('match.ve = "ve1*"', True),
        ('match.ve = "lxc:ve101"', True),
        ('match.ve = ["ve2", "ve3"]', False),
        ('match.platform = "openvz"', False),
        ('match.label.tier = "gold"', True),
        ('match.label.tier = "silver"', False),
        ('match.label.rack = "*"', True),
        ('match.label.rack = "?*"', False),
        ('match.node = "hn2"', False),
        ('match.severity = "warning"', False),
        ('match.severity = ["error", "critical"]', True),
        ('match.severity = "< critical"', False),
    ],
)
def test_matching(match: str, matches: bool) -> None:
    text = f'[[rule]]\nname = "r"\n{match}\n[[rule.step]]\ndo = "notify"\n'
    decision = ask(who=scope(ve_facts(labels={"tier": "gold"})), text=text)
    assert (decision.rule == "r") is matches


@given(
    mode=st.sampled_from(["observe", "approve", "auto"]),
    confirmed=st.booleans(),
    disarmed=st.booleans(),
    running=st.integers(0, 3),
    foreign=st.booleans(),
)
def test_nothing_acts_without_permission(
    mode: Any, confirmed: bool, disarmed: bool, running: int, foreign: bool
) -> None:
    found = incident(event("fanotify" if confirmed else "kmsg", count=2))
    state = policy_state(
        mode=mode,
        disarms=(Disarm(target="node", reason="x", by="y"),) if disarmed else (),
        running=tuple(RunningRepair(incident_id=str(n)) for n in range(running)),
    )
    who = scope(foreign_users=("somebody",) if foreign else ())
    decision = ask(found, who, state)
    allowed = mode == "auto" and confirmed and not disarmed and running < 2 and not foreign
    assert (decision.verdict is Verdict.ACT) is allowed
    assert decision == ask(found, who, state)


GIB = 1 << 30
HOST = {"kind": "filesystem", "name": "xfs /vz (loop0)", "total_bytes": 100 * GIB}


class TestCause:
    @pytest.mark.parametrize(
        ("layer", "kind"),
        [
            (Layer(kind="device", name="/dev/sda", errors=1), "device"),
            (Layer(kind="device", name="/dev/sda", readonly=True), "device"),
            (Layer(kind="device", name="/dev/sda", missing=1), "device"),
            (Layer(kind="device", name="/dev/sda", state="offline"), "device"),
            (Layer(kind="device", name="/dev/loop1", short_by=4096), "device"),
            (Layer(kind="device", name="/dev/dm-3", lacks="its data is 99.9 % full"), "space"),
            (Layer(**HOST, free_bytes=0), "space"),
            (Layer(**HOST, free_bytes=63 << 20), "space"),
            (Layer(**HOST, free_bytes=GIB, free_inodes=0), "space"),
            (Layer(**HOST, health=Health.READONLY), "filesystem"),
            (Layer(**HOST, health=Health.SHUTDOWN), "filesystem"),
            (Layer(**HOST, damaged="corruption"), "filesystem"),
            (Layer(**HOST, answers=False), "filesystem"),
        ],
    )
    def test_what_lies_beneath_and_is_not_well_is_waited_for(self, layer: Layer, kind: str) -> None:
        decision = ask(who=scope(beneath=(layer,)))
        assert (decision.verdict, decision.waiting_for) == (Verdict.WAIT, "cause")
        assert decision.cause is not None
        assert (decision.cause.kind, decision.cause.name) == (kind, layer.name)

    @pytest.mark.parametrize(
        "layer",
        [
            Layer(kind="device", name="/dev/sda"),
            Layer(**HOST),
            Layer(**HOST, free_bytes=65 << 20, free_inodes=1, health=Health.OK),
            Layer(**HOST, free_bytes=GIB, health=Health.SUSPECT),
        ],
    )
    def test_what_is_well_or_not_known_holds_nothing_up(self, layer: Layer) -> None:
        decision = ask(who=scope(beneath=(layer,)))
        assert decision.verdict is Verdict.ACT
        assert decision.cause is None

    def test_the_deepest_is_to_blame(self) -> None:
        failing = Layer(kind="device", name="/dev/loop1", errors=3)
        full = Layer(**HOST, free_bytes=0)
        disk = Layer(kind="device", name="/dev/sda")
        found = blame((failing, full, disk))
        assert found is not None
        assert found.kind == "space"

    def test_who_asks_for_a_repair_waits_too(self) -> None:
        layer = Layer(kind="device", name="/dev/sda", errors=1)
        found = incident(event(), requested_by="root")
        assert ask(found, scope(beneath=(layer,))).waiting_for == "cause"

    def test_the_nodes_own_filesystem_waits_for_nothing(self) -> None:
        layer = Layer(kind="device", name="/dev/sda", errors=1)
        decision = ask(who=scope(beneath=(layer,), foreign_users=("the node",)))
        assert decision.verdict is Verdict.NOTIFY
        assert decision.cause is not None

    @pytest.mark.parametrize(
        ("kind", "rule"), [("space", "repair"), ("device", "tell"), (None, "tell")]
    )
    def test_errors_for_want_of_space_are_no_fault_of_a_device(
        self, kind: str | None, rule: str
    ) -> None:
        """A full host that has room again leaves a stopped filesystem to be repaired."""
        events = (event(klass="io_error"), event(klass="readonly", count=2))
        cause = {"kind": kind, "object": "x", "until": timestamp(NOW_NS)} if kind else None
        assert ask(incident(*events, cause=cause)).rule == rule

    @pytest.mark.parametrize(
        ("after", "rule"),
        [
            (["corruption"], "repair"),
            (["corruption", "readonly"], "repair"),
            (["readonly"], "tell"),  # what came of an error of before
            (["corruption", "io_error"], "tell"),
        ],
    )
    @pytest.mark.parametrize("kind", ["device", "filesystem"])
    def test_what_comes_after_its_device_was_well_again_counts_by_itself(
        self, after: list[str], rule: str, kind: str
    ) -> None:
        cause = {"kind": kind, "object": "/dev/loop1", "until": timestamp(NOW_NS)}
        before = (event(klass="io_error"), event(klass="corruption"))
        new = [event(klass=klass, count=2, time_ns=NOW_NS + NS) for klass in after]
        found = incident(*before, *new, cause=cause)
        decision = ask(found)
        assert decision.rule == rule
        assert (" as corruption, " in decision.answers[0].text) is (rule == "repair")
        assert found.klass == "io_error"


def test_who_depends_on_what_rests_on_it_is_a_reason_to_leave_it() -> None:
    decision = ask(who=scope(dependents=("lxc:ve102",)))
    assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "scope")
    assert ask(who=scope(dependents=("lxc:ve101",))).verdict is Verdict.ACT


def test_a_base_with_children_is_not_written_whoever_asks() -> None:
    who = scope(children=("/vz/ve102.qcow2 of lxc:ve102",))
    for found in (incident(), incident(requested_by="root")):
        decision = ask(found, who=who)
        assert (decision.verdict, guard(decision)) == (Verdict.NOTIFY, "scope")
        assert "it is the base of /vz/ve102.qcow2" in decision.answers[-1].text


def test_what_another_node_may_own_is_only_told() -> None:
    elsewhere = scope(shared_with="its image lies on nfs4 /vz (nas:/vz); check it by hand")
    decision = ask(who=elsewhere)
    assert decision.verdict is Verdict.NOTIFY
    assert guard(decision) == "elsewhere"
    assert "nas:/vz" in decision.answers[-1].text


def test_not_even_root_or_a_drill_repairs_what_another_node_may_own() -> None:
    found = incident(event(count=2), requested_by="root")
    scratch = scope(ve_facts(scratch=True), shared_with="/dev/drbd0 is DRBD")
    assert decide(for_request(rules(AUTO)), found, scratch, policy_state(), NOW_NS).verdict is (
        Verdict.NOTIFY
    )


def test_a_serving_ve_that_does_not_run_is_to_blame() -> None:
    share = Layer(kind="filesystem", name="nfs4 /vz (nas:/vz)", answers=False)
    appliance = Layer(kind="ve", name="lxc:nas", state="stopped, and serves nas:/vz")
    cause = blame((share, appliance))
    assert cause is not None
    assert (cause.kind, cause.name) == ("ve", "lxc:nas")
    assert cause.text == "it is stopped, and serves nas:/vz"
    lost = blame((share, Layer(kind="ve", name="lxc:nas")))
    assert lost is not None
    assert (lost.name, lost.text) == ("nfs4 /vz (nas:/vz)", "it does not answer")
