from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import beside, nspawn
from fswatchd.platforms.nspawn import Options
from tests.unit.platforms.server import Server


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-q --machine=web -D /srv/web", Options(machine="web", directory="/srv/web")),
        ("-qbD /srv/web", Options(directory="/srv/web")),
        ("-qD/srv/web -M web", Options(machine="web", directory="/srv/web")),
        ("--bind /a -i web.raw", Options(image="web.raw")),
        ("--quiet --image web.raw -x", Options(image="web.raw", ephemeral=True)),
        ("-xqi web.raw", Options(image="web.raw", ephemeral=True)),
        ("--private-users -D /srv/web", Options(directory="/srv/web")),
        ("-D /srv/web /bin/sh -M other", Options(directory="/srv/web")),
        ("-D /srv/web -- -M other", Options(directory="/srv/web")),
        ("-S x -D /srv/web", Options(directory="/srv/web")),
        ("", Options()),
    ],
)
def test_a_command_line(line: str, wanted: Options) -> None:
    assert nspawn.parse(["systemd-nspawn", *line.split()]) == wanted


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(machine="web", directory="/srv/other"), "web"),
        (Options(directory="/srv/web/"), "web"),
        (Options(image="/srv/web.raw"), "web"),
        (Options(directory="/"), None),
        (Options(), None),
    ],
)
def test_the_name_of_a_machine(options: Options, name: str | None) -> None:
    assert options.name == name


# As machine_save() of systemd's src/machine/machine.c writes it.
STATE = """# This is private data. Do not parse.
NAME=web-1
SCOPE=machine-web\\\\x2d1.scope
SERVICE=systemd-nspawn
ROOT=/srv/a\\040b
ID=d039dea37fed48dcb6a7e4016f9c7a9e
LEADER=4711
CLASS=container
REALTIME=1795256707000000
MONOTONIC=1234567
"""


def test_a_state_file_of_machined(tmp_path: Path) -> None:
    (tmp_path / "web-1").write_text(STATE)
    found = nspawn.read_state(str(tmp_path / "web-1"))
    assert found is not None
    assert (found.name, found.service, found.leader) == ("web-1", "systemd-nspawn", 4711)
    assert (found.unit, found.root) == ("machine-web\\x2d1.scope", "/srv/a b")


@pytest.mark.parametrize("text", ["", "LEADER=\n", "LEADER=-1\nSCOPE=\n", "\0", "nothing"])
def test_a_state_file_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "web").write_text(text)
    found = nspawn.read_state(str(tmp_path / "web"))
    assert found is not None
    assert (found.leader, found.unit) == (None, None)


def test_no_state_file(tmp_path: Path) -> None:
    assert nspawn.read_state(str(tmp_path / "web")) is None


def test_the_name_in_a_unit() -> None:
    assert nspawn.unit_escaped("web-1.a_b") == "web\\x2d1.a_b"


async def test_what_is_stored_is_stopped(tmp_path: Path) -> None:
    machines = tmp_path / "machines"
    (machines / "tree").mkdir(parents=True)
    for name in ("web.raw", ".#web.lck", ".hidden.raw"):
        (machines / name).touch()
    found = await nspawn.NspawnPlatform(str(tmp_path / "run"), str(machines)).list_ves()
    tree, web = found
    assert (tree.ve_id, tree.state, tree.volumes) == ("nspawn:tree", "stopped", ())
    assert (web.name, web.volumes[0].image) == ("web", str(machines / "web.raw"))
    assert web.commands.start == ("systemctl", "start", "systemd-nspawn@web.service")


async def test_without_the_platform_there_is_nothing(tmp_path: Path) -> None:
    platform = nspawn.NspawnPlatform(str(tmp_path / "run"), str(tmp_path / "machines"))
    assert await platform.list_ves() == []


async def test_a_mark_that_was_left_behind_is_no_machine(tmp_path: Path) -> None:
    (tmp_path / "run" / "nspawn" / "propagate" / "web").mkdir(parents=True)
    platform = nspawn.NspawnPlatform(str(tmp_path / "run"), str(tmp_path / "machines"))
    assert await platform.list_ves() == []


async def test_an_image_on_a_lost_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine is listed, with the image that was seen when the server answered."""
    (tmp_path / "machines").mkdir()
    platform = nspawn.NspawnPlatform(str(tmp_path / "run"), str(tmp_path / "machines"))
    monkeypatch.setattr(nspawn, "_images", lambda _: {"web": "/mnt/nfs/web.raw"})
    with Server(monkeypatch) as server:
        monkeypatch.setattr(platform, "_kinds", server.kinds())
        (ve,) = await platform.list_ves()
        server.is_lost = True
        with pytest.raises(PlatformError, match=r"/mnt/nfs/web\.raw does not answer") as problem:
            await platform.list_ves()
        assert list(problem.value.partial) == [ve]
        assert ve.volumes == (Volume(image="/mnt/nfs/web.raw"),)


async def test_a_directory_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was stored there is known still, and said to be of before."""
    machines = tmp_path / "machines"
    machines.mkdir()
    (machines / "web.raw").touch()
    platform = nspawn.NspawnPlatform(str(tmp_path / "run"), str(machines))
    before = await platform.list_ves()
    answers = threading.Event()
    monkeypatch.setattr(nspawn, "_images", lambda _: answers.wait() and {})
    monkeypatch.setattr(beside, "ANSWER_S", 0.05)
    try:
        with pytest.raises(PlatformError, match="machines does not answer") as problem:
            await platform.list_ves()
        (late,) = problem.value.partial
        assert [replace(late, busy=None)] == before
        assert late.busy == f"systemd-nspawn: {machines} does not answer"
    finally:
        answers.set()
