"""A filesystem is made on an empty regular file of the drill's own, and on nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fswatchd.drill import scene
from fswatchd.drill.scene import DrillError

NEVER = ["false"]


def test_a_file_that_holds_something_is_not_formatted(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"something" * 1000)
    os.sync()
    with pytest.raises(DrillError, match="not an empty regular file"):
        scene._mkfs(NEVER, path)


@pytest.mark.parametrize("kind", ["device", "fifo"])
def test_what_is_no_file_is_not_formatted(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/null")
    if kind == "fifo":
        path = tmp_path / "fifo"
        os.mkfifo(path)
    with pytest.raises(DrillError, match="not an empty regular file"):
        scene._mkfs(NEVER, path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    scene._create(target, 4096)
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        scene._mkfs(NEVER, link)


def test_what_has_a_name_already_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"something")
    with pytest.raises(FileExistsError):
        scene._create(path, 4096)
    assert path.read_bytes() == b"something"


def test_its_own_new_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    scene._create(path, 4096)
    ran: list[object] = []

    def run(argv: list[str], **_: object) -> SimpleNamespace:
        ran.append(argv)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(scene.subprocess, "run", run)
    scene._mkfs(["mke2fs"], path)
    assert ran == [["mke2fs", str(path)]]
