"""Instances of User-mode Linux (docs.kernel.org, virt/uml/user_mode_linux_howto_v2).

Each listens for its management console on a socket …/UMID/mconsole (os-Linux/umid.c and
drivers/mconsole_kern.c in arch/um). Only where /proc/net/unix shows one, anything else is looked
at: the instance is the process that has it open, and runs a kernel's file in the node's namespaces.

Who started it may say what he likes on its command line. So a name is taken from the socket's path,
with the user's number before it where that is not root. And a file is its volume only where the
process has it open for writing, where the file is the same user's, and where nobody but root
decides what is found at its path. `ubda=COW,BASE` makes it a COW file on a base that others may
share. An instance opens a disk when it first uses it: before that, it is no volume.

No volume of an instance is repaired: the filesystem is the instance's own kernel's, and no error in
it is in the node's log. What happens to the filesystem below concerns the instance.

The console ends an instance by `halt`: at once, without a sync. Nothing starts one again; declare
`start` in ve.d. Its cgroup is not known to be its own alone, so it has none here.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cow, proc, pseudofile
from fswatchd.platforms.lxc_config import only_root_writes

# A path may lead to where somebody else answers, or does not.
_ANSWER_S = 1.0
_AGAIN_S = 60.0
# While one boots, it opens one disk after the other.
_BOOT_S = 30.0
_PAUSE_S = 1.0
_SOCKET = re.compile(r" (\d+) (/.*/([A-Za-z0-9][A-Za-z0-9._-]{0,62})/mconsole)$")
_KERNEL = re.compile(r"(?:linux|vmlinux|uml)(?:[._-].*)?")
# arch/um/drivers/ubd_kern.c, ubd_setup_common: disk, flags, file, and after , or : its base.
_UBD = re.compile(r"ubd([a-p]|\d{1,2})([rscdt]*)=([^,:]+)(?:[,:].*)?")

_GUEST = "an instance of User-mode Linux: what is on its disks is its own kernel's"

Socket = tuple[int, str, str]  # inode, path, umid


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance: its first process, whose it is, and what it writes to."""

    pid: int
    started: int | None
    user: int
    umid: str
    socket: str
    volumes: tuple[Volume, ...] = ()

    @property
    def native_id(self) -> str:
        """The UMID, with the user's number before it where that is not root."""
        return self.umid if self.user == 0 else f"{self.user}/{self.umid}"


@dataclass(frozen=True, slots=True)
class Found:
    """All instances, and what is wrong. `complete`: no disk of any is still to be opened."""

    instances: tuple[Instance, ...] = ()
    problems: tuple[str, ...] = ()
    complete: bool = True


@dataclass(slots=True)
class _File:
    """What a descriptor of an instance leads to."""

    path: str
    status: os.stat_result
    descriptor: str
    writable: bool


@dataclass(slots=True)
class _Disks:
    """The disks of one instance: volumes by the inode that they are, and whether one is missing."""

    volumes: dict[tuple[int, int], Volume] = field(default_factory=dict)
    missing: bool = False


