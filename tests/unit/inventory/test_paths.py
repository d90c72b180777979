"""A path on a server that does not answer holds nobody up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.paths import Key, PatientPaths, inode_key, leads_onto

HERE = (Devno(0, 45), 7)


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("{}/nfs/ve101.raw", True),
        ("{}/nfs", True),
        ("{}/link/ve101.raw", True),
        ("{}/relative/ve101.raw", True),
        ("{}/a/../nfs/x", True),
        ("{}/nfslocal/ve101.raw", False),
        ("{}/a/ve101.raw", False),
        ("{}/loop/ve101.raw", False),
        ("", False),
    ],
)
def test_the_way_is_followed_up_to_the_mount_point(
    tmp_path: Path,
    path: str,
    served: bool,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    (tmp_path / "relative").symlink_to("a/../nfs/below")
    (tmp_path / "loop").symlink_to("loop")
    assert leads_onto(path.format(tmp_path), {f"{tmp_path}/nfs"}) is served


def test_a_local_path_is_looked_up_at_once(tmp_path: Path) -> None:
    paths = PatientPaths()
    paths.served_at(["/nowhere"])
    assert paths.key(str(tmp_path)) == inode_key(str(tmp_path))


def test_who_waits_for_a_server_gets_the_last_answer_and_later_the_new_one() -> None:
    lost, answers = threading.Event(), threading.Event()
    answers.set()
    asked: list[str] = []

    def server(path: str) -> Key:
        asked.append(path)
        answers.wait()
        return (HERE[0], HERE[1] + lost.is_set())

    paths = PatientPaths(server)
    paths.served_at(["/nfs"])
    assert paths.key("/nfs/a") == HERE
    answers.clear()
    lost.set()
    assert paths.key("/nfs/a") == HERE
    begun = time.monotonic()
    for _ in range(50):
        assert paths.key("/nfs/a") == HERE
        assert paths.key("/nfs/b") is None
    assert time.monotonic() - begun < 10  # half a second each would be 50
    assert asked == ["/nfs/a", "/nfs/a"]
    answers.set()
    while paths.key("/nfs/b") is None:
        time.sleep(0.01)
    assert paths.key("/nfs/a") == (HERE[0], HERE[1] + 1)
