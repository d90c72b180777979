"""Recorded events: the same rules decide the same, other rules show as a difference."""

from __future__ import annotations

from typing import Any

from fswatchd import decisions, policy, replay, views
from fswatchd.cause import Layer
from fswatchd.incidents import Incident
from fswatchd.policy import Verdict
from fswatchd.rules.model import RuleSet
from fswatchd.situation import Disarm, Scope
from fswatchd.store.store import StoredEvent
from tests.unit.builders import (
    NOW_NS,
    event,
    filesystem,
    incident,
    policy_state,
    rules,
    scope,
    ve_facts,
)

NS = 1_000_000_000
ASK = """
[[rule]]
name = "repair"
match.fstype = "ext4"
mode = "MODE"
cooldown = "1h"
[[rule.step]]
do = "fsck"
"""
APPROVE = rules(ASK.replace("MODE", "approve"))
AUTO = rules(ASK.replace("MODE", "auto"))


def document(found: Incident, at_s: float = 0, **more: Any) -> dict[str, Any]:
    one = event(time_ns=NOW_NS + int(at_s * NS), **more)
    stored = StoredEvent(cursor=1, event=one, ves=found.ves, incident_id=found.incident_id)
    return {**views.stored_event(stored), "time_ns": one.time_ns}


def recorded(
    found: Incident, under: RuleSet, who: Scope | None = None, **state: Any
) -> dict[str, Any]:
    """What the daemon tells of an incident that it has decided about."""
    situation = policy_state(**state)
    asked = policy.decide(under, found, who or scope(), situation, NOW_NS)
    facts = decisions.facts(asked, who or scope(), situation)
    return {**views.decided(found), "decided": facts}


def replayed(*given: Any, **more: Any) -> list[replay.Replayed]:
    return replay.replay(*given, **more).incidents


def numbered(number: int, **more: Any) -> Incident:
    return incident(incident_id=f"20261121-{number:05}", **more)


def test_the_same_rules_decide_the_same() -> None:
    found = incident()
    (one,) = replayed(APPROVE, [document(found)], [recorded(found, APPROVE)])
    assert not one.changed
    assert one.under_rules.verdict == Verdict.WAIT
    assert one.under_rules.waiting_for == "approval"


def test_other_rules_show_as_a_difference() -> None:
    found = incident()
    (one,) = replayed(AUTO, [document(found)], [recorded(found, APPROVE)])
    assert one.changed
    assert one.document()["recorded"]["waiting_for"] == "approval"
    assert one.document()["replayed"]["verdict"] == "act"
    assert replay.totals([one]) == {"recorded": {"wait": 1}, "replayed": {"act": 1}}


def test_what_was_known_of_the_node_then_counts() -> None:
    found = incident()
    for who in (
        scope(foreign_users=("the node",)),
        scope(ve_facts(hands_off=True)),
        scope(shared_with="it lies on NFS"),
        scope(beneath=(Layer(kind="device", name="/dev/sda", errors=3),)),
        scope(children=("/vz/child.raw",)),
    ):
        (one,) = replayed(AUTO, [document(found)], [recorded(found, AUTO, who)])
        assert not one.changed
        assert one.under_rules.verdict != Verdict.ACT
    disarm = Disarm(target="node", reason="storage move", by="root", until_ns=NOW_NS + 1)
    told = recorded(found, AUTO, disarms=(disarm,))
    (one,) = replayed(AUTO, [document(found)], [told])
    assert (one.changed, one.under_rules.waiting_for) == (False, "armed")


def test_labels_that_were_recorded_are_matched() -> None:
    gold = rules(ASK.replace("MODE", "auto").replace("mode", 'match.label.tier = "gold"\nmode'))
    found = incident()
    for tier, verdict in (("gold", "act"), ("silver", "none")):
        who = scope(ve_facts(labels={"tier": tier}))
        (one,) = replayed(gold, [document(found)], [recorded(found, APPROVE, who)])
        assert one.under_rules.verdict == verdict


def test_where_nothing_is_known_but_the_events_that_is_said() -> None:
    found = incident()
    (one,) = replayed(AUTO, [document(found)], [], usual_mode="auto")
    assert (one.assumed, one.recorded, one.changed) == (True, None, False)
    assert one.under_rules.verdict == "act"


def test_another_mode_of_the_node_can_be_tried() -> None:
    found = incident()
    told = recorded(found, AUTO, mode="observe")
    assert not replayed(AUTO, [document(found)], [told])[0].changed
    assert replayed(AUTO, [document(found)], [told], mode="auto")[0].changed


