"""Names of VEs that do harm, or are too long, wherever they go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fswatchd.inventory.lookup import find_ve
from fswatchd.inventory.names import as_known, readable
from tests.unit.inventory.test_lookup import ve, view

LONG = "x" * 4096


def test_a_usual_name_stays_as_it_is() -> None:
    for name in ("ve101", "lxc:/srv/lxc/web 1", 'it\'s "mine"', "x" * 255):
        assert readable(name) == name
    one = ve("lxc", "ve101", labels={"tier": "gold"})
    assert as_known(one) is one


@given(st.text(max_size=5000))
def test_none_acts_on_a_terminal_or_ends_a_line(name: str) -> None:
    shown = readable(name)
    assert len(shown) <= 255
    assert not any(
        ord(c) < 0x20 or 0x7F <= ord(c) <= 0xA0 or ord(c) in {0x2028, 0x202E} for c in shown
    )
    assert readable(shown) == shown


def test_two_that_differ_only_at_the_end_stay_two() -> None:
    assert readable(LONG + "1") != readable(LONG + "2")
    assert readable("\x1b" * 200 + "1") != readable("\x1b" * 200 + "2")


def test_all_that_it_is_known_by_is_so() -> None:
    hostile, shown = "a\x1b[2J\nb", "a\\x1b[2J\\x0ab"
    found = as_known(ve("lxc", hostile, labels={hostile: hostile}, aliases=(hostile,)))
    assert (found.ve_id, found.name, found.aliases) == (f"lxc:{shown}", shown, (shown,))
    assert found.labels == {shown: shown}
    assert found.native_id == hostile  # what commands need


def test_it_is_found_by_what_it_is_called_and_by_what_is_shown() -> None:
    hostile = f"{LONG}\n\x1b[31m'\""
    known = as_known(ve("libvirt", hostile))
    one = view(known, ve("lxc", "ve101"))
    for text in (hostile, f"libvirt:{hostile}", known.name, known.ve_id):
        assert find_ve(one, text) is known
