"""The scenarios of tests/scenarios, and what must hold whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fswatchd import guards, policy, situation, storm
from fswatchd.engine.history import History
from fswatchd.guards import GuardAnswer
from fswatchd.incidents import Incident, Load
from fswatchd.policy import Decision
from fswatchd.situation import Disarm
from tests import simulator
from tests.simulator import Simulator

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def scenarios() -> Iterator[Any]:
    for path in sorted(SCENARIOS.glob("*.toml")):
        for document in simulator.load(path):
            yield pytest.param(document, id=f"{path.stem}-{document['name']}")


ALL = list(scenarios())


@pytest.mark.parametrize("document", ALL)
def test_what_is_expected_is_decided(document: dict[str, Any]) -> None:
    assert Simulator(document).play() == simulator.wanted(document)


def test_there_are_enough_and_each_says_what_it_expects() -> None:
    assert len(ALL) >= 60
    assert not [one.id for one in ALL if len(one.values[0]["expect"].split()) < 5]


@pytest.mark.parametrize("document", ALL)
def test_the_same_input_gives_the_same_log(document: dict[str, Any]) -> None:
    assert Simulator(document).play() == Simulator(copy.deepcopy(document)).play()


@pytest.mark.parametrize("document", ALL)
def test_a_restart_at_any_point_changes_no_decision(document: dict[str, Any]) -> None:
    """A millisecond after each thing that happens, and once a quarter of an hour later."""
    for place in range(len(document["do"])):
        moved = copy.deepcopy(document)
        at = moved["do"][place]["at"]
        for later in ("1ms", "15m"):
            again = {**moved, "do": [*moved["do"], {"at": f"{at}{later}", "restart": True}]}
            assert Simulator(again).play() == simulator.wanted(document), (at, later)


def passed(rule: Any, incident: Any, scope: Any, state: Any, now_ns: int) -> GuardAnswer:
    return GuardAnswer(guard="forced", passed=True, text="forced to pass")


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
def test_a_guard_that_lets_everything_pass_breaks_a_scenario(
    guard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutated = tuple(passed if one is guard else one for one in guards.GUARDS)
    monkeypatch.setattr(policy, "GUARDS", mutated)
    broken = [one.id for one in ALL if _differs(one.values[0])]
    assert broken


MUTATIONS: dict[str, tuple[object, str, Any]] = {
    "an approval holds for ever": (guards, "_approved", lambda *_: (True, "")),
    "an approval never holds": (guards, "_approved", lambda *_: (False, "")),
    "a failure makes no cool-down longer": (guards, "cooldown_s", lambda rule, _: rule.cooldown),
    "no budget is ever full": (guards, "full", lambda *_: None),
    "nobody is ahead": (guards, "_ahead", lambda *_: None),
    "errors are never too old": (
        guards,
        "_most_errors",
        lambda incident, *_: incident.events,
    ),
    "a label disarms nobody": (
        Disarm,
        "holds",
        lambda self, ves: self.target in {"node", *(ve.ve_id for ve in ves)},
    ),
    "owners wish in vain": (situation, "wish", lambda _: None),
    "windows open unnoticed": (policy, "_next_border_s", lambda *_: None),
    "nothing rests on what is unwell": (guards, "blame", lambda _: None),
    "a storm never breaks out": (storm, "breaks_out", lambda *_: False),
    "a storm ends at once": (storm, "over_after_s", lambda *_: 0.0),
    "a failure counts for ever": (storm, "failing", lambda _, failed, __: tuple(failed)),
    "a turn that was had is forgotten": (History, "begun", lambda *_: None),
    "another boot's clock is taken for this one's": (
        Incident,
        "on_clock",
        lambda incident, *_: incident,
    ),
    "another boot's stamps are taken for this one's": (
        History,
        "here",
        lambda _, stamp: int(stamp["boottime_ns"]),
    ),
    "a repair is not remembered": (History, "repaired", lambda *_: None),
    "a plan is not remembered": (History, "acted", lambda *_, **__: None),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_what_else_decides_is_missed_by_a_scenario_when_it_is_wrong(
    mutation: tuple[object, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*mutation)
    assert any(_differs(one.values[0]) for one in ALL)


def _differs(document: dict[str, Any]) -> bool:
    try:
        return Simulator(document).play() != simulator.wanted(document)
    except Exception:  # noqa: BLE001 - a simulation that falls over has noticed it too
        return True


# --- what must hold whatever happens ------------------------------------------------------------

RULES = """
[storm]
ves = 3
resume = "30m"
[[rule]]
name = "night"
match.during = "20:00-06:00"
mode = "auto"
budget = { node = 2, device = 1 }
cooldown = "5m"
[[rule.step]]
do = "snapshot"
[[rule.step]]
do = "fsck"
[[rule]]
name = "day"
mode = "approve"
budget = { node = 2, device = 1 }
[[rule.step]]
do = "fsck"
"""
DISKS = {"sda": ["a", "b"], "sdb": ["c", "d"], "sdc": ["e"]}
VES = st.sampled_from("abcde")
AT = st.integers(0, 300).map(lambda minutes: f"{minutes}m")
TARGETS = st.one_of(VES, st.sampled_from(["node", "tier=gold"]))
DONE = st.one_of(
    st.fixed_dictionaries(
        {
            "at": AT,
            "fault": VES,
            "volume": st.sampled_from(["root", "data"]),
            "source": st.sampled_from(["fanotify", "kmsg"]),
        }
    ),
    st.fixed_dictionaries({"at": AT, "approve": VES}),
    st.fixed_dictionaries({"at": AT, "ack": st.one_of(VES, st.just("storm"))}),
    st.fixed_dictionaries({"at": AT, "request": VES}),
    st.fixed_dictionaries({"at": AT, "disarm": TARGETS}),
    st.fixed_dictionaries({"at": AT, "arm": TARGETS}),
    st.fixed_dictionaries({"at": AT, "doubt": st.sampled_from(["kmsg is deaf", ""])}),
    st.fixed_dictionaries({"at": AT, "labels": VES, "told": st.booleans()}),
    st.fixed_dictionaries({"at": AT, "label": VES, "tier": st.sampled_from(["gold", "silver"])}),
    st.fixed_dictionaries({"at": AT, "restart": st.just(True)}),
    st.fixed_dictionaries({"at": AT, "clock": st.sampled_from(["+1d", "-1d", "+7h"])}),
    st.fixed_dictionaries({"at": AT, "reboot": st.just("10m")}),
)


class Watched(Simulator):
    """Looks at each action at the moment when it begins."""

    def _act(self, found: Incident, decision: Decision, load: Load) -> None:
        assert len(self.plans) < 2, "more than the node's budget"
        disk = self._disk(found.ves[0].removeprefix("lxc:"))
        others = [self.incidents[one].load.devices for one in self.plans]
        assert not any(disk in devices for devices in others), "two on one disk"
        ves = self.scope(found).ves
        assert not any(one.holds(ves) for one in self.history.current_disarms()), "disarmed"
        by_hand = found.requested_by is not None
        assert by_hand or found.confirmed, "unconfirmed"
        assert by_hand or self.storm is None, "in a storm"
        assert by_hand or not self.distrust, "no trust"
        assert by_hand or ves[0].labels_known, "nobody knows what its owner wants"
        assert by_hand or self.node.mode != "observe", "wider than the node"
        rule = next((one for one in self.rules.rules if one.name == decision.rule), None)
        assert by_hand or self.node.mode != "shadow", "wider than the node"
        if not by_hand and (self.node.mode == "approve" or (rule and rule.mode == "approve")):
            assert found.approved_by, "nobody has approved"
        super()._act(found, decision, load)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    mode=st.sampled_from(["observe", "approve", "auto", "shadow"]),
    done=st.lists(DONE, min_size=1, max_size=25),
)
def test_nothing_is_done_without_budget_while_disarmed_or_wider_than_allowed(
    mode: str, done: list[dict[str, Any]]
) -> None:
    document = {"rules": RULES, "node": {"mode": mode, "disk": DISKS}, "do": done}
    watched = Watched(document)
    assert watched.play(3 * 86400.0) == Simulator(document).play(3 * 86400.0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(order=st.permutations(range(3)), data=st.data())
def test_the_order_of_unrelated_ves_does_not_matter(order: list[int], data: st.DataObject) -> None:
    """Each on a disk of its own, with room for all: what happens to one is told by it alone."""
    rules = RULES.replace("node = 2", "node = 9").replace("ves = 3", "ves = 9")
    disks = {"sda": ["a"], "sdb": ["b"], "sdc": ["c"]}
    steps = data.draw(
        st.lists(st.tuples(AT, st.sampled_from(["fault", "approve", "ack"])), max_size=8)
    )
    groups = [[{"at": at, verb: ve} for at, verb in steps] for ve in "abc"]
    straight = [entry for entries in zip(*groups, strict=True) for entry in entries]
    shuffled = [entries[i] for entries in zip(*groups, strict=True) for i in order]
    logs = []
    for done in (straight, shuffled):
        played = Simulator({"rules": rules, "node": {"disk": disks}, "do": done}).play(3 * 86400.0)
        logs.append({ve: [line for line in played if line.split()[1] == ve] for ve in "abc"})
    assert logs[0] == logs[1]


def test_fifty_damaged_ves_on_three_disks_are_repaired_one_a_disk_and_all_of_them() -> None:
    disks = {f"sd{n}": [f"ve{n}-{k}" for k in range(17 if n else 16)] for n in range(3)}
    rules = """
        [[rule]]
        name = "repair"
        mode = "auto"
        budget = { node = 3, device = 1 }
        [[rule.step]]
        do = "fsck"
    """
    many = {"rules": rules, "node": {"disk": disks}, "do": [{"at": "0s", "fault": "ve*"}]}
    log = Simulator(many).play()
    running: dict[str, str] = {}
    done = []
    for line in log:
        _, ve, what, *_ = line.split()
        if what == "act":
            assert running.setdefault(ve[:3], ve) == ve
        elif what == "repaired":
            done.append(running.pop(ve[:3]))
    assert sorted(done) == sorted(ve for ves in disks.values() for ve in ves)
    # A disk is never idle while one of its VEs waits: 17 repairs of ten minutes, and a healthy one.
    assert log[-1].split()[0] == "2h51m"