def test_a_threshold_counts_the_events_of_its_window() -> None:
    three = rules(ASK.replace("MODE", 'auto"\nthreshold = "3 in 10s'))
    found = incident()
    for gaps, verdict in (((0, 1, 2), "act"), ((0, 20, 40), "notify")):
        events = [document(found, at_s) for at_s in gaps]
        (one,) = replayed(three, events, [recorded(found, AUTO)])
        assert one.under_rules.verdict == verdict, gaps


def test_a_budget_is_waited_for_until_the_repair_before_has_ended() -> None:
    first = numbered(1)
    second = numbered(2, filesystem=filesystem(image="/vz/ve102.raw"))
    told = [{**recorded(one, AUTO), "took_s": 30.0} for one in (first, second)]
    found = replayed(AUTO, [document(first), document(second, 1)], told)
    assert [one.under_rules.verdict for one in found] == ["act", "act"]
    soon = {**told[1], "took_s": None, "closed": views.timestamp(NOW_NS + 20 * NS)}
    found = replayed(AUTO, [document(first), document(second, 1)], [told[0], soon])
    assert [one.under_rules.waiting_for for one in found] == ["", "budget"]


def test_a_cool_down_holds_for_the_same_volume() -> None:
    first, second = numbered(1), numbered(2)
    told = [
        {**recorded(first, AUTO), "took_s": 30.0},
        {**recorded(second, AUTO), "closed": views.timestamp(NOW_NS + 600 * NS)},
    ]
    found = replayed(AUTO, [document(first), document(second, 120)], told)
    assert [one.under_rules.waiting_for for one in found] == ["", "approval"]
    calm = rules(ASK.replace("MODE", 'auto"\nflap = "0s'))
    found = replayed(calm, [document(first), document(second, 120)], told)
    assert [one.under_rules.waiting_for for one in found] == ["", "cooldown"]


def test_what_comes_while_a_repair_is_watched_belongs_to_it() -> None:
    """What the rule calls healthy decides: a minute is over then, ten minutes are not."""
    first, second, other = numbered(1), numbered(2), numbered(3, filesystem=filesystem(image="/b"))
    told = [{**recorded(one, AUTO), "took_s": 30.0} for one in (first, second, other)]
    events = [document(first), document(second, 120), document(other, 121)]
    free = ASK.replace("MODE", 'auto"\nflap = "0s').replace('"1h"', '"0s"')
    minute, ten = rules(free), rules(free.replace("cooldown", 'healthy = "10m"\ncooldown'))
    assert [one.under_rules.verdict for one in replayed(minute, events, told)] == ["act"] * 3
    found = replayed(ten, events, told)
    assert [one.under_rules.verdict for one in found] == ["act", "none", "act"]
    assert found[1].reason.startswith(f"{first.incident_id}, repaired, would still be watched")


def test_a_repair_that_failed_then_fails_and_makes_the_cool_down_longer() -> None:
    free = rules(ASK.replace("MODE", 'auto"\nflap = "0s').replace('"1h"', '"10m"'))
    found = [numbered(n) for n in range(3)]
    events = [document(one, n * 900) for n, one in enumerate(found)]
    told = [{**recorded(one, free), "took_s": 30.0} for one in found]
    until = {"closed": views.timestamp(NOW_NS + 2700 * NS), "took_s": None}
    told[2] = {**told[2], **until}
    assert [one.under_rules.verdict for one in replayed(free, events, told)] == ["act"] * 3
    told[0]["failed"] = told[1]["failed"] = True
    # After two failures 40 minutes: the third had ended by itself long before.
    wanted = [("act", ""), ("act", ""), ("wait", "cooldown")]
    found = replayed(free, events, told)
    outlines = [(one.under_rules.verdict, one.under_rules.waiting_for) for one in found]
    assert outlines == wanted


STORM = """
[storm]
ves = 2
window = "10m"
resume = "RESUME"
"""


