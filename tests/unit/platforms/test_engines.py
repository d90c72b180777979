from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.events import VeState
from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import engines
from fswatchd.platforms.kinds import Kind, Looked
from tests.unit.platforms.server import Server

WEB, DB, INFRA = "9" * 64, "a" * 64, "b" * 64

# `podman ps --all --format json` of Podman 4.3.1, what is not read left out.
PODMAN_PS = [
    {
        "Id": WEB,
        "IsInfra": False,
        "Labels": {"tier": "gold"},
        "Mounts": ["/data", "/etc/hosts"],
        "Names": ["web"],
        "Pid": 27263,
        "Pod": "",
        "State": "running",
    },
    {"Id": DB, "IsInfra": False, "Labels": None, "Mounts": [], "Names": ["db"], "State": "exited"},
    {"Id": INFRA, "IsInfra": True, "Names": ["0123-infra"], "State": "running"},
]
# `podman container inspect`.
PODMAN_INSPECT = [
    {
        "Id": WEB,
        "Name": "web",
        "Mounts": [
            {
                "Type": "volume",
                "Name": "data",
                "Source": "/var/lib/containers/storage/volumes/data/_data",
                "Destination": "/data",
                "Driver": "local",
                "RW": True,
            },
            {"Type": "bind", "Source": "/etc/hosts", "Destination": "/etc/hosts", "RW": True},
        ],
    }
]
# `podman volume ls --format json`; Docker's GET /volumes has the same keys in "Volumes".
VOLUMES = [
    {"Name": "data", "Driver": "local", "Options": {"device": "/dev/vg/data", "type": "ext4"}},
    {"Name": "plain", "Driver": "local", "Options": {}},
    {"Name": "none", "Driver": "local", "Options": None},
    {"Name": "far", "Driver": "local", "Options": {"device": ":/export", "type": "nfs"}},
    {"Name": "bind", "Driver": "local", "Options": {"device": "/", "o": "bind", "type": "none"}},
    {"Name": "other", "Driver": "rbd", "Options": {"device": "/dev/rbd0"}},
]
# GET /containers/json?all=1 of the Docker Engine API 1.41.
DOCKER = [
    {
        "Id": WEB,
        "Names": ["/web"],
        "Image": "nginx:latest",
        "Labels": {"com.example.tier": "gold"},
        "State": "running",
        "Status": "Up 3 hours",
        "HostConfig": {"NetworkMode": "default"},
        "Mounts": [
            {
                "Type": "volume",
                "Name": "data",
                "Source": "/var/lib/docker/volumes/data/_data",
                "Destination": "/data",
                "Driver": "local",
                "RW": True,
            }
        ],
    }
]


def test_what_podman_tells() -> None:
    devices = engines.volume_devices(VOLUMES)
    found = engines.read_podman(PODMAN_PS, PODMAN_INSPECT, devices)
    assert list(found) == [WEB, DB]  # an infra container is its pod's, and nobody's VE
    assert (found[WEB].name, found[WEB].labels) == ("web", {"tier": "gold"})
    assert found[WEB].disks == (("/dev/vg/data", "/data"),)
    assert (found[DB].name, found[DB].labels, found[DB].disks) == ("db", {}, ())


def test_what_docker_tells() -> None:
    found = engines.read_docker(DOCKER, engines.volume_devices(VOLUMES))
    assert (found[WEB].name, found[WEB].labels) == ("web", {"com.example.tier": "gold"})
    assert found[WEB].disks == (("/dev/vg/data", "/data"),)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Kind.FILE, [Volume(image="/srv/data", mountpoint="/data")]),
        (Kind.DEVICE, [Volume(device="/srv/data", mountpoint="/data")]),
        (Kind.DIRECTORY, []),
        (None, []),
    ],
)
def test_a_volume_is_what_lies_there(kind: Kind | None, wanted: list[Volume]) -> None:
    path = "/srv/data"
    volumes = [{"Name": "data", "Driver": "local", "Options": {"device": path, "o": "loop"}}]
    told = engines.read_docker(DOCKER, engines.volume_devices(volumes))[WEB]
    assert list(engines.volumes_of(told, Looked({path: kind}))) == wanted


def test_a_device_that_is_not_there_now_is_one_all_the_same() -> None:
    told = engines.Container(native_id=WEB, name="web", disks=(("/dev/vg/data", "/data"),))
    (found,) = engines.volumes_of(told, Looked({"/dev/vg/data": None}))
    assert found == Volume(device="/dev/vg/data", mountpoint="/data")


