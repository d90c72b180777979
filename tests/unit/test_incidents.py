from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Severity, worst_class
from fswatchd.incidents import RECENT_LIMIT
from tests.unit.builders import NOW_NS, event, filesystem, incident

_PROBLEMS = [klass for klass in EventClass if klass.is_problem]


def test_class_and_severity_do_not_depend_on_which_source_came_first() -> None:
    events = [
        event("kmsg", "readonly"),
        event("fanotify", "corruption"),
        event("state", "io_error"),
    ]
    results = {
        (found.klass, found.severity, found.confirmed, found.events)
        for order in permutations(events)
        for found in [incident(*order)]
    }
    assert results == {(EventClass.IO_ERROR, Severity.CRITICAL, True, 1)}


@given(st.lists(st.sampled_from(_PROBLEMS), min_size=1, max_size=6), st.randoms())
def test_any_order_of_classes_gives_the_same_class(classes: list[EventClass], random) -> None:
    shuffled = list(classes)
    random.shuffle(shuffled)
    assert worst_class(classes) is worst_class(shuffled)


def test_several_sources_of_one_fault_are_listed_once_each_and_not_added_up() -> None:
    found = incident(
        event("fanotify", count=3), event("kmsg"), event("kmsg"), event("state", count=3)
    )
    assert found.sources == ("fanotify", "kmsg", "state")
    assert found.events == 3


def test_a_log_line_alone_confirms_nothing() -> None:
    assert not incident(event("kmsg"), event("journal")).confirmed


def test_one_fact_confirms_what_log_lines_said() -> None:
    assert incident(event("kmsg"), event("state")).confirmed


def test_a_storm_within_a_second_does_not_push_older_errors_out() -> None:
    found = incident(event())
    for number in range(5000):
        found = found.joined(event(), NOW_NS + 10_000_000_000 + number)
    assert found.recent[0] == (NOW_NS, "fanotify", 1)
    assert sum(count for _, _, count in found.recent) == 5001


def test_a_milestone_keeps_its_first_time() -> None:
    found = incident().reached("decided", 5).reached("decided", 9)
    assert found.timeline["decided"] == 5


def test_the_story_keeps_its_beginning_and_its_end() -> None:
    found = incident()
    for number in range(1000):
        found = found.noted(number, f"line {number}")
    assert found.log[0][1] == "line 0"
    assert found.log[-1][1] == "line 999"
    assert len(found.log) <= 200


@pytest.mark.parametrize("klass", ["reminder", "none", "lost", "recovered", "corrected"])
def test_what_is_no_problem_by_itself_is_none(klass: str) -> None:
    assert not EventClass(klass).is_problem


class TestKeys:
    def test_volumes_that_are_not_attached_are_told_apart(self) -> None:
        keys = {
            filesystem(devno=None, device=None, disk_sequence=None, image=image).key
            for image in ("/vz/ve101.raw", "/vz/ve102.raw", None)
        }
        assert len(keys) == 3

    def test_a_volume_stays_the_same_when_a_repair_has_exchanged_its_image(self) -> None:
        before, after = (filesystem(devno=None, image_inode=("8:1", n)) for n in (1, 2))
        assert before.key == after.key

    def test_an_attached_volume_is_known_by_its_attachment(self) -> None:
        assert filesystem().key == filesystem(image=None, image_inode=None).key
        assert filesystem().key != filesystem(disk_sequence=43).key

    def test_a_number_of_the_kernels_own_says_nothing_about_what_has_it(self) -> None:
        """btrfs: the next one that is mounted gets the number of the one unmounted last."""
        btrfs = {"devno": Devno(0, 45), "disk_sequence": None, "fstype": "btrfs"}
        before = filesystem(**btrfs)
        after = filesystem(**btrfs, image="/vz/ve102.raw", image_inode=("8:1", 78))
        assert before.key != after.key
        assert before.key == filesystem(**btrfs, mountpoints=("/elsewhere",)).key
        disk = filesystem(**btrfs, image=None, image_inode=None, device="sdb")
        assert disk.key != filesystem(**btrfs, image=None, image_inode=None, device="sdc").key


def test_sources_that_take_turns_do_not_push_out_what_was_before() -> None:
    found = incident(event("fanotify", count=3))
    for number in range(4 * RECENT_LIMIT):
        source = ("kmsg", "state")[number % 2]
        found = found.joined(event(source), NOW_NS + number * 1000)
    assert len(found.recent) == 3
    assert sum(count for _, source, count in found.recent if source == "fanotify") == 3


def test_what_is_kept_has_an_end_and_no_error_is_lost_or_made_younger() -> None:
    found = incident(event("fanotify"))
    for number in range(1, 3 * RECENT_LIMIT):
        found = found.joined(event("fanotify"), NOW_NS + number * 2_000_000_000)
    assert len(found.recent) <= RECENT_LIMIT
    assert sum(count for _, _, count in found.recent) == 3 * RECENT_LIMIT
    assert found.recent[0][0] == NOW_NS
    times = [when for when, _, _ in found.recent]
    assert times == sorted(times)


def test_a_milestone_of_an_earlier_boot_is_shown_and_compared_with_nothing() -> None:
    found = incident().on_clock("first", 0).reached("repaired", 7).reached("repaired", 8)
    assert found.on_clock("first", 5).reached_ns("repaired") == 7
    booted = found.on_clock("second", 0)
    assert booted.timeline == {"repaired": 7}
    assert booted.reached_ns("repaired") is None
    assert booted.on_clock("third", 0).reached("repaired", 3).reached_ns("repaired") == 3