class UmlPlatform:
    """The instances that run on this node; one that has ended is not known any more."""

    name = "uml"

    def __init__(self) -> None:
        self._found = Found()
        self._asked_for: frozenset[Socket] | None = None
        self._asked = 0.0
        self._reading: asyncio.Task[Found] | None = None
        self._late = False

    def watch_directories(self) -> list[str]:
        """Where root's instances appear, unless they were told another place."""
        return ["/root/.uml"]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        sockets = frozenset(consoles(pseudofile.lines("/proc/net/unix")))
        if not sockets and not self._found.instances and self._reading is None:
            return []
        if self._reading is None and self._is_due(sockets):
            self._asked_for, self._asked = sockets, time.monotonic()
            self._reading = asyncio.create_task(asyncio.to_thread(find, sockets))
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=0 if self._late else _ANSWER_S)
            self._late = not self._reading.done()
            if not self._late:
                reading, self._reading = self._reading, None
                try:
                    self._found = reading.result()
                except OSError as error:
                    self._found = replace(self._found, problems=(str(error),))
        alive = [i for i in self._found.instances if proc.is_alive(i.pid, i.started)]
        ves = [self._describe(one) for one in alive]
        problems = list(self._found.problems)
        if self._late:
            problems.append("a path of an instance of User-mode Linux does not answer")
        if problems:
            raise PlatformError("\n".join(problems), partial=ves)
        return ves

    def _is_due(self, sockets: frozenset[Socket]) -> bool:
        pause = _AGAIN_S if self._found.complete else _PAUSE_S
        return sockets != self._asked_for or time.monotonic() - self._asked >= pause

    def _describe(self, one: Instance) -> Ve:
        return Ve(
            ve_id=VeId(f"{self.name}:{one.native_id}"),
            platform=self.name,
            native_id=one.native_id,
            name=one.native_id,
            state=VeState.RUNNING,
            init_pid=one.pid,
            init_started=one.started,
            volumes=one.volumes,
            commands=_commands(one),
            guest=True,
            unrepairable=_GUEST,
        )


def consoles(table: list[str]) -> list[Socket]:
    """The sockets in /proc/net/unix that are called as a console's is."""
    matches = (_SOCKET.search(line) for line in table if line.endswith("/mconsole"))
    return [(int(match[1]), match[2], match[3]) for match in matches if match]


def find(sockets: frozenset[Socket]) -> Found:
    """The instances that listen on these sockets. Looks at every process."""
    if not sockets:
        return Found()
    by_inode = {f"socket:[{inode}]": (path, umid) for inode, path, umid in sockets}
    said = Counter(f"socket:[{inode}]" for inode, _, _ in sockets)
    held: dict[str, list[int]] = {}
    for pid in proc.pids():
        if _KERNEL.fullmatch(proc.command_name(pid)) and _is_kernel(pid):
            for name in set(_links(pid).values()) & by_inode.keys():
                held.setdefault(name, []).append(pid)
    found: list[tuple[Instance, _Disks]] = []
    problems: list[str] = []
    for name, pids in held.items():
        path, umid = by_inode[name]
        if said[name] > 1:
            # Names of sockets are shown as they are, newlines too: anybody can add such a line.
            problems.append(f"{path}: another socket pretends to be the one of processes {pids}")
            continue
        # Its helpers and the processes in it are children of the first, with the same descriptors;
        # the helpers outlive a SIGKILL to it, and keep the disks open.
        firsts = [pid for pid in pids if proc.parent(pid) not in {None, *pids}]
        user = proc.user(firsts[0]) if len(firsts) == 1 else None
        if user is None:
            text = "is open in processes, and not in one alone that is the first and one user's"
            problems.append(f"{path} {text} (left over from a killed instance?): {pids}")
            continue
        pid = firsts[0]
        started = proc.start_time(pid)
        one = Instance(pid=pid, started=started, user=user, umid=umid, socket=path)
        found.append((one, _disks(pid, user)))
    complete = not any(disks.missing and _is_young(one.pid) for one, disks in found)
    return Found(_unambiguous(found, problems), tuple(problems), complete)


def _unambiguous(found: list[tuple[Instance, _Disks]], problems: list[str]) -> tuple[Instance, ...]:
    """The instances with their volumes, without what several claim: a name, or a disk."""
    names = Counter(one.native_id for one, _ in found)
    claims = Counter(key for _, disks in found for key in disks.volumes)
    kept = []
    for one, disks in found:
        if names[one.native_id] > 1:
            problems.append(f"{one.socket}: another instance is called {one.native_id} too")
            continue
        shared = [volume for key, volume in disks.volumes.items() if claims[key] > 1]
        problems += [f"{volume.image}: {one.native_id} is not alone on it" for volume in shared]
        own = tuple(volume for key, volume in disks.volumes.items() if claims[key] == 1)
        kept.append(replace(one, volumes=own))
    return tuple(sorted(kept, key=lambda one: one.native_id))


