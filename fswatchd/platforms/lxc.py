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

import re
from collections import Counter
from dataclasses import dataclass, replace

from fswatchd import process
from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, NamespaceKey, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, mounts, proc, pseudofile
from fswatchd.platforms import lxc_config
from fswatchd.platforms.beside import Beside
from fswatchd.platforms.kinds import Kind, Kinds, Looked
from fswatchd.platforms.lxc_config import Config, Key, Root

DEFAULT_PATH = "/var/lib/lxc"
_SOCKET = re.compile(r"@(/.+)/([^/]+)/command$")
_COMMAND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Init:
    """The first process of a container, and the cgroup of the whole container."""

    pid: int
    group: str


class LxcPlatform:
    """Containers of liblxc on this node."""

    name = "lxc"

    def __init__(self, default_path: str = DEFAULT_PATH) -> None:
        self._default_path = default_path
        self._kinds = Kinds()
        self._configs: Beside[dict[Key, Config]] = Beside({})

    def watch_directories(self) -> list[str]:
        """The cgroup roots, where a container's cgroup comes and goes, and the configurations."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        return [*roots, self._default_path]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        running = running_containers()
        names = Counter(name for _, name in running)
        where = ", ".join(sorted({self._default_path, *(path for path, _ in running)}))
        configs, problems = await self._configs.ask(
            lambda: lxc_config.read_all(self._default_path, running), where
        )
        late = problems[0] if problems else None
        inits: dict[Key, Init | None] = {}
        for path, name in sorted(running & configs.keys()):
            config = configs[path, name]
            try:
                inits[path, name] = await _init(path, name, config, alone=names[name] == 1)
            except PlatformError as error:
                inits[path, name] = None
                problems.append(str(error))
        claims = Counter(init.pid for init in inits.values() if init)
        for key, init in inits.items():
            if init and claims[init.pid] > 1:
                inits[key] = None
                problems.append(f"{'/'.join(key)}: process {init.pid} is claimed more than once")
        roots = (config.root for config in configs.values())
        looked = await self._kinds.look(root.path for root in roots if root and root.is_asked)
        problems += looked.problems
        found = [
            self._describe(key, config, inits.get(key), volumes_of(config.root, looked))
            for key, config in configs.items()
        ]
        if late is not None:  # it could not be started again
            found = [replace(ve, busy=f"LXC: {late}") for ve in found]
        if problems:
            raise PlatformError("\n".join(problems), partial=found)
        return found

    def _describe(
        self,
        key: Key,
        config: Config,
        init: Init | None,
        volumes: tuple[Volume, ...],
    ) -> Ve:
        path, name = key
        inode, namespace_id = (mounts.namespace_of(init.pid) if init else None) or (None, None)
        state = VeState.STOPPED
        if init is not None:
            state = VeState.FROZEN if cgroup.is_frozen(init.group) else VeState.RUNNING
        selector = ("-n", name, "-P", path)
        return Ve(
            ve_id=VeId(f"lxc:{name}" if path == self._default_path else f"lxc:{path}/{name}"),
            platform=self.name,
            native_id=name,
            name=name,
            state=state,
            labels=config.labels or {},
            labels_known=config.labels is not None,
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


async def _init(path: str, name: str, config: Config, *, alone: bool) -> Init | None:
    """The container's init, None while it has none.

    `alone` says that no other container of this name runs: the only init in the cgroup of this
    name is its own then. Raises PlatformError where the monitor names a process that it cannot be.
    """
    if alone:
        candidates = {
            pid for group in (f"lxc.payload.{name}", f"lxc/{name}") for pid in cgroup.pids(group)
        }
        inits = [init for pid in candidates if (init := believed(pid, name, config))]
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
    init = believed(int(text), name, config)
    if init is None and proc.is_alive(int(text), None):
        raise PlatformError(
            f"{path}/{name}: its monitor names process {text}, which is not the first process of a "
            f"container in the cgroup of that name"
        )
    return init


def believed(pid: int, name: str, config: Config) -> Init | None:
    """`pid` as the init of the container, None where the kernel shows something else."""
    if not proc.is_container_init(pid):
        return None
    if proc.mount_namespace_inode(pid) in {None, proc.mount_namespace_inode("self")}:
        return None
    place = re.compile(f"(?:{'|'.join(_payload_patterns(name, config))})(?=/|$)")
    groups = proc.cgroups(pid)
    # An init such as systemd moves itself further down: the container is the payload's subtree.
    for controllers in ("", "freezer", *groups):
        match = place.match(groups.get(controllers, ""))
        if match:
            return Init(pid, match[0])
    return None


def _payload_patterns(name: str, config: Config) -> list[str]:
    """Where liblxc puts the container's processes (src/lxc/cgroups/cgfsng.c, payload_create).

    A number follows where a cgroup of the name was there already. Always from the root of the
    hierarchy: below a directory that was delegated to a user he can make any name.
    """
    payload = rf"lxc\.payload\.{re.escape(name)}(?:-\d+)?"
    found = [f"/{payload}", rf"/lxc/{re.escape(name)}(?:-\d+)?"]
    for is_parent, told in config.cgroups:
        directory = "/" + re.escape(told.strip("/"))
        found.append(f"{directory}/{payload}" if is_parent else directory)
    return found
