from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fswatchd.platforms import incus
from fswatchd.platforms.every import EveryPlatform
from fswatchd.platforms.incus import IncusPlatform, Instance, read_instances

# GET /1.0/instances?recursion=2&all-projects=true, after Incus' doc/rest-api.yaml (InstanceFull),
# what is not read left out.
ANSWER = {
    "type": "sync",
    "status": "Success",
    "status_code": 200,
    "metadata": [
        {
            "name": "web",
            "project": "default",
            "type": "container",
            "status": "Running",
            "config": {"user.tier": "gold", "volatile.last_state.power": "RUNNING"},
            "state": {"status": "Running", "status_code": 103, "pid": 7281},
        },
        {"name": "web", "project": "shop", "type": "container", "config": {}, "state": {"pid": 0}},
        {"name": "vm", "project": "default", "type": "virtual-machine", "state": {"pid": 9}},
        {"name": "old", "type": "container", "config": None, "state": None},
    ],
}


def test_what_the_api_tells() -> None:
    assert read_instances(ANSWER) == [
        Instance(name="web", project="default", pid=7281, labels={"tier": "gold"}),
        Instance(name="web", project="shop", pid=0),
        Instance(name="old", project="default", pid=0),
    ]


def test_the_same_name_in_two_projects_is_two() -> None:
    assert [one.native_id for one in read_instances(ANSWER)] == ["web", "shop_web", "old"]


async def test_a_process_that_is_no_containers_first_is_not_believed(tmp_path: Path) -> None:
    platform = IncusPlatform("incus", ("incus", str(tmp_path / "unix.socket")))
    platform.asked.answer = [Instance(name="web", project="default", pid=os.getpid())]
    platform.asked.look = lambda _: platform.asked.answer  # type: ignore[method-assign]
    (ve,) = await platform.list_ves()
    assert (ve.ve_id, ve.state, ve.init_pid, ve.cgroup) == ("incus:web", "stopped", None, None)
    assert ve.commands.start == ("incus", "start", "web", "--project", "default")


async def test_without_incus_there_is_nothing(tmp_path: Path) -> None:
    assert await IncusPlatform("incus", ("incus", str(tmp_path / "unix.socket"))).list_ves() == []


async def test_lxd_is_asked_where_it_is_by_its_own_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snap, package = tmp_path / "snap.socket", tmp_path / "package.socket"
    platform = IncusPlatform("lxd", ("/snap/bin/lxc", str(snap)), ("lxc", str(package)))
    asked: list[str] = []

    async def answer(socket: str, *_: object) -> str:
        asked.append(socket)
        return json.dumps(ANSWER)

    monkeypatch.setattr(incus, "http_get", answer)
    assert await platform.list_ves() == []
    for socket, program in ((package, "lxc"), (snap, "/snap/bin/lxc")):
        socket.touch()
        await platform.list_ves()
        await platform.asked.settle()
        ve, *_ = await platform.list_ves()
        assert asked.pop() == str(socket)
        assert (ve.ve_id, ve.commands.start[:2]) == ("lxd:web", (program, "start"))
        assert ve.commands.thaw[:2] == (program, "start")


def test_every_lxd_is_looked_for() -> None:
    (lxd,) = [one for one in EveryPlatform([]).drivers if one.name == "lxd"]
    assert isinstance(lxd, IncusPlatform)
    assert dict(lxd._places) == {
        "/snap/bin/lxc": "/var/snap/lxd/common/lxd/unix.socket",
        "lxc": "/var/lib/lxd/unix.socket",
    }
