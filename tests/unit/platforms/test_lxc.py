"""What an LXC container's configuration says without the container."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import beside, lxc_config
from fswatchd.platforms.lxc import LxcPlatform
from fswatchd.platforms.lxc_config import Config, Key
from tests.unit.platforms.server import Server


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# fswatch: approve\n", {"fswatch": "approve"}),
        ("  #fswatch = auto\nlxc.uts.name = a\n", {"fswatch": "auto"}),
        ("# fswatch: auto\n# fswatch: observe\n", {"fswatch": "observe"}),
        ("# fswatch: sometimes\n", {"fswatch": "observe"}),
        ("# fswatchful: auto\nlxc.uts.name = fswatch: auto\n", {}),
    ],
)
def test_a_comment_says_what_the_owner_wishes(text: str, wanted: dict[str, str]) -> None:
    assert Config.of(text.splitlines(keepends=True)).labels == wanted


async def test_of_what_cannot_be_read_nobody_knows_what_he_wishes(tmp_path: Path) -> None:
    (tmp_path / "a" / "config").mkdir(parents=True)
    (ve,) = await LxcPlatform(str(tmp_path)).list_ves()
    assert (ve.name, ve.labels_known) == ("a", False)


@pytest.mark.parametrize(
    ("rootfs", "image", "device"),
    [
        ("/dev/vg/ve101", None, "/dev/vg/ve101"),
        ("lvm:/dev/vg/a", None, "/dev/vg/a"),  # as lxc-create -B lvm writes it
        ("dir:{}", None, None),
        ("btrfs:{}", None, None),
        ("zfs:tank/a", None, None),
        ("overlay:{0}/image:{0}/delta0", None, None),
        ("overlayfs:{0}/image:{0}/delta0", None, None),
        ("nbd:{}/image", None, None),
        ("{}/image", "{}/image", None),
        ("loop:{}/image", "{}/image", None),
        ("{}", None, None),
        ("loop:{}/no", None, None),
    ],
)
async def test_where_its_root_filesystem_is(
    tmp_path: Path, rootfs: str, image: str | None, device: str | None
) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(f"lxc.rootfs.path = {rootfs.format(tmp_path)}\n")
    (ve,) = await LxcPlatform(str(tmp_path)).list_ves()
    wanted = Volume(image=image.format(tmp_path) if image else None, device=device)
    assert list(ve.volumes) == ([wanted] if image or device else [])


@pytest.mark.parametrize(("rootfs", "volumes"), [("loop:/mnt/nfs/a", 1), ("/mnt/nfs/a", 0)])
async def test_a_root_filesystem_on_a_lost_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rootfs: str, volumes: int
) -> None:
    """The container is listed, and what its configuration says by itself is believed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(f"lxc.rootfs.path = {rootfs}\n")
    platform = LxcPlatform(str(tmp_path))
    with Server(monkeypatch) as server:
        server.is_lost = True
        monkeypatch.setattr(platform, "_kinds", server.kinds())
        with pytest.raises(PlatformError, match="/mnt/nfs/a does not answer") as problem:
            await platform.list_ves()
        (ve,) = problem.value.partial
        assert ve.name == "a"
        assert list(ve.volumes) == [Volume(image="/mnt/nfs/a")] * volumes


async def test_what_does_not_answer_is_taken_as_it_was_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hanging disk below the default path: the loop goes on, what was known stays, and nothing is
    stopped that could not be started again."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text("# fswatch: approve\n")
    platform = LxcPlatform(str(tmp_path))
    (before,) = await platform.list_ves()
    answers = threading.Event()
    read = lxc_config.read_all

    def hangs(*arguments: Any) -> dict[Key, Config]:
        answers.wait()
        return read(*arguments)

    monkeypatch.setattr(lxc_config, "read_all", hangs)
    monkeypatch.setattr(beside, "ANSWER_S", 0.05)
    beats: list[None] = []

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.005)
            beats.append(None)

    heart = asyncio.create_task(beat())
    try:
        for _ in range(2):  # also the next look, for which it hangs already
            with pytest.raises(PlatformError, match="does not answer") as problem:
                await platform.list_ves()
            (late,) = problem.value.partial
            assert late == replace(before, busy=f"LXC: {tmp_path} does not answer")
        assert beats
    finally:
        heart.cancel()
        answers.set()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config").touch()
    async with asyncio.timeout(10):
        while True:
            with suppress(PlatformError):
                found = await platform.list_ves()
                break
    assert [ve.name for ve in found] == ["a", "b"]


async def test_an_answer_that_comes_late_is_there_for_the_next_look() -> None:
    """Else what is slow every time would never be known."""
    asked = beside.Beside[str]("nothing")
    goes_on, done = threading.Event(), threading.Event()

    def slow() -> str:
        goes_on.wait()
        return "something"

    def never() -> str:
        done.wait()
        return "never"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "ANSWER_S", 0.05)
        assert await asked.ask(slow, "it") == ("nothing", ["it does not answer"])
        goes_on.set()
        async with asyncio.timeout(10):
            while (found := await asked.ask(never, "it"))[0] == "nothing":
                pass
    done.set()
    assert found == ("something", ["it does not answer"])