def many(number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """So many VEs on one disk, each with a fault, ten seconds apart; and what was decided then."""
    events, told = [], []
    for n in range(number):
        image = filesystem(image=f"/vz/ve{n}.raw")
        found = numbered(n, ves=(f"lxc:ve{n}",), filesystem=image, stack=())
        who = scope(ve_facts(ve_id=f"lxc:ve{n}", name=f"ve{n}"))
        events.append(document(found, n * 10))
        told.append({**recorded(found, AUTO, who), "took_s": 5.0})
    return events, told


def test_a_storm_holds_what_comes_until_nothing_fails_any_more() -> None:
    events, told = many(5)
    calm = replay.replay(AUTO, events, told)
    assert ([one.under_rules.verdict for one in calm.incidents], calm.storms) == (["act"] * 5, [])
    for resume, waits in (("operator", True), ("30m", False)):
        stormy = rules(STORM.replace("RESUME", resume) + ASK.replace("MODE", "auto"))
        past = replay.replay(stormy, events, told)
        held = ["storm" if waits else ""] * 3
        assert [one.under_rules.waiting_for for one in past.incidents] == ["", "", *held]
        (storm,) = past.storms
        assert storm.ves == ("lxc:ve0", "lxc:ve1", "lxc:ve2")
        assert (storm.ended_ns is None) is waits
    # Nobody had told of it then: that is a difference.
    assert past.incidents[0].changed is False


def test_a_storm_by_the_share_of_the_nodes_ves_asks_how_many_there_were() -> None:
    share = rules(
        STORM.replace("ves = 2", 'share = "10%"').replace("RESUME", "operator")
        + ASK.replace("MODE", "auto")
    )
    events, told = many(5)
    assert replay.replay(share, events, told).storms
    for one in told:
        one["decided"]["node_ves"] = 100
    assert replay.replay(share, events, told).storms == []


def test_those_beneath_which_something_is_unwell_are_no_storm() -> None:
    stormy = rules(STORM.replace("RESUME", "30m") + ASK.replace("MODE", "auto"))
    events, told = many(5)
    disk = scope(beneath=(Layer(kind="device", name="/dev/sda", errors=3),))
    for one in told:
        one["decided"]["scope"]["beneath"] = recorded(incident(), AUTO, disk)["decided"]["scope"][
            "beneath"
        ]
    assert replay.replay(stormy, events, told).storms == []


def test_a_ve_with_many_faults_does_not_go_before_another_ones_first() -> None:
    """One at a time: `a` has three faults, then `b` has one. It is the second to be repaired."""
    one = rules(ASK.replace("MODE", "auto").replace('"1h"', '"0s"'))
    events, told = [], []
    for n, ve in enumerate("aaab"):
        image = filesystem(image=f"/vz/{n}.raw")
        found = numbered(n, ves=(f"lxc:{ve}",), filesystem=image)
        events.append(document(found, n))
        who = scope(ve_facts(ve_id=f"lxc:{ve}", name=ve))
        # All had ended by themselves after 100 s, but for those that are repaired: 40 s each.
        told.append({**recorded(found, one, who), "took_s": 40.0})
    for entry in told[1:]:
        entry.update(took_s=None, closed=views.timestamp(NOW_NS + 60 * NS))
    found = replayed(one, events, told)
    assert [x.under_rules.verdict for x in found] == ["act", "wait", "wait", "act"]


def test_a_daemon_that_did_not_trust_itself_is_replayed_as_one() -> None:
    found = incident()
    told = recorded(found, AUTO, distrust="kmsg is deaf")
    assert replayed(AUTO, [document(found)], [told])[0].under_rules.verdict == "notify"
    (one,) = replayed(AUTO, [document(found)], [told], mode="auto")
    assert one.under_rules.verdict == "act"


def test_what_had_ended_by_itself_is_not_repaired_afterwards() -> None:
    first, second = numbered(1), numbered(2)
    told = [
        {**recorded(first, AUTO), "took_s": 30.0},
        {**recorded(second, AUTO), "closed": views.timestamp(NOW_NS + 10 * NS)},
    ]
    found = replayed(AUTO, [document(first), document(second, 1)], told)
    assert [one.under_rules.verdict for one in found] == ["act", "wait"]
    assert found[1].under_rules.waiting_for == "budget"


def test_events_that_are_no_problem_or_belong_to_no_incident_decide_nothing() -> None:
    found = incident()
    events = [document(found, klass="corrected"), {**document(found), "incident": None}]
    assert replayed(AUTO, events, []) == []


def test_twice_is_the_same() -> None:
    events = [document(numbered(n % 7), n) for n in range(100)]
    told = [recorded(numbered(n), APPROVE) for n in range(7)]
    first = [one.document() for one in replayed(AUTO, events, told)]
    assert [one.document() for one in replayed(AUTO, events, told)] == first


def test_a_request_of_a_person_is_replayed_as_one() -> None:
    found = incident(requested_by="root")
    (one,) = replayed(APPROVE, [document(found)], [recorded(found, APPROVE)])
    assert one.under_rules.verdict == "act"