def _disks(pid: int, user: int) -> _Disks:
    found = _Disks()
    wanted = [match for word in proc.arguments(pid) if (match := _UBD.fullmatch(word))]
    files = {one.path: one for one in _files(pid)} if wanted else {}
    place = _link(f"/proc/{pid}/cwd") or "/"
    for match in wanted:
        disk, flags, name = match[1], match[2], match[3]
        # As text: whatever the name leads to, the process must have it open.
        path = os.path.normpath(os.path.join(place, name))
        one = files.get(path)
        if one is None:
            found.missing = True
        elif "r" not in flags and one.writable and _is_his(one, user):
            volume = _volume(one, "/" if disk in {"a", "0"} else "")
            if volume is not None:
                found.volumes[one.status.st_dev, one.status.st_ino] = volume
    return found


def _is_his(one: _File, user: int) -> bool:
    """Whether the file is the user's, and its path leads to it for as long as root wants."""
    if user not in {0, one.status.st_uid} or not only_root_writes(os.path.dirname(one.path)):
        return False
    try:
        there = os.lstat(one.path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (one.status.st_dev, one.status.st_ino)


def _volume(one: _File, point: str) -> Volume | None:
    if stat.S_ISBLK(one.status.st_mode):
        return Volume(device=one.path, mountpoint=point, format="ubd")
    try:
        header = cow.parse(_start_of(one))
    except (OSError, cow.CowFormatError):
        return None
    return Volume(image=one.path, mountpoint=point, format="ubd" if header is None else "cow")


def _start_of(one: _File) -> bytes:
    fd = os.open(one.descriptor, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        now = os.fstat(fd)
        if (now.st_dev, now.st_ino) != (one.status.st_dev, one.status.st_ino):
            raise FileNotFoundError(one.path)  # the process has opened something else meanwhile
        return os.pread(fd, cow.HEADER_SIZE, 0)
    finally:
        os.close(fd)


def _files(pid: int) -> list[_File]:
    """The regular files and block devices that the process has open, the deleted ones left out."""
    found = []
    for number, path in _links(pid).items():
        if not path.startswith("/"):
            continue
        descriptor = f"/proc/{pid}/fd/{number}"
        try:
            status = os.stat(descriptor)
            text = Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        if status.st_nlink and (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            flags = re.search(r"^flags:\s*0([0-7]+)$", text, re.MULTILINE)
            access = int(flags[1], 8) & os.O_ACCMODE if flags else os.O_RDONLY
            writable = access != os.O_RDONLY
            found.append(_File(path, status, descriptor, writable))
    return found


def _commands(one: Instance) -> Commands:
    """None for users' instances: what root sends would go where the user's path leads it."""
    if one.user != 0 or not only_root_writes(os.path.dirname(one.socket)):
        return Commands()
    console = ("uml_mconsole", one.socket)
    return Commands(
        stop=(*console, "halt"),
        kill=(*console, "halt"),
        freeze=(*console, "stop"),
        thaw=(*console, "go"),
    )


def _is_kernel(pid: int) -> bool:
    """Whether it runs a file called as a kernel of User-mode Linux, outside of all containers."""
    executable = os.path.basename(_link(f"/proc/{pid}/exe") or "").removesuffix(" (deleted)")
    return _KERNEL.fullmatch(executable) is not None and all(
        _link(f"/proc/{pid}/ns/{kind}") == _link(f"/proc/self/ns/{kind}")
        for kind in ("mnt", "pid", "user")
    )


def _is_young(pid: int) -> bool:
    started = proc.started_at(pid)
    return started is not None and time.time() - started < _BOOT_S


def _links(pid: int) -> dict[str, str]:
    """Descriptor → what it is, of a process."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return {}
    return {n: link for n in numbers if (link := _link(f"/proc/{pid}/fd/{n}")) is not None}


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
