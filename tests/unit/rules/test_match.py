"""Which incidents a `match` table is about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fswatchd.events import Severity
from fswatchd.rules import match
from fswatchd.rules.index import RuleIndex
from fswatchd.rules.match import DAY_S, Match, Subject, Window
from tests.unit.builders import ve_facts

USUAL: dict[str, Any] = {
    "klass": "corruption",
    "severity": Severity.CRITICAL,
    "fstype": "ext4",
    "node": "hn1",
    "role": "rootfs",
    "cause": "none",
    "confirmed": True,
    "ve_count": 1,
    "local_s": 12 * 3600,
    "ves": (ve_facts(labels={"tier": "gold"}),),
}


def matches(table: dict[str, Any], **more: Any) -> bool:
    index = RuleIndex([Match.model_validate(table)])
    return list(index.matching(Subject(**(USUAL | more)))) == [0]


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ({}, True),
        ({"role": "rootfs"}, True),
        ({"role": "data"}, False),
        ({"cause": "none"}, True),
        ({"cause": ["device", "space"]}, False),
        ({"ves": "1"}, True),
        ({"ves": ">= 2"}, False),
        ({"ves": "< 2"}, True),
        ({"confirmed": True}, True),
        ({"confirmed": False}, False),
        ({"during": "12:00-12:01"}, True),
        ({"during": ["01:00-02:00", "11:00-13:00"]}, True),
        ({"during": "12:01-12:00"}, False),
        ({"during": "00:00-24:00"}, True),
        ({"ve": "re:ve[0-9]+"}, True),
        ({"ve": "re:e10"}, False),
        ({"ve": ["x", "re:lxc:.*"]}, True),
        ({"any": [{"fstype": "xfs"}, {"label": {"tier": "gold"}}]}, True),
        ({"any": [{"fstype": "xfs"}, {"label": {"tier": "silver"}}]}, False),
        ({"all": [{"fstype": "ext4"}, {"ve": "ve*"}]}, True),
        ({"all": [{"fstype": "ext4"}, {"ve": "db*"}]}, False),
        ({"not": {"fstype": "xfs"}}, True),
        ({"not": {"ve": "ve101"}}, False),
        ({"not": [{"fstype": "xfs"}, {"severity": "critical"}]}, False),
        ({"not": {"any": [{"fstype": "xfs"}, {"not": {"role": "rootfs"}}]}}, True),
        ({"fstype": "ext4", "not": {"label": {"tier": "gold"}}}, False),
    ],
)
def test_each_key(table: dict[str, Any], wanted: bool) -> None:
    assert matches(table) is wanted


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("proxmox:101", True),
        ("lxc:101", True),
        ("lxc:*", True),
        ("re:lxc:[0-9]+", True),
        ("101", True),
        ("10?", False),
        ("102", False),
        ("lxc:102", False),
        ("incus:*", False),
    ],
)
def test_a_ve_is_asked_for_by_any_of_its_ids(pattern: str, wanted: bool) -> None:
    known = ve_facts(ve_id="proxmox:101", name="web", platform="proxmox", aliases=("lxc:101",))
    assert matches({"ve": pattern}, ves=(known,)) is wanted
    assert matches({"not": {"ve": pattern}}, ves=(known,)) is not wanted


@pytest.mark.parametrize("name", ["ve101", "101"])
@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("101", True),
        ("ve101", True),
        ("lxc:101", True),
        ("lxc:ve101", True),
        ("incus:101", False),
        ("1", False),
        ("veve101", False),
    ],
)
def test_a_number_is_written_with_or_without_ve_as_in_commands(
    name: str, pattern: str, wanted: bool
) -> None:
    known = ve_facts(ve_id=f"lxc:{name}", name=name)
    assert matches({"ve": pattern}, ves=(known,)) is wanted
    assert matches({"not": {"ve": pattern}}, ves=(known,)) is not wanted


def test_a_glob_is_asked_about_what_a_ve_is_called() -> None:
    assert not matches({"ve": "10?"}, ves=(ve_facts(ve_id="lxc:ve101", name="ve101"),))
    assert not matches({"ve": "veb*"}, ves=(ve_facts(ve_id="lxc:b1", name="b1"),))


def test_with_several_ves_each_must_match_also_in_groups() -> None:
    ves = (ve_facts(labels={"tier": "gold"}), ve_facts(ve_id="lxc:b", name="b"))
    assert not matches({"label": {"tier": "gold"}}, ves=ves)
    assert not matches({"not": {"label": {"tier": "gold"}}}, ves=ves)
    assert matches({"any": [{"label": {"tier": "gold"}}, {"ve": "b"}]}, ves=ves)


def test_what_belongs_to_no_ve_matches_no_rule_for_ves() -> None:
    for table in ({"ve": "ve*"}, {"platform": "lxc"}, {"label": {"tier": "*"}}):
        assert not matches(table, ves=())
    assert matches({"ve": "*", "platform": "*"}, ves=())


def test_an_unknown_time_of_day_is_in_no_window() -> None:
    assert not matches({"during": "00:00-24:00"}, local_s=None)


def test_a_name_that_would_keep_a_backtracking_matcher_for_ever_is_no_match_at_once() -> None:
    assert not matches({"ve": "re:(a+)+b"}, ves=(ve_facts(name="a" * 10_000, ve_id="a"),))


TIME = st.integers(0, DAY_S - 1)


@settings(deadline=None)
@given(begin=TIME, end=TIME, now=TIME)
def test_a_window_changes_at_its_next_border_and_not_before(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    window = Window(begin, end)
    left = window.next_border_s(now)
    assert 0 < left <= DAY_S
    assert window.holds((now + left) % DAY_S) is not window.holds((now + left - 1) % DAY_S)
    assert window.holds((now + left - 1) % DAY_S) is window.holds(now)
    assert window.holds(begin)
    assert not window.holds(end)


NAMES = st.sampled_from(
    ["a", "b", "a*", "?", "*", "re:[ab]+", "lxc:a", "lxc:*", "[ab]b", "7", "ve7"]
)
TABLES = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "class": st.sampled_from(["corruption", "readonly", "*"]),
            "severity": st.sampled_from([">= error", "warning"]),
            "fstype": st.sampled_from(["ext4", "xfs", "ext?"]),
            "ve": st.lists(NAMES, min_size=1, max_size=3),
            "platform": st.sampled_from(["lxc", "docker", "*"]),
            "label": st.dictionaries(st.sampled_from(["x", "y"]), NAMES, max_size=2),
            "role": st.sampled_from(["rootfs", "data"]),
            "confirmed": st.booleans(),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "ve": NAMES,
            "any": st.lists(inner, min_size=1, max_size=3),
            "all": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    ),
    max_leaves=6,
)
VES = st.lists(
    st.builds(
        lambda name, platform, labels: ve_facts(
            ve_id=f"{platform}:{name}", name=name, platform=platform, labels=labels
        ),
        st.sampled_from(["a", "b", "ab", "7", "ve7"]),
        st.sampled_from(["lxc", "docker"]),
        st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["a", "b", ""])),
    ),
    max_size=2,
)


@settings(max_examples=300, deadline=None)
@given(
    tables=st.lists(TABLES, min_size=1, max_size=6),
    ves=VES,
    klass=st.sampled_from(["corruption", "readonly"]),
    severity=st.sampled_from(list(Severity)),
    role=st.sampled_from(["rootfs", "data", ""]),
)
def test_the_index_finds_what_asking_each_rule_finds(
    tables: list[dict[str, Any]], ves: list[Any], klass: str, severity: Severity, role: str
) -> None:
    rules = [Match.model_validate(table) for table in tables]
    more = {"ves": tuple(ves), "klass": klass, "severity": severity, "role": role}
    subject = Subject(**(USUAL | more))
    asked = [
        place
        for place, rule in enumerate(rules)
        if all(match.whole(rule)(subject, ve) for ve in (ves or [None]))
    ]
    index = RuleIndex(rules)
    assert list(index.matching(subject)) == asked
    assert list(index.matching(subject)) == asked  # also from what it has kept
