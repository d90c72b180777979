"""What lies at a path, also where nobody answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fswatchd.platforms import kinds
from fswatchd.platforms.kinds import Kind, Kinds
from tests.unit.platforms.server import Server

IMAGE = "/mnt/nfs/ve101.raw"


async def test_what_lies_on_this_node(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    looked = await Kinds().look([str(tmp_path), f"{tmp_path}/image", f"{tmp_path}/no", "/dev/null"])
    assert looked.problems == []
    assert dict(looked.kinds) == {
        str(tmp_path): Kind.DIRECTORY,
        f"{tmp_path}/image": Kind.FILE,
        f"{tmp_path}/no": None,
        "/dev/null": Kind.OTHER,
    }
    assert (await Kinds().look([])).problems == []


async def test_a_lost_server_has_its_last_answer_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(monkeypatch) as server:
        found = server.kinds()
        assert (await found.look([IMAGE])).get(IMAGE) is Kind.FILE
        server.is_lost = True
        for _ in range(20):
            looked = await found.look([IMAGE, "/mnt/nfs/other.raw", str(tmp_path)])
            assert looked.get(IMAGE) is Kind.FILE
            assert looked.is_unknown("/mnt/nfs/other.raw")
            assert looked.get(str(tmp_path)) is Kind.DIRECTORY
            assert looked.late == ("/mnt/nfs/other.raw", IMAGE)
        assert looked.problems == [
            "/mnt/nfs/other.raw does not answer (and 1 more): is its server there?"
        ]
        assert len(server.asked) == 2  # nobody waits for it twice
        await server.is_back()
        assert (await found.look([IMAGE, "/mnt/nfs/other.raw"])).problems == []


async def test_a_disk_of_this_node_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_ANSWER_S", 0.1)
    answers, path = threading.Event(), str(tmp_path)
    answers.set()

    def hangs(_: str) -> Kind:
        answers.wait(30)
        return Kind.DIRECTORY

    found = Kinds(hangs, list)
    assert (await found.look([path])).problems == []
    answers.clear()
    begun = time.monotonic()
    for _ in range(20):
        looked = await found.look([path])
        assert (looked.get(path), looked.late) == (Kind.DIRECTORY, (path,))
    assert time.monotonic() - begun < 1
    answers.set()
    monkeypatch.setattr(kinds, "_ANSWER_S", 30.0)
    time.sleep(0.05)
    await found.look([path])
    assert (await found.look([path])).problems == []
