"""Where two files do not share their blocks: what is left out would be taken for the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.extents import Extent, not_shared

BLOCK = 4096


def differing(one: list[Extent], other: list[Extent], size: int) -> list[tuple[int, int]]:
    return list(not_shared(one, other, size))


def test_what_lies_in_the_same_blocks_is_the_same_however_it_is_told() -> None:
    whole = [Extent(0, 100, 5000)]
    parts = [Extent(0, 40, 5000), Extent(40, 100, 5040)]
    assert differing(whole, parts, 100) == []
    assert differing([], [], 100) == []


def test_other_blocks_and_holes_differ() -> None:
    one = [Extent(0, 10, 500), Extent(20, 30, 600)]
    other = [Extent(0, 10, 700), Extent(10, 20, 510), Extent(25, 30, 605)]
    assert differing(one, other, 40) == [(0, 25)]


def test_what_lies_nowhere_is_never_the_same() -> None:
    """Compressed, kept in the tree of the filesystem, or not written yet."""
    nowhere = [Extent(0, 10, None)]
    assert differing(nowhere, nowhere, 20) == [(0, 10)]


def test_what_is_behind_the_end_is_of_no_interest() -> None:
    assert differing([Extent(0, 8192, 0)], [Extent(0, 4096, 0)], 4000) == []


Blocks = st.lists(st.one_of(st.none(), st.integers(0, 8), st.just(-1)), min_size=12, max_size=12)


def extents_of(blocks: list[int | None]) -> list[Extent]:
    """A block is a hole (None), nowhere (-1), or at the place of that number; runs are merged."""
    found: list[Extent] = []
    for index, block in enumerate(blocks):
        start, end = index * BLOCK, (index + 1) * BLOCK
        place = None if block == -1 else (block or 0) * BLOCK
        before = found[-1] if found else None
        if block is None:
            continue
        goes_on = before is not None and before.end == start and before.place is not None
        if before and goes_on and place == (before.place or 0) + start - before.start:
            found[-1] = Extent(before.start, end, before.place)
        else:
            found.append(Extent(start, end, place))
    return found


@given(Blocks, Blocks)
def test_every_block_that_differs_is_in_a_range_and_no_other(
    one: list[int | None], other: list[int | None]
) -> None:
    ranges = differing(extents_of(one), extents_of(other), len(one) * BLOCK)
    told = {index for start, end in ranges for index in range(start // BLOCK, end // BLOCK)}
    assert told == {
        index for index in range(len(one)) if one[index] != other[index] or one[index] == -1
    }
    assert all(left[1] < right[0] for left, right in pairwise(ranges))
