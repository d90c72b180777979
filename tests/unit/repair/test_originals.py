"""What an incident with several repairs knows of the volumes that they have put aside."""

from __future__ import annotations

from fswatchd.repair import originals

FIRST = {"image": "/vz/a", "original": "/vz/a.damaged", "original_file": {"inode": 1}, "ve": "a"}
SECOND = {"image": "/vz/a", "original": "/vz/a.damaged-2", "original_file": {"inode": 2}, "ve": "a"}
THIRD = {"image": "/vz/a", "original": "/vz/a.damaged-3", "original_file": {"inode": 3}, "ve": "a"}


def names(undo: dict[str, object]) -> list[object]:
    return [one["original"] for one in originals.kept(undo)]


def test_no_repair_makes_an_earlier_original_forgotten() -> None:
    undo = originals.merged(originals.merged(originals.merged(None, FIRST), SECOND), THIRD)
    assert names(undo) == ["/vz/a.damaged", "/vz/a.damaged-2", "/vz/a.damaged-3"]
    assert undo["original"] == "/vz/a.damaged-3"
    for left in ((2, 3), (3,), ()):
        undo = originals.without_oldest(undo)
        assert [one["original_file"] for one in originals.kept(undo)] == [
            {"inode": n} for n in left
        ]
    assert undo == {"image": "/vz/a", "ve": "a"}


def test_what_could_not_be_deleted_is_where_it_was() -> None:
    undo = originals.merged(originals.merged(FIRST, SECOND), THIRD)
    while originals.kept(undo):
        oldest, left = originals.kept(undo)[0], originals.without_oldest(undo)
        assert originals.with_oldest(left, oldest) == undo
        undo = left


def test_what_has_the_name_of_an_earlier_one_is_in_its_place() -> None:
    anew = {**SECOND, "original": "/vz/a.damaged"}
    assert originals.kept(originals.merged(FIRST, anew)) == [
        {"original": "/vz/a.damaged", "original_file": {"inode": 2}}
    ]


def test_a_repair_in_place_takes_no_original_away() -> None:
    """Of a device it knows no image."""
    undo = originals.merged(FIRST, {"undo_file": None, "image": None, "ve": "a"})
    assert undo == {**FIRST, "undo_file": None}
