"""Containers of Podman and Docker (podman(1), docker(1)).

A running one is known by its cgroup, which has the container's whole id in its name and lies where
only root can make one: `libpod-ID.scope` in machine.slice or a pod's slice below it,
`docker-ID.scope` in system.slice with the systemd driver; `/libpod_parent/libpod-ID`, `/docker/ID`
with cgroupfs. For that nobody is asked. Name, labels and volumes are the engine's to tell, and it
is asked for them when cgroups or its database have changed; until it answers, a container has its
id as its name, and nothing is done to it: its labels may ask for care.

A container's root filesystem is an overlay or a directory on a filesystem of the node: that one is
not repaired for a container. A named volume with an image or a device of its own (`device` in its
options) is the container's: the engine mounts it on the node while one that uses it runs.

Not here: containers of users (rootless), whose cgroups lie where the user can make any.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fswatchd import process
from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup
from fswatchd.platforms import seen
from fswatchd.platforms.asked import Asked
from fswatchd.platforms.kinds import Kind, Kinds, Looked
from fswatchd.platforms.seen import Seen

_DEADLINE_S = 10.0
_MAX_ANSWER = 64 << 20
_ID = re.compile(r"[0-9a-f]{64}")
_SHORT = 12
_JSON = re.compile(r"^[\[{]", re.MULTILINE)
_BINDS = frozenset({"bind", "rbind"})
_POD_SLICE = re.compile(r"machine-libpod_pod_[0-9a-f]{64}\.slice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What the engine says of one; `disks` are the paths of its volumes' images and devices, each
    with where it is mounted."""

    native_id: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    disks: tuple[tuple[str, str], ...] = ()


Containers = dict[str, Container]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What is different between engines: `name` is its program too. `parents` are cgroups below
    which the containers' lie, `group` the names of these, `databases` files that change with
    them."""

    name: str
    parents: tuple[str, ...]
    group: re.Pattern[str]
    databases: tuple[str, ...]
    ask: Callable[[], Awaitable[Containers]]


class EnginePlatform:
    """The containers of one engine on this node."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.asked: Asked[Containers] = Asked(engine.ask, {})
        self.engine = engine
        self._kinds = Kinds()

    def watch_directories(self) -> list[str]:
        """Where the containers' cgroups come and go, and where the engine keeps its state."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        groups = [f"{root}{parent}" for root in roots for parent in self.engine.parents]
        return [*roots, *groups, *(str(Path(path).parent) for path in self.engine.databases)]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        groups = {match["id"]: path for path, match in self.find_groups().items()}
        stamps = tuple(seen.stamp(path) for path in self.engine.databases)
        if not groups and not any(stamps):
            return []
        told = self.asked.look((frozenset(groups), stamps))
        looked = await self._kinds.look(path for one in told.values() for path, _ in one.disks)
        found = [
            self._describe(told.get(one), one, groups.get(one), looked)
            for one in sorted({*told, *groups})
        ]
        ves = [ve for ve in found if ve]
        problems = [*filter(None, [self.asked.problem]), *looked.problems]
        if problems:
            raise PlatformError("\n".join(problems), partial=ves)
        return ves

    def find_groups(self) -> dict[str, re.Match[str]]:
        """The containers' cgroups."""
        parents = list(self.engine.parents)
        if "/machine.slice" in parents:
            parents += seen.groups_named(["/machine.slice"], _POD_SLICE)
        return seen.groups_named(parents, self.engine.group)

    def _describe(
        self, told: Container | None, native_id: str, group: str | None, looked: Looked
    ) -> Ve | None:
        pid = seen.first_of_group(group) if group else None
        if told is None and pid is None:
            return None  # a cgroup that its container has left behind
        return Ve(
            ve_id=VeId(f"{self.name}:{native_id[:_SHORT]}"),
            platform=self.name,
            native_id=native_id,
            name=told.name if told else native_id[:_SHORT],
            labels=told.labels if told else {},
            labels_known=told is not None,
            volumes=volumes_of(told, looked) if told else (),
            commands=Commands(
                start=(self.name, "start", native_id),
                stop=(self.name, "stop", native_id),
                kill=(self.name, "kill", native_id),
                # podman-pause(1), docker container pause: the engine shows it as paused.
                freeze=(self.name, "pause", native_id),
                thaw=(self.name, "unpause", native_id),
            ),
            node_mounts=True,
            **seen.running(Seen(pid, group) if pid is not None else None),
        )


def podman(
    *options: str, storage: str = "/var/lib/containers/storage", parents: Iterable[str] = ()
) -> EnginePlatform:
    """Root's containers of Podman; `options` come before every command of the program."""

    async def ask() -> Containers:
        argv = ("podman", *options, "ps", "--all", "--format", "json")
        listed = parse_json(await _output(argv), "podman ps")
        ids = [one["Id"] for one in listed if one.get("Mounts")]
        if not ids:
            return read_podman(listed)
        argv = ("podman", *options, "volume", "ls", "--format", "json")
        devices = volume_devices(parse_json(await _output(argv), "podman volume ls"))
        if not devices:
            return read_podman(listed)
        argv = ("podman", *options, "container", "inspect", *ids)
        inspected = parse_json(await _output(argv), "podman inspect")
        return read_podman(listed, inspected, devices)

    return EnginePlatform(
        Engine(
            name="podman",
            parents=("/machine.slice", "/libpod_parent", *parents),
            group=re.compile(r"libpod-(?P<id>[0-9a-f]{64})(?:\.scope)?"),
            # BoltDB before Podman 5, SQLite and its journal since.
            databases=(
                f"{storage}/libpod/bolt_state.db",
                f"{storage}/db.sql",
                f"{storage}/db.sql-wal",
            ),
            ask=ask,
        )
    )


