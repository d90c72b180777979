"""Containers of OpenVZ 6 and of Virtuozzo and OpenVZ 7 to 9 (vzctl(8), ve.conf(5), vz(5)).

/etc/vz/conf/CTID.conf says which there are, their names and disks. No tool is asked: `vzlist` and
`prlctl` read the same files, and take seconds where there are many.

What runs, the kernel says: the first process is the one in the pid file of libvzctl, or in the
container's cgroup (/CTID in OpenVZ 6, /machine.slice/CTID since), that the kernel shows as number 1
of this container (`envID`, `VPid`), or, on kernels without these, as the first of a container in
that cgroup.

A disk is a ploop image, which vzctl mounts in the node's own namespace, at VE_ROOT. The device goes
with the stop, and `vzctl start` checks the filesystem itself: it is watched, not repaired. In the
older layout (simfs) the private area is the root filesystem: a directory of the node's filesystem,
and the container's own; nothing in it is believed, or even looked at.

There is no `Lock`. A file LOCKDIR/CTID.lck with a process id, made by link(2), is what keeps two
vzctl apart, not flock(2) (libvzctl, lib/lock.c; Virtuozzo takes a flock on VE_PRIVATE/.lck besides,
and deletes the file afterwards); and whoever holds it keeps `vzctl start` out too, ours as well.
While another one holds it the VE is busy.

Not here: virtual machines of Virtuozzo.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fswatchd.events import VeState
from fswatchd.inventory.model import DISK_FILESYSTEMS, Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import block, cgroup, mountinfo, proc
from fswatchd.kernel.mounts import Mount
from fswatchd.platforms import ploop, seen
from fswatchd.platforms.declared import read_pid_file
from fswatchd.platforms.seen import Seen
from fswatchd.platforms.vzconf import DEFAULTS, UUID, Config, Container, describe, read_config
from fswatchd.situation import WISH

_CONFIG = "/etc/vz"
_PID_FILES = "/var/run/ve"
# The configurations may be links to a storage that is served by a process, or over the network.
_ANSWER_S = 2.0
_CTID = re.compile(rf"[1-9][0-9]{{0,9}}|{UUID}")
# Filesystems of this node alone: there nobody else can be a container's owner.
_LOCAL = DISK_FILESYSTEMS - {"gfs2", "ocfs2"}


@dataclass(slots=True)
class _Look:
    """What is read once for all containers, and what is wrong.

    `mounts` are the node's by their place, the uppermost where there are several; `groups` the
    cgroups that containers may have; `locks` the names of the lock files.
    """

    node: Config
    mounts: dict[str, Mount]
    groups: frozenset[str]
    locks: frozenset[str]
    problems: list[str] = field(default_factory=list)

    def above(self, path: str) -> Mount | None:
        """The mount that the path is on."""
        while path not in self.mounts and path != "/":
            path = os.path.dirname(path)
        return self.mounts.get(path)

    def groups_of(self, ctid: str) -> tuple[str, ...]:
        """The container's cgroup, where there is one."""
        possible = (f"/{self.node['VE_CGROUP_SLICE']}/{ctid}", f"/{ctid}")
        return tuple(group for group in possible if group in self.groups)


