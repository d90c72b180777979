from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fswatchd.platforms.ploop import Disk, PloopError, read_descriptor
from tests.unit.platforms.test_openvz import DESCRIPTOR, TOP


def test_the_top_delta_is_the_one_the_descriptor_names() -> None:
    assert read_descriptor(DESCRIPTOR, "/d") == Disk(
        top=f"/d/{TOP}", deltas=("/d/root.hds", f"/d/{TOP}")
    )


def test_without_a_name_it_is_the_one_with_the_fixed_id() -> None:
    named = "<TopGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</TopGUID>"
    assert read_descriptor(DESCRIPTOR.replace(named, ""), "/d").top == f"/d/{TOP}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<x/>",
        DESCRIPTOR.replace("<TopGUID>{5f", "<TopGUID>{60"),
        DESCRIPTOR.replace("<File>root.hds</File>", ""),
        DESCRIPTOR.replace("</Storage>", "</Storage><Storage/>"),
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/shadow">]>' + DESCRIPTOR,
        DESCRIPTOR[:-30],
    ],
)
def test_a_descriptor_that_is_not_believed(text: str) -> None:
    with pytest.raises(PloopError):
        read_descriptor(text, "/d")


@settings(max_examples=40)
@given(st.text(max_size=200), st.integers(0, len(DESCRIPTOR)))
def test_no_text_makes_it_fail_otherwise(text: str, place: int) -> None:
    for damaged in (text, DESCRIPTOR[:place] + text + DESCRIPTOR[place:]):
        try:
            disk = read_descriptor(damaged, "/d")
        except PloopError:
            continue
        assert disk.top in disk.deltas
