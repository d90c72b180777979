"""Recorded events: the same rules decide the same, other rules show as a difference."""

from __future__ import annotations

from typing import Any

from fswatchd import decisions, policy, replay, views
from fswatchd.cause import Layer
from fswatchd.incidents import Incident
from fswatchd.policy import Verdict
from fswatchd.rules import RuleSet
from fswatchd.situation import Disarm, Scope
from fswatchd.store import StoredEvent
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


def numbered(number: int, **more: Any) -> Incident:
    return incident(incident_id=f"20261121-{number:05}", **more)


def test_the_same_rules_decide_the_same() -> None:
    found = incident()
    (one,) = replay.replay(APPROVE, [document(found)], [recorded(found, APPROVE)])
    assert not one.changed
    assert one.under_rules.verdict == Verdict.WAIT
    assert one.under_rules.waiting_for == "approval"


def test_other_rules_show_as_a_difference() -> None:
    found = incident()
    (one,) = replay.replay(AUTO, [document(found)], [recorded(found, APPROVE)])
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
        (one,) = replay.replay(AUTO, [document(found)], [recorded(found, AUTO, who)])
        assert not one.changed
        assert one.under_rules.verdict != Verdict.ACT
    disarm = Disarm(target="node", reason="storage move", by="root", until_ns=NOW_NS + 1)
    told = recorded(found, AUTO, disarms=(disarm,))
    (one,) = replay.replay(AUTO, [document(found)], [told])
    assert (one.changed, one.under_rules.waiting_for) == (False, "armed")


def test_labels_that_were_recorded_are_matched() -> None:
    gold = rules(ASK.replace("MODE", "auto").replace("mode", 'match.label.tier = "gold"\nmode'))
    found = incident()
    for tier, verdict in (("gold", "act"), ("silver", "none")):
        who = scope(ve_facts(labels={"tier": tier}))
        (one,) = replay.replay(gold, [document(found)], [recorded(found, APPROVE, who)])
        assert one.under_rules.verdict == verdict


def test_where_nothing_is_known_but_the_events_that_is_said() -> None:
    found = incident()
    (one,) = replay.replay(AUTO, [document(found)], [], usual_mode="auto")
    assert (one.assumed, one.recorded, one.changed) == (True, None, False)
    assert one.under_rules.verdict == "act"


def test_another_mode_of_the_node_can_be_tried() -> None:
    found = incident()
    told = recorded(found, AUTO, mode="observe")
    assert not replay.replay(AUTO, [document(found)], [told])[0].changed
    assert replay.replay(AUTO, [document(found)], [told], mode="auto")[0].changed


def test_a_threshold_counts_the_events_of_its_window() -> None:
    three = rules(ASK.replace("MODE", 'auto"\nthreshold = "3 in 10s'))
    found = incident()
    for gaps, verdict in (((0, 1, 2), "act"), ((0, 20, 40), "notify")):
        events = [document(found, at_s) for at_s in gaps]
        (one,) = replay.replay(three, events, [recorded(found, AUTO)])
        assert one.under_rules.verdict == verdict, gaps


def test_a_budget_is_waited_for_until_the_repair_before_has_ended() -> None:
    first = numbered(1)
    second = numbered(2, filesystem=filesystem(image="/vz/ve102.raw"))
    told = [{**recorded(one, AUTO), "took_s": 30.0} for one in (first, second)]
    found = replay.replay(AUTO, [document(first), document(second, 1)], told)
    assert [one.under_rules.verdict for one in found] == ["act", "act"]
    soon = {**told[1], "took_s": None, "closed": views.timestamp(NOW_NS + 20 * NS)}
    found = replay.replay(AUTO, [document(first), document(second, 1)], [told[0], soon])
    assert [one.under_rules.waiting_for for one in found] == ["", "budget"]


def test_a_cool_down_holds_for_the_same_volume() -> None:
    first, second = numbered(1), numbered(2)
    told = [
        {**recorded(first, AUTO), "took_s": 30.0},
        {**recorded(second, AUTO), "closed": views.timestamp(NOW_NS + 600 * NS)},
    ]
    found = replay.replay(AUTO, [document(first), document(second, 60)], told)
    assert [one.under_rules.verdict for one in found] == ["act", "wait"]


def test_what_had_ended_by_itself_is_not_repaired_afterwards() -> None:
    first, second = numbered(1), numbered(2)
    told = [
        {**recorded(first, AUTO), "took_s": 30.0},
        {**recorded(second, AUTO), "closed": views.timestamp(NOW_NS + 10 * NS)},
    ]
    found = replay.replay(AUTO, [document(first), document(second, 1)], told)
    assert [one.under_rules.verdict for one in found] == ["act", "wait"]
    assert found[1].under_rules.waiting_for == "budget"


def test_events_that_are_no_problem_or_belong_to_no_incident_decide_nothing() -> None:
    found = incident()
    events = [document(found, klass="corrected"), {**document(found), "incident": None}]
    assert replay.replay(AUTO, events, []) == []


def test_twice_is_the_same() -> None:
    events = [document(numbered(n % 7), n) for n in range(100)]
    told = [recorded(numbered(n), APPROVE) for n in range(7)]
    first = [one.document() for one in replay.replay(AUTO, events, told)]
    assert [one.document() for one in replay.replay(AUTO, events, told)] == first


def test_a_request_of_a_person_is_replayed_as_one() -> None:
    found = incident(requested_by="root")
    (one,) = replay.replay(APPROVE, [document(found)], [recorded(found, APPROVE)])
    assert one.under_rules.verdict == "act"
