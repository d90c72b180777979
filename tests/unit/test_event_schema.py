"""The published schema says what the code serves, no more and no less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fswatchd import config, views
from fswatchd.devno import Devno
from fswatchd.events import EventClass, FsEvent, Severity, printable
from fswatchd.store.store import StoredEvent
from tests.schema import EVENT, GAP, SCHEMA, problems
from tests.unit.builders import event

DOC = Path(__file__).parents[2] / "docs" / "events.md"


def document(found: FsEvent | None = None, **more) -> dict:
    values = {"cursor": 7, "ves": ("lxc:ve101",), "incident_id": None, "stored_ns": 1}
    return views.stored_event(StoredEvent(event=found or event(), **(values | more)))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_version_and_id_are_those_of_the_code() -> None:
    assert SCHEMA["$defs"]["schema"]["const"] == views.EVENT_SCHEMA
    assert SCHEMA["$id"].endswith(f":{views.EVENT_SCHEMA}")


def test_keys_are_exactly_those_of_an_event() -> None:
    assert list(document()) == EVENT["required"]
    assert set(document()) == set(EVENT["properties"])


def test_closed_sets_are_those_of_the_code() -> None:
    properties = EVENT["properties"]
    assert properties["class"]["enum"] == [klass.value for klass in EventClass]
    assert properties["severity"]["enum"] == [severity.label for severity in Severity]
    assert set(properties["source"]["enum"]) == set(config.SourcesTable.model_fields)


@given(
    klass=st.sampled_from(EventClass),
    severity=st.sampled_from(Severity),
    source=st.sampled_from(sorted(config.SourcesTable.model_fields)),
    errno=st.none() | st.integers(1, 133),
    device=st.none() | st.text(max_size=20).map(printable),
    detail=st.text().map(printable),
    devno=st.none() | st.builds(Devno, st.integers(0, 4095), st.integers(0, 1 << 20)),
    count=st.integers(1, 1 << 40),
    ves=st.lists(st.sampled_from(["lxc:ve101", "declared:a b"]), unique=True).map(tuple),
    stored_ns=st.sampled_from([0, 1, 10**18]),
)
def test_whatever_a_source_hears_fits(klass, ves, stored_ns, **values) -> None:
    found = document(event(klass=klass.value, **values), ves=ves, stored_ns=stored_ns)
    assert problems(json.loads(json.dumps(found))) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"class": "broken"},
        {"severity": 3},
        {"time": "yesterday"},
        {"ves": "lxc:ve101"},
        {"detail": "a\x1b[2Jb"},
        {"cursor": 0},
        {"schema": 2},
        {"errno": -5},
    ],
)
def test_what_is_no_event_does_not_fit(broken: dict) -> None:
    assert problems(document() | broken)


@pytest.mark.parametrize("key", EVENT["required"])
def test_every_key_is_needed(key: str) -> None:
    found = document()
    del found[key]
    assert problems(found)


def test_what_was_not_stored_says_so() -> None:
    found = document(stored_ns=0)
    assert found["stored"] is None
    assert problems(found) == []


@pytest.mark.parametrize("count", [None, 5])
def test_gaps_fit(count: int | None) -> None:
    for reason in GAP["properties"]["gap"]["properties"]["reason"]["enum"]:
        assert problems(views.gap(3, 8, count, reason)) == []
    assert problems(views.gap(3, 8, count, "because"))


def test_both_ways_to_a_document_agree() -> None:
    stored = StoredEvent(cursor=7, event=event(), ves=("lxc:a",), incident_id="i", stored_ns=5)
    row = {
        "id": 7, "time_ns": stored.event.time_ns, "source": "fanotify", "class": "corruption",
        "severity": "critical", "device": "loop3", "devno": "7:3", "fstype": "ext4",
        "errno": None, "count": 1, "confirms": 1, "detail": "something happened",
        "ves": '["lxc:a"]', "incident": "i", "record": None, "stored_ns": 5,
    }  # fmt: skip
    assert views.event_row(row, ["lxc:a"]) == views.stored_event(stored)
    assert views.stored_event(replace(stored, stored_ns=0))["stored"] is None


def test_the_manual_for_programmers_names_every_key_and_every_word() -> None:
    text = DOC.read_text(encoding="utf-8")
    words = [*EVENT["properties"], *GAP["properties"]["gap"]["properties"]]
    for node in (EVENT["properties"], GAP["properties"]["gap"]["properties"]):
        for value in node.values():
            words += value.get("enum", [])
    missing = [word for word in words if f"`{word}`" not in text]
    assert not missing
    assert SCHEMA["$id"] in text
