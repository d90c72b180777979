"""LXC containers (lxc(7), lxc.container.conf(5)).

Running ones are those whose monitor listens on the abstract socket `@LXCPATH/NAME/command`, which
is how liblxc itself lists them (src/lxc/lxccontainer.c, list_active_containers); configured ones
have a `config` below the default path or a path on which something runs.

Everybody can listen on a socket of such a name, and answer what he likes. So a name leads only to
paths that nobody but root can write, and an answer only to a process that the kernel shows as the
init of that container: first in a PID namespace of its own, in a mount namespace that is not the
node's, in the cgroup that liblxc makes for this container at a place where only root can.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fswatchd import process
from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, NamespaceKey, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, mounts, proc, pseudofile
from fswatchd.platforms.kinds import Kind, Kinds, Looked
from fswatchd.situation import WISH, joined_labels

DEFAULT_PATH = "/var/lib/lxc"
_SOCKET = re.compile(r"@(/.+)/([^/]+)/command$")
# Of the kinds of storage (src/lxc/storage/storage.c) those whose source is one path; what follows
# overlay:, overlayfs:, zfs:, rbd: and nbd: is something else.
_ROOTFS = re.compile(r"\s*lxc\.rootfs\.path\s*=\s*(?:(loop|lvm|dir|btrfs):)?(/\S.*?)\s*$")
_CGROUP = re.compile(r"\s*lxc\.cgroup\.(dir|dir\.container)\s*=\s*(\S+)\s*$")
_WISH = re.compile(rf"\s*#\s*{WISH}\s*[:=]\s*(.*?)\s*$")
_COMMAND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Init:
    """The first process of a container, and the cgroup of the whole container."""

    pid: int
    group: str


@dataclass(frozen=True, slots=True)
class Root:
    """What `lxc.rootfs.path` says; `is_loop` where it calls it an image."""

    path: str
    is_loop: bool

    @property
    def is_asked(self) -> bool:
        """Whether the path alone does not say what it is."""
        return not self.path.startswith("/dev/")


class LxcPlatform:
    """Containers of liblxc on this node."""

    name = "lxc"

    def __init__(self, default_path: str = DEFAULT_PATH) -> None:
        self._default_path = default_path
        self._kinds = Kinds()

    def watch_directories(self) -> list[str]:
        """The cgroup roots, where a container's cgroup comes and goes, and the configurations."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        return [*roots, self._default_path]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        running = running_containers()
        names = Counter(name for _, name in running)
        paths = {path: only_root_writes(path) for path, _ in running}
        paths[self._default_path] = True
        problems: list[str] = []
        inits: dict[tuple[str, str], Init | None] = {}
        for path, name in sorted(running):
            if paths[path] and os.path.exists(os.path.join(path, name, "config")):
                try:
                    inits[path, name] = await _init(path, name, alone=names[name] == 1)
                except PlatformError as error:
                    inits[path, name] = None
                    problems.append(str(error))
        claims = Counter(init.pid for init in inits.values() if init)
        for key, init in inits.items():
            if init and claims[init.pid] > 1:
                inits[key] = None
                problems.append(f"{'/'.join(key)}: process {init.pid} is claimed more than once")
        for path in sorted(path for path, trusted in paths.items() if trusted):
            for name in sorted(configured_containers(path)):
                inits.setdefault((path, name), None)
        roots = {key: root for key in inits if (root := configured_root(*key)) is not None}
        looked = await self._kinds.look(root.path for root in roots.values() if root.is_asked)
        problems += looked.problems
        found = [
            self._describe(path, name, init, volumes_of(roots.get((path, name)), looked))
            for (path, name), init in inits.items()
        ]
        if problems:
            raise PlatformError("\n".join(problems), partial=found)
        return found

    def _describe(self, path: str, name: str, init: Init | None, volumes: tuple[Volume, ...]) -> Ve:
        inode, namespace_id = (mounts.namespace_of(init.pid) if init else None) or (None, None)
        state = VeState.STOPPED
        if init is not None:
            state = VeState.FROZEN if cgroup.is_frozen(init.group) else VeState.RUNNING
        selector = ("-n", name, "-P", path)
        labels = configured_labels(path, name)
        return Ve(
            ve_id=VeId(f"lxc:{name}" if path == self._default_path else f"lxc:{path}/{name}"),
            platform=self.name,
            native_id=name,
            name=name,
            state=state,
            labels=labels or {},
            labels_known=labels is not None,
            init_pid=init.pid if init else None,
            init_started=proc.start_time(init.pid) if init else None,
            namespace=NamespaceKey(inode) if inode is not None else None,
            namespace_id=namespace_id,
            cgroup=init.group if init else None,
            volumes=volumes,
            commands=Commands(
                start=("lxc-start", *selector),
                stop=("lxc-stop", *selector, "-t", "30"),
                kill=("lxc-stop", "-k", *selector),
                freeze=("lxc-freeze", *selector),
                thaw=("lxc-unfreeze", *selector),
            ),
        )


