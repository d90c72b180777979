"""A hypothetical event: the whole form, the smallest one, and what is wrong."""

from __future__ import annotations

import json

import pytest

from fswatchd import eventdoc, views
from fswatchd.errors import ConfigError
from fswatchd.events import EventClass, Severity
from fswatchd.store.store import StoredEvent
from tests.unit.builders import event


def test_what_events_prints_can_be_given_back() -> None:
    stored = StoredEvent(
        cursor=7, event=event(count=3), ves=("lxc:ve101",), incident_id="20261121-abcde"
    )
    found = eventdoc.parse(json.dumps(views.stored_event(stored)), "e.json")
    kept = found.event
    assert (kept.klass, kept.count, kept.fstype) == (EventClass.CORRUPTION, 3, "ext4")
    assert (kept.devno, kept.confirms) == (event().devno, True)
    assert found.time_ns == event().time_ns
    assert [(ve.ve_id, ve.name, ve.platform) for ve in found.ves] == [("lxc:ve101", "ve101", "lxc")]
    assert found.assumed == ()


def test_a_class_is_enough_and_what_is_assumed_is_said() -> None:
    found = eventdoc.parse('{"class": "corruption"}', "e.json")
    assert found.event.severity is Severity.CRITICAL
    assert found.event.confirms
    assert [text.partition(":")[0] for text in found.assumed] == [
        "severity", "confirms", "source", "count", "fstype", "device", "ves",
    ]  # fmt: skip


def test_labels_can_be_given_with_a_ve() -> None:
    ve = {"id": "lxc:ve101", "labels": {"tier": "gold"}}
    (found,) = eventdoc.of({"class": "corruption", "ves": [ve]}).ves
    assert (found.ve_id, dict(found.labels)) == ("lxc:ve101", {"tier": "gold"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("{}", '"class" is missing'),
        ('{"class": "corruption", "clas": 1}', 'did you mean "class"?'),
        ('{"class": "broken"}', "e.json: class: no class is called 'broken'"),
        ('{"class": "corruptio"}', "'corruptio'; did you mean \"corruption\"?"),
        ('{"class": "corruption", "severity": "bad"}', "severity: no severity is called 'bad'"),
        ('{"class": "corruption", "count": "3"}', "count:"),
        ('{"class": "corruption", "count": -1}', "count:"),
        ('{"class": "corruption", "devno": "loop0"}', "devno:"),
        ('{"class": "corruption", "time": "2026-11-21T02:00:00"}', "time with its zone"),
        ('{"class": "corruption", "time": "tomorrow"}', "time:"),
        ('{"class": "corruption", "ves": [{"id": "a", "label": {}}]}', '"label"'),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        eventdoc.parse(text, "e.json")
    assert said in caught.value.message
    assert caught.value.message.startswith("e.json")
    assert caught.value.code == "FSW-EVENT-FILE"


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        eventdoc.of({"class": "x", "nonsense": 1, "count": None})
    assert len(caught.value.message.splitlines()) == 3
