"""Which files are believed, and that nothing in their place holds the daemon up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fswatchd import adminfile
from fswatchd.adminfile import AdminFileError
from fswatchd.errors import ConfigError
from fswatchd.platforms.declared import load_file

VE = '[[ve]]\nname = "ve101"\ncgroup = "/x"\n'

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@needs_root
def test_a_file_of_root_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ve.toml"
    path.write_text(VE)
    assert adminfile.read(path) == VE
    assert [ve.name for ve in load_file(path)] == ["ve101"]


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(65534, 0o644), (0, 0o664), (0, 0o646)])
def test_a_file_that_somebody_else_can_write_is_refused(
    tmp_path: Path, owner: int, mode: int
) -> None:
    path = tmp_path / "ve.toml"
    path.write_text(VE)
    os.chown(path, owner, -1)
    path.chmod(mode)
    with pytest.raises(AdminFileError):
        adminfile.read(path)
    with pytest.raises(ConfigError, match=r"ve\.toml"):
        load_file(path)
    assert adminfile.read(path, trusted=True) == VE


def test_a_fifo_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ve.toml"
    os.mkfifo(path)
    with pytest.raises(AdminFileError, match="not a regular file"):
        adminfile.read(path)


def test_what_is_no_text_or_too_much_of_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ve.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(AdminFileError, match="UTF-8"):
        adminfile.read(path, trusted=True)
    os.truncate(path, 100 << 20)
    with pytest.raises(AdminFileError, match="larger"):
        adminfile.read(path, trusted=True)
    with pytest.raises(AdminFileError, match="cannot be read"):
        adminfile.read(tmp_path / "gone", trusted=True)


def test_a_file_that_is_written_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a rule file may be right by itself, and mean something else."""
    path = tmp_path / "ve.toml"
    path.write_text(VE)
    read = os.read

    def written_meanwhile(fd: int, size: int) -> bytes:
        content = read(fd, size)
        with path.open("a") as file:
            file.write(VE)
        return content

    monkeypatch.setattr(os, "read", written_meanwhile)
    with pytest.raises(AdminFileError, match="while it was read"):
        adminfile.read(path, trusted=True)
    monkeypatch.undo()
    assert adminfile.read(path, trusted=True) == VE * 2