def running_containers() -> set[tuple[str, str]]:
    """(lxcpath, name) of every container whose monitor, or somebody in its place, listens."""
    table = pseudofile.lines("/proc/net/unix")
    return {(m[1], m[2]) for line in table if (m := _SOCKET.search(line))}


def only_root_writes(path: str) -> bool:
    """Whether root alone decides what is found at the directory `path`, and it is no view of /proc.

    A parent that everybody may write, as /tmp, is no harm where the sticky bit keeps others from
    renaming what is root's in it.
    """
    if path != os.path.normpath(path) or not path.startswith("/"):
        return False
    real = os.path.realpath(path)
    process_filesystem = os.stat("/proc").st_dev
    for place in {real, path, *map(str, Path(real).parents), *map(str, Path(path).parents)}:
        try:
            found = os.lstat(place)
        except (OSError, ValueError):
            return False
        if found.st_uid != 0 or found.st_dev == process_filesystem:
            return False
        if stat.S_ISLNK(found.st_mode):
            continue
        others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)
        if others and (place == real or not found.st_mode & stat.S_ISVTX):
            return False
    return True


def configured_containers(path: str) -> list[str]:
    """Names with a configuration below `path`."""
    try:
        with os.scandir(path) as entries:
            return [e.name for e in entries if os.path.exists(os.path.join(e.path, "config"))]
    except OSError:
        return []


def configured_root(path: str, name: str) -> Root | None:
    """Where the root filesystem is; None where that cannot be read, or is no path."""
    try:
        with open(os.path.join(path, name, "config"), encoding="utf-8", errors="replace") as file:
            match = next((m for line in file if (m := _ROOTFS.match(line))), None)
    except OSError:
        return None
    return Root(match[2], is_loop=match[1] == "loop") if match is not None else None


def volumes_of(root: Root | None, looked: Looked) -> tuple[Volume, ...]:
    """The image or device of the root filesystem; none for a directory."""
    if root is None:
        return ()
    if not root.is_asked:
        return (Volume(device=root.path),)
    is_image = looked.get(root.path) is Kind.FILE
    if is_image or (root.is_loop and looked.is_unknown(root.path)):
        return (Volume(image=root.path),)
    return ()


def configured_labels(path: str, name: str) -> dict[str, str] | None:
    """What its owner wishes: `# fswatch: observe` in the configuration, the most careful where
    there are several. None where that cannot be read."""
    try:
        with open(os.path.join(path, name, "config"), encoding="utf-8", errors="replace") as file:
            return joined_labels({}, *({WISH: m[1]} for line in file if (m := _WISH.match(line))))
    except OSError:
        return None


async def _init(path: str, name: str, *, alone: bool) -> Init | None:
    """The container's init, None while it has none.

    `alone` says that no other container of this name runs: the only init in the cgroup of this
    name is its own then. Raises PlatformError where the monitor names a process that it cannot be.
    """
    if alone:
        candidates = {
            pid for group in (f"lxc.payload.{name}", f"lxc/{name}") for pid in cgroup.pids(group)
        }
        inits = [init for pid in candidates if (init := believed(pid, path, name))]
        if len(inits) == 1:
            return inits[0]
    argv = ("lxc-info", "-n", name, "-P", path, "-p", "-H")
    try:
        answer = await process.run(argv, timeout_s=_COMMAND_TIMEOUT_S)
    except process.ProcessError:
        return None
    text = answer.output.strip()
    if not answer.succeeded or not text.isdecimal() or int(text) <= 0:
        return None
    init = believed(int(text), path, name)
    if init is None and proc.is_alive(int(text), None):
        raise PlatformError(
            f"{path}/{name}: its monitor names process {text}, which is not the first process of a "
            f"container in the cgroup of that name"
        )
    return init


def believed(pid: int, path: str, name: str) -> Init | None:
    """`pid` as the init of the container, None where the kernel shows something else."""
    if not proc.is_container_init(pid):
        return None
    if proc.mount_namespace_inode(pid) in {None, proc.mount_namespace_inode("self")}:
        return None
    place = re.compile(f"(?:{'|'.join(_payload_patterns(path, name))})(?=/|$)")
    groups = proc.cgroups(pid)
    # An init such as systemd moves itself further down: the container is the payload's subtree.
    for controllers in ("", "freezer", *groups):
        match = place.match(groups.get(controllers, ""))
        if match:
            return Init(pid, match[0])
    return None


def _payload_patterns(path: str, name: str) -> list[str]:
    """Where liblxc puts the container's processes (src/lxc/cgroups/cgfsng.c, payload_create).

    A number follows where a cgroup of the name was there already. Always from the root of the
    hierarchy: below a directory that was delegated to a user he can make any name.
    """
    payload = rf"lxc\.payload\.{re.escape(name)}(?:-\d+)?"
    found = [f"/{payload}", rf"/lxc/{re.escape(name)}(?:-\d+)?"]
    try:
        with open(os.path.join(path, name, "config"), encoding="utf-8", errors="replace") as file:
            for match in filter(None, map(_CGROUP.match, file)):
                directory = "/" + re.escape(match[2].strip("/"))
                found.append(directory if match[1] != "dir" else f"{directory}/{payload}")
    except OSError:
        pass
    return found