def docker(socket: str = "/var/run/docker.sock", state: str = "/var/lib/docker") -> EnginePlatform:
    """Containers of a Docker daemon, asked through its API (docs.docker.com/reference/api)."""

    async def ask() -> Containers:
        what = f"docker at {socket}"
        listed = parse_json(await http_get(socket, "/containers/json?all=1", _DEADLINE_S), what)
        volumes = parse_json(await http_get(socket, "/volumes", _DEADLINE_S), what)
        return read_docker(listed, volume_devices(volumes.get("Volumes") or []))

    return EnginePlatform(
        Engine(
            name="docker",
            parents=("/system.slice", "/docker"),
            group=re.compile(r"(?:docker-)?(?P<id>[0-9a-f]{64})(?:\.scope)?"),
            databases=(f"{state}/containers",),
            ask=ask,
        )
    )


def volume_devices(listed: list[dict[str, Any]]) -> dict[str, str]:
    """Name → image or device of each volume that may have one of its own.

    The volume driver `local` hands `type`, `device` and `o` to mount(8): only a path on the node
    is meant, not a remote server's or a bind of something else.
    """
    found = {}
    for one in listed:
        options = one.get("Options") or {}
        device = options.get("device", "")
        is_bind = not _BINDS.isdisjoint(options.get("o", "").split(","))
        if one.get("Driver") == "local" and device.startswith("/") and not is_bind:
            found[one["Name"]] = device
    return found


def volumes_of(told: Container, looked: Looked) -> tuple[Volume, ...]:
    """Its images, and its devices, also one that is not there now; directories are none."""
    found = []
    for path, point in told.disks:
        kind = looked.get(path)
        if kind is Kind.FILE:
            found.append(Volume(image=path, mountpoint=point))
        elif kind is Kind.DEVICE or (kind is None and path.startswith("/dev/")):
            found.append(Volume(device=path, mountpoint=point))
    return tuple(found)


def read_podman(
    listed: list[dict[str, Any]],
    inspected: Iterable[dict[str, Any]] = (),
    devices: dict[str, str] | None = None,
) -> Containers:
    """`podman ps --format json` and `podman container inspect`, as Podman 3 to 5 print them."""
    disks = {one["Id"]: _disks(one.get("Mounts"), devices or {}) for one in inspected}
    return {
        one["Id"]: Container(
            native_id=one["Id"],
            name=(one.get("Names") or [one["Id"][:_SHORT]])[0],
            labels=dict(one.get("Labels") or {}),
            disks=disks.get(one["Id"], ()),
        )
        for one in listed
        if _ID.fullmatch(one["Id"]) and not one.get("IsInfra")
    }


def read_docker(listed: list[dict[str, Any]], devices: dict[str, str] | None = None) -> Containers:
    """The answer to `GET /containers/json`."""
    return {
        one["Id"]: Container(
            native_id=one["Id"],
            name=(one.get("Names") or [one["Id"][:_SHORT]])[0].removeprefix("/"),
            labels=dict(one.get("Labels") or {}),
            disks=_disks(one.get("Mounts"), devices or {}),
        )
        for one in listed
        if _ID.fullmatch(one["Id"])
    }


async def http_get(socket: str, path: str, timeout_s: float) -> str:
    """The body of a GET over a unix socket, with HTTP/1.0: the server closes at its end.

    Raises PlatformError.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                answer = await _read(reader, socket)
            finally:
                writer.close()
    except TimeoutError:
        raise PlatformError(f"{socket} does not answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise PlatformError(f"{socket}: {error.strerror or error}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split()
    if len(status) < 2 or status[1] != b"200":
        raise PlatformError(f"{socket}: {path}: {head[:80].decode('ascii', 'backslashreplace')}")
    return body.decode("utf-8", "backslashreplace")


async def _read(reader: asyncio.StreamReader, socket: str) -> bytes:
    answer = bytearray()
    while chunk := await reader.read(1 << 16):
        answer += chunk
        if len(answer) > _MAX_ANSWER:
            raise PlatformError(f"{socket}: its answer is longer than {_MAX_ANSWER} bytes")
    return bytes(answer)


async def _output(argv: tuple[str, ...]) -> str:
    try:
        done = await process.run(argv, timeout_s=_DEADLINE_S, max_output=_MAX_ANSWER)
    except process.ProcessError as error:
        raise PlatformError(error.message, hint=error.hint) from error
    if not done.succeeded:
        raise PlatformError(done.describe())
    return done.output


def parse_json(text: str, what: str) -> Any:
    """A tool's JSON; raises PlatformError naming `what` gave it."""
    try:
        # Warnings of a tool come before its answer, on the same pipe.
        begin = _JSON.search(text)
        return json.loads(text[begin.start() :] if begin else text)
    except ValueError as error:
        raise PlatformError(f"{what}: not JSON: {error}") from error


def _disks(
    mounts: list[dict[str, Any]] | None, devices: dict[str, str]
) -> tuple[tuple[str, str], ...]:
    found = []
    for one in mounts or ():
        path = devices.get(one.get("Name") or "") if one.get("Type") == "volume" else None
        if path is not None:
            found.append((path, one["Destination"]))
    return tuple(found)
