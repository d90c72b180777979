from __future__ import annotations

from dataclasses import replace

from fswatchd import views
from fswatchd.api import prose
from tests.unit.builders import NOW_NS, event, filesystem, incident


def test_times_are_rfc_3339_in_utc() -> None:
    assert views.timestamp(1_795_242_959_774_716_696) == "2026-11-21T06:35:59.774716Z"
    assert views.timestamp(None) is None


def test_an_incident_has_the_keys_that_scripts_rely_on() -> None:
    document = views.incident(incident())
    assert set(document) >= {
        "id", "class", "severity", "confirmed", "state", "outcome", "node", "ves", "filesystem",
        "cause", "sources", "events", "rule", "steps", "opened", "updated", "closed",
    }  # fmt: skip
    assert document["class"] == "corruption"
    assert document["severity"] == "critical"


def test_what_a_tenant_chose_is_escaped_in_json_and_prose() -> None:
    hostile = filesystem(mountpoints=("/a\x1b[2J\nb",), image="/vz/\x1b[31m.raw")
    found = replace(incident(), filesystem=hostile)
    assert "\x1b" not in str(views.incident(found)["filesystem"]["mountpoints"][0])
    assert "\x1b" not in prose.why(found)


def test_why_names_witnesses_guards_and_what_happened() -> None:
    found = incident(event("fanotify"), event("kmsg"))
    found = replace(found, rule="r", guards=(("scope", False, "two VEs share it"),))
    text = prose.why(found.noted(NOW_NS, "something was done"))
    for part in ("2 independent witnesses", "NO  scope", "two VEs share it", "something was done"):
        assert part in text
