"""An incident in a few sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd import summary
from fswatchd.api import prose
from fswatchd.events import Domain
from fswatchd.incidents import Incident, Outcome, State
from tests.unit.builders import NOW_NS, event, filesystem, incident, lost_write


def test_files_that_have_lost_data_are_named_with_what_the_kernel_has_told() -> None:
    found = incident()
    for lost in (
        lost_write(inode=12, size=4096, offset=0),
        lost_write(inode=12, size=8192, offset=4096),
        lost_write(inode=13, blocks=2048),
        lost_write(inode=14),
    ):
        found = found.joined(event("kmsg", "data_loss", lost=lost), NOW_NS)
    story = prose.why(found)
    for line in (
        "data of files of lxc:ve101",
        "inode 12, at most 12 KiB, from byte 0 on",
        "inode 13, at most 2048 blocks",
        "inode 14\n",
        "debugfs -R 'ncheck INODE' /dev/loop3",
        "Data of 3 files was lost and cannot be brought back",
    ):
        assert line in story
    assert [(file.inode, file.count) for file in found.lost] == [(12, 2), (13, 1), (14, 1)]


def test_where_the_kernel_names_no_file_that_is_said_too() -> None:
    cause = {"kind": "space", "object": "xfs /vz (loop0)", "text": "it is full", "since": "now"}
    found = incident(event("state", "readonly"), cause=cause)
    assert "it does not say of which files" in prose.why(found)
    assert "Lost" not in prose.why(incident(event("state", "readonly")))


def test_lost_data_does_not_hide_what_can_be_repaired_when_there_is_room_again() -> None:
    cause = {"kind": "space", "object": "xfs /vz (loop0)", "text": "it is full"}
    cause["until"] = "2100-01-01T00:00:00Z"
    events = (event("kmsg", "io_error"), event("kmsg", "data_loss"), event("state", "readonly"))
    assert incident(*events, cause=cause).klass_of_its_own == "readonly"
    assert incident(*events[:2], cause=cause).klass_of_its_own == "data_loss"


def test_a_repair_that_somebody_asked_for_is_no_fault() -> None:
    asked = Incident(
        incident_id="20261121-abcde",
        node="hn1",
        domain=Domain.DAMAGE,
        filesystem=filesystem(),
        opened_ns=NOW_NS,
        updated_ns=NOW_NS,
        ves=("lxc:ve101",),
        requested_by="root",
        state=State.ACTING,
    )
    said = "root asked for a repair of /dev/loop3 of lxc:ve101; no source has heard an error of it."
    assert summary.of(asked) == f"{said} It is being repaired."
    heard = asked.joined(event(), NOW_NS)
    assert "asked for" not in summary.of(heard)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"state": State.NEEDS_OPERATOR}, "It needs you"),
        ({"state": State.WAITING, "waiting_for": "approval"}, "fswatch approve 20261121-abcde"),
        ({"state": State.CLOSED, "outcome": Outcome.RECOVERED}, "well again without a repair"),
    ],
)
def test_it_ends_with_what_happens_next(more, said: str) -> None:
    assert said in summary.sentences(replace(incident(), **more))[-1]


def test_an_incident_of_the_node_says_how_many_rest_on_it() -> None:
    ves = tuple(f"lxc:ve{number}" for number in range(200))
    found = replace(incident(), ves=ves, through=ves, consequences=("one", "two"))
    said = summary.of(found)
    assert "of this node is damaged." in said
    assert "200 VEs rest on it: lxc:ve0, " in said
    assert "and 192 more" in said
    assert "2 incidents came of it" in said


def test_a_device_that_others_rest_on_is_at_fault_itself() -> None:
    device = filesystem(fstype=None, device="sda", image=None)
    lost = incident(event("state", "device_lost", fstype=None), filesystem=device, ves=())
    assert summary.of(lost).startswith("/dev/sda of this node is gone, or does not run.")
    above = incident(event("state", "device_lost"))
    assert "has lost the device beneath it" in summary.of(above)


def test_a_question_says_what_a_yes_would_do() -> None:
    asking = incident(state=State.WAITING, waiting_for="approval")
    seen = {"would_do": "204 problems fixed", "seconds": 1.5}
    assert "would do" not in summary.of(asking)
    assert "would do" not in summary.of(replace(asking, preview={}))
    shown = summary.of(replace(asking, preview=seen))
    assert "A repair would do: 204 problems fixed; writers would wait about 1.5 s." in shown
    assert "would do" not in summary.of(replace(asking, state=State.ACTING, preview=seen))


def a_storm(state: State, outcome: Outcome | None = None) -> Incident:
    ves = ("lxc:ve1", "lxc:ve2", "lxc:ve3")
    return replace(
        incident(), domain=Domain.STORM, ves=ves, through=ves, state=state, outcome=outcome
    )


def test_a_storm_says_what_ends_it() -> None:
    found = a_storm(State.NEEDS_OPERATOR)
    who = "3 VEs have failed at once (lxc:ve1, lxc:ve2, lxc:ve3)"
    whole = f"{who}: nothing is repaired until it ends."
    assert summary.sentences(found) == [whole, f"It ends with fswatch ack {found.incident_id}."]
    found = a_storm(State.OPEN)
    by_itself = f"ack {found.incident_id}, or by itself where resume of [storm] is a time."
    assert summary.of(found).endswith(by_itself)


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [
        (Outcome.RECOVERED, "It is well again without a repair."),
        (Outcome.DISMISSED, "It was closed without a repair."),
    ],
)
def test_a_storm_that_is_over_is_told_as_such(outcome: Outcome, ended: str) -> None:
    assert summary.sentences(a_storm(State.CLOSED, outcome)) == [
        "3 VEs had failed at once (lxc:ve1, lxc:ve2, lxc:ve3): nothing was repaired meanwhile.",
        ended,
    ]