class OpenvzPlatform:
    """The containers of this node. `mounts` reads the node's mount table."""

    name = "openvz"

    def __init__(
        self,
        config: str = _CONFIG,
        pid_files: str = _PID_FILES,
        mounts: Callable[[], list[Mount]] = lambda: mountinfo.read("self"),
        sysfs: Path = block.SYSFS,
    ) -> None:
        self._config = config
        self._pid_files = pid_files
        self._mounts = mounts
        self._sysfs = sysfs
        self._read: dict[str, tuple[object, Config]] = {}
        self._described: dict[str, tuple[Config, Config, Container]] = {}
        self._descriptors = ploop.Descriptors()
        self._global: Config = {}
        self._node: Config = DEFAULTS
        self._last: list[Ve] = []
        self._reading: asyncio.Task[tuple[list[Ve], list[str]] | None] | None = None
        self._late = False

    def watch_directories(self) -> list[str]:
        """Where configurations and the containers' cgroups come and go.

        Not the locks: they lie on a storage that may not answer, and are read before every act.
        """
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        slices = [f"{root}/{self._node['VE_CGROUP_SLICE']}" for root in roots]
        return [f"{self._config}/conf", *roots, *slices]

    async def list_ves(self) -> list[Ve]:
        """See Platform.

        Where the files cannot be read, locks cannot be seen: what was known counts as busy then.
        """
        if not self._last and self._reading is None and not os.path.isdir(f"{self._config}/conf"):
            return []
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._list))
        # Who was late once is not waited for again: the next look takes what has come by then.
        await asyncio.wait([self._reading], timeout=0 if self._late else _ANSWER_S)
        self._late = not self._reading.done()
        if self._late:
            raise self._unreadable("does not answer")
        reading, self._reading = self._reading, None
        try:
            found = reading.result()
        except (OSError, PlatformError) as error:
            raise self._unreadable(getattr(error, "strerror", None) or str(error)) from error
        if found is None:
            if self._last:
                raise self._unreadable("is gone")
            return []
        self._last, problems = found
        if problems:
            raise PlatformError("\n".join(problems), partial=self._last)
        return self._last

    def _unreadable(self, why: str) -> PlatformError:
        text = f"{self._config}/conf {why}"
        ves = [replace(ve, busy=ve.busy or f"OpenVZ: {text}") for ve in self._last]
        return PlatformError(text, hint="is the storage with the containers there?", partial=ves)

    def _list(self) -> tuple[list[Ve], list[str]] | None:
        try:
            names = sorted(os.listdir(f"{self._config}/conf"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._load_global()
        look = _Look(
            node=self._node,
            mounts={mount.point: mount for mount in self._mounts()},
            groups=possible_groups(self._node["VE_CGROUP_SLICE"]),
            locks=_names(self._node["LOCKDIR"]),
        )
        containers = []
        unread: dict[str, str] = {}
        ids = [name.removesuffix(".conf") for name in names if name.endswith(".conf")]
        for ctid in filter(_CTID.fullmatch, ids):
            path = f"{self._config}/conf/{ctid}.conf"
            try:
                config = self._load(path)
            except FileNotFoundError:
                if path not in self._read:
                    continue  # a link to a storage that this node does not have now
                unread[ctid] = f"{path} leads nowhere"
            except PlatformError as error:
                unread[ctid] = str(error)
            except OSError as error:
                unread[ctid] = f"{path}: {error.strerror}"
            if ctid in unread:
                look.problems.append(unread[ctid])
                if path not in self._read:
                    continue
                config = self._read[path][1]
            containers.append(self._container(ctid, config, path))
        self._keep_only(names)
        said = Counter(name for one in containers for name in {one.ctid, one.uuid or one.ctid})
        ves = []
        for one in containers:
            alias = one.uuid if one.uuid and said[one.uuid] == 1 else None
            ve = self._ve(one, alias, look)
            if one.ctid in unread:
                ve = replace(ve, busy=ve.busy or f"OpenVZ: {unread[one.ctid]}")
            ves.append(ve)
        return ves, look.problems

    def _load_global(self) -> None:
        try:
            found = self._load(f"{self._config}/vz.conf")
        except FileNotFoundError:
            found = {}
        if found is not self._global:
            self._global, self._node = found, {**DEFAULTS, **found}

    def _container(self, ctid: str, config: Config, path: str) -> Container:
        """Described again only when a configuration has changed."""
        known = self._described.get(path)
        if known is None or known[0] is not config or known[1] is not self._node:
            described = describe(ctid, config, self._node, path)
            known = self._described[path] = (config, self._node, described)
        return known[2]

    def _keep_only(self, names: list[str]) -> None:
        kept = {f"{self._config}/vz.conf", *(f"{self._config}/conf/{name}" for name in names)}
        self._read = {path: known for path, known in self._read.items() if path in kept}
        self._described = {path: one for path, one in self._described.items() if path in kept}

    def _load(self, path: str) -> Config:
        """The configuration, read again only when it has changed. Raises OSError, PlatformError."""
        found = os.stat(path)
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_uid, found.st_mode)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            if found.st_uid not in {0, os.geteuid()} or found.st_mode & 0o022:
                raise PlatformError(f"{path}: others than root can write it")
            if not stat.S_ISREG(found.st_mode):
                raise PlatformError(f"{path}: it is not a regular file")
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            known = self._read[path] = (stamp, read_config(text))
        return known[1]

    def _ve(self, one: Container, alias: str | None, look: _Look) -> Ve:
        groups = look.groups_of(one.ctid)
        found = self._first_process(one.ctid, groups)
        shown = seen.running(found)
        lock = f"{one.ctid}.lck"
        busy = read_lock(f"{look.node['LOCKDIR']}/{lock}") if lock in look.locks else None
        if found is None and kernel_has(groups):
            shown["state"] = VeState.UNKNOWN
            busy = busy or "it runs, and its first process cannot be told"
        elif found is None:
            busy = busy or _at_rest(one, look)
        return Ve(
            ve_id=VeId(f"{self.name}:{one.ctid}"),
            platform=self.name,
            native_id=one.ctid,
            name=one.name,
            labels={} if one.wish is None else {WISH: one.wish},
            volumes=tuple(self._volumes(one, look)),
            commands=Commands(
                start=("vzctl", "start", one.ctid),
                stop=("vzctl", "stop", one.ctid),
                kill=("vzctl", "stop", one.ctid, "--fast"),
                migrate=("vzmigrate", "{to}", one.ctid),
            ),
            node_mounts=True,
            aliases=(VeId(f"{self.name}:{alias}"),) if alias and alias != one.ctid else (),
            busy=busy or _owner_elsewhere(one, look),
            **shown,
        )

    def _first_process(self, ctid: str, groups: tuple[str, ...]) -> Seen | None:
        pid = read_pid_file(f"{self._pid_files}/{ctid}.init.pid")
        if pid is not None and (found := believed(pid, ctid, groups)):
            return found
        for group in groups:
            for pid in cgroup.pids(group):
                if proc.is_alive(pid, None) and (found := believed(pid, ctid, groups)):
                    return found
        return None

    def _volumes(self, one: Container, look: _Look) -> list[Volume]:
        volumes = []
        for disk in one.disks:
            if disk.is_device:
                # It has a partition table; what is mounted is a node that vzctl makes for it.
                kind = "partitions"
                volumes.append(Volume(device=disk.path, mountpoint=disk.mountpoint, format=kind))
                continue
            try:
                image = self._descriptors.read(disk.path)
            except (OSError, ploop.PloopError) as error:
                why = getattr(error, "strerror", None) or error
                look.problems.append(f"{disk.path}/{ploop.DESCRIPTOR}: {why}")
                continue
            if image is None:
                continue  # another layout
            point = _joined(one.root, disk.mountpoint)
            device = self._device(look.mounts.get(point), image)
            volumes.append(
                Volume(image=image.top, device=device, mountpoint=disk.mountpoint, format="ploop")
            )
        return volumes

    def _device(self, mount: Mount | None, image: ploop.Disk) -> str | None:
        """What is mounted there, where it is a ploop device and no other image is known to be."""
        disk = ploop.disk_name(mount.devno, self._sysfs) if mount else None
        if mount is None or disk is None:
            return None
        attached = ploop.attached_deltas(disk, self._sysfs)
        if attached is not None and attached[-1:] != (image.top,):
            return None
        name = os.path.basename((self._sysfs / "dev/block" / str(mount.devno)).resolve())
        return f"/dev/{name}"


def read_lock(path: str) -> str | None:
    """What the holder of a lock file does: a process id and a word; None where nobody holds it.

    As for vzctl, a file whose process is gone was left behind.
    """
    try:
        pid, _, status = Path(path).read_text(encoding="utf-8", errors="replace").partition("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"OpenVZ: {path}: {error.strerror}"
    if not pid.strip().isdecimal() or not os.path.exists(f"/proc/{int(pid)}"):
        return None
    return f"OpenVZ: {status.strip() or 'locked'} (process {int(pid)})"


def possible_groups(slice_name: str) -> frozenset[str]:
    """The cgroups that are called like a container, where those of containers are."""
    found: set[str] = set()
    for root in cgroup.hierarchies():
        for parent in ("", f"/{slice_name}"):
            with suppress(OSError):
                names = os.listdir(f"{root}{parent}")
                found.update(f"{parent}/{name}" for name in names if _CTID.fullmatch(name))
    return frozenset(found)


def believed(pid: int, ctid: str, groups: tuple[str, ...]) -> Seen | None:
    """The process as the first one of the container, None where the kernel shows something else."""
    group = seen.group_of(pid, "|".join(re.escape(one) for one in groups))
    told = proc.virtuozzo_ve(pid)
    if told is not None:
        return Seen(pid, group) if told == (ctid, 1) else None
    return Seen(pid, group) if group is not None and seen.is_first_process(pid) else None


def kernel_has(groups: tuple[str, ...]) -> bool:
    """Whether there is a container that has not stopped (`ve.state`), or anything alive."""
    if any(proc.is_alive(pid, None) for group in groups for pid in cgroup.pids(group)):
        return True
    for directory in (one for group in groups for one in cgroup.directories(group)):
        try:
            state = (directory / "ve.state").read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if state and state != "STOPPED":
            return True
    return False


def _at_rest(one: Container, look: _Look) -> str | None:
    """What may be going on with a container that does not run."""
    dumps = [f"{look.node['DUMPDIR']}/Dump.{one.ctid}"]
    if one.private_is_nodes:
        dumps.append(f"{one.private}/dump/Dump")
    if any(os.path.exists(dump) for dump in dumps):
        return "it is suspended, and has to find its filesystems as they were"
    if one.root in look.mounts:
        return "it is mounted without running (vzctl mount)"
    return None


def _owner_elsewhere(one: Container, look: _Look) -> str | None:
    """The node that a container on shared storage belongs to, if that is not this one."""
    above = look.above(one.private)
    if not one.private_is_nodes or above is None or above.fstype in _LOCAL:
        return None
    try:
        owner = Path(f"{one.private}/.owner").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    host = socket.gethostname()
    if owner in {"", look.node.get("SERVER_UUID"), host} or owner.startswith(f"{host}."):
        return None
    return f"it is registered for another node ({owner})"


def _names(directory: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except FileNotFoundError:
        return frozenset()


def _joined(root: str, point: str) -> str:
    return os.path.normpath(f"{root}/{point.lstrip('/')}") if point.strip("/") else root