def test_only_volumes_with_a_device_of_their_own_count() -> None:
    assert engines.volume_devices(VOLUMES) == {"data": "/dev/vg/data"}


def test_an_id_that_is_none_is_no_container() -> None:
    assert engines.read_docker([{"Id": "../../etc", "Names": ["/x"]}]) == {}


@pytest.mark.parametrize(
    "text", ["[]", "time=now level=warning msg=x\n[]", 'WARN[0000] "[x]" is old\n[]\n']
)
def test_warnings_before_the_answer(text: str) -> None:
    assert engines.parse_json(text, "podman ps") == []


def test_an_answer_that_is_an_object() -> None:
    text = 'WARN[0000] using default endpoints: [unix:///x.sock]\n{\n  "items": [\n[]\n  ]\n}\n'
    assert engines.parse_json(text, "crictl pods") == {"items": [[]]}


@pytest.mark.parametrize("text", ["", "Error: no such thing", json.dumps(PODMAN_PS)[:100]])
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(PlatformError, match="podman ps"):
        engines.parse_json(text, "podman ps")


@pytest.mark.parametrize(
    ("platform", "name", "matches"),
    [
        ("podman", f"libpod-{WEB}.scope", True),
        ("podman", f"libpod-{WEB}", True),
        ("podman", f"libpod-conmon-{WEB}.scope", False),
        ("podman", f"docker-{WEB}.scope", False),
        ("docker", f"docker-{WEB}.scope", True),
        ("docker", WEB, True),
        ("docker", f"docker-{WEB[:12]}.scope", False),
        ("docker", "docker.service", False),
    ],
)
def test_the_cgroup_of_a_container(platform: str, name: str, matches: bool) -> None:
    engine = {"podman": engines.podman, "docker": engines.docker}[platform]()
    assert bool(engine.engine.group.fullmatch(name)) is matches


async def test_without_the_engine_nobody_is_asked(tmp_path: Path) -> None:
    async def ask() -> engines.Containers:
        raise AssertionError("nobody is there")

    engine = replace(
        engines.podman(storage=str(tmp_path)).engine, parents=("/no-such-slice",), ask=ask
    )
    platform = engines.EnginePlatform(engine)
    assert await platform.list_ves() == []
    assert platform.asked.problem is None


async def test_until_the_engine_answers_nobody_knows_what_the_owner_wishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is there by its cgroup before its labels are."""
    answers: list[engines.Containers] = []

    async def ask() -> engines.Containers:
        if not answers:
            raise PlatformError("docker does not answer")
        return answers[0]

    group = "/system.slice/docker-x.scope"
    monkeypatch.setattr(engines.EnginePlatform, "find_groups", lambda _: {group: {"id": WEB}})
    monkeypatch.setattr(engines.seen, "first_of_group", lambda _: 1)
    monkeypatch.setattr(engines.seen, "running", lambda _: {"state": VeState.RUNNING})
    platform = engines.EnginePlatform(replace(engines.docker(state=str(tmp_path)).engine, ask=ask))
    (ve,) = await platform.list_ves()
    assert not ve.labels_known
    await platform.asked.settle()
    with pytest.raises(PlatformError) as problem:
        await platform.list_ves()
    assert [one.labels_known for one in problem.value.partial] == [False]
    answers.append({WEB: engines.Container(native_id=WEB, name="web", labels={"fswatch": "auto"})})
    platform.asked._ended = None
    with pytest.raises(PlatformError):
        await platform.list_ves()
    await platform.asked.settle()
    (ve,) = await platform.list_ves()
    assert (ve.labels_known, ve.labels) == (True, {"fswatch": "auto"})


async def test_a_container_whose_volume_lies_on_a_lost_server_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/mnt/nfs/data.img"
    (tmp_path / "containers").mkdir()

    async def ask() -> engines.Containers:
        return {WEB: engines.Container(native_id=WEB, name="web", disks=((path, "/data"),))}

    platform = engines.EnginePlatform(replace(engines.docker(state=str(tmp_path)).engine, ask=ask))
    with Server(monkeypatch) as server:
        monkeypatch.setattr(platform, "_kinds", server.kinds())
        await platform.list_ves()
        await platform.asked.settle()
        (ve,) = await platform.list_ves()
        assert ve.volumes == (Volume(image=path, mountpoint="/data"),)
        server.is_lost = True
        with pytest.raises(PlatformError, match=r"/mnt/nfs/data\.img does not answer") as problem:
            await platform.list_ves()
        (ve,) = problem.value.partial
        assert ve.volumes == (Volume(image=path, mountpoint="/data"),)
