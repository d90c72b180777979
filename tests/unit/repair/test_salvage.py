"""What the salvage helper writes, and what the incident is told of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fswatchd.helpers import changed
from fswatchd.helpers import salvage as helper
from fswatchd.repair.salvage import Salvaged, before_s

CONTENT = bytes(range(256)) * 20
FOR_EVER = float("inf")


def copy_one(directory: Path, size: int) -> Path:
    source, target = directory / "file", directory / "copy"
    source.write_bytes(CONTENT)
    mount = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        one = changed.Changed(0.0, source.stat().st_ino, 0, "file")
        helper.copy_one(mount, one, size, str(target), FOR_EVER)
    finally:
        os.close(mount)
    return target


def test_a_write_that_takes_only_a_part_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:100])))
    assert copy_one(tmp_path, len(CONTENT)).read_bytes() == CONTENT


def test_a_file_that_is_longer_than_was_reckoned_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grown meanwhile"):
        copy_one(tmp_path, len(CONTENT) - 1)
    assert not (tmp_path / "copy").exists()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    (tmp_path / "file").symlink_to("secret")
    mount = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        one = changed.Changed(0.0, (tmp_path / "secret").stat().st_ino, 0, "file")
        with pytest.raises(OSError, match="symbolic links"):
            helper.copy_one(mount, one, len(CONTENT), str(tmp_path / "copy"), FOR_EVER)
    finally:
        os.close(mount)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/mail.log", "mail.log"),
        ("a/b c\n\x1b[31m;$(x)", "b_c___31m___x_"),
        ("a/" + "n" * 255, "n" * 80),
        ("a/..", ".."),
    ],
)
def test_a_copy_has_a_name_that_hurts_nobody(path: str, name: str) -> None:
    assert helper.safe(path) == name


def test_what_there_is_no_time_for_is_not_half_copied(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    mount = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        one = changed.Changed(0.0, (tmp_path / "file").stat().st_ino, 0, "file")
        with pytest.raises(ValueError, match="no time"):
            helper.copy_one(mount, one, len(CONTENT), str(tmp_path / "copy"), 0.0)
    finally:
        os.close(mount)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_kind_of_file_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device may do something when it is."""
    os.mkfifo(tmp_path / "file")
    opened: list[object] = []
    mount = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    one = changed.Changed(0.0, (tmp_path / "file").stat().st_ino, 0, "file")
    monkeypatch.setattr(os, "open", lambda *arguments, **_: opened.append(arguments))
    try:
        with pytest.raises(ValueError, match="replaced"):
            changed.open_file(mount, one)
    finally:
        os.close(mount)
    assert opened == []


@pytest.mark.parametrize(("options", "least"), [((), 60.0), (("commit=300", "ro"), 300.0)])
def test_a_long_commit_interval_is_looked_at_whole(options: tuple[str, ...], least: float) -> None:
    assert least <= before_s(options) < least + 120


def test_the_incident_is_told_of_all_that_is_not_known() -> None:
    found = Salvaged(unreadable=3, unseen=4, cut=True)
    for path, outcome in (
        ("a", "copied"),
        ("b", "lost: there was no time left for it"),
        ("c", "unknown: it is encrypted"),
    ):
        found.add(path, outcome)
    text = found.sentence(Path("/vz/salvaged"))
    for part in (
        "1 files never reached the disk and were copied to /vz/salvaged: a",
        "1 files could not be saved: b (there was no time left for it)",
        "1 files could not be compared: c (it is encrypted)",
        "more than 10000 files had changed",
        "4 files were not looked at within 60 s",
        "3 directories could not be read",
    ):
        assert part in text
    assert Salvaged().sentence(Path("/")) == (
        "no file was found whose content had not reached the disk"
    )
