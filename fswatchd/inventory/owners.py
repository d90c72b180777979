"""Whose each mount namespace is: a VE's, the node's, or somebody else's, by description.

The drivers say which namespace their VEs' first processes are in. For every other one that has disk
filesystems in it a process is looked for: by its cgroup it may be a VE's all the same, and where it
is the first of a container that no driver knows, `unclaimed` may make a VE of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fswatchd.inventory.model import NamespaceKey, Ve, VeId
from fswatchd.inventory.scan import MountTable
from fswatchd.kernel import proc

NODE = "the node"
# unshare(1) makes the namespace, and then the first process: a younger one is looked for again.
_SETTLED_S = 5.0

# The VE that the container with this first process is, None where it cannot be told.
Unclaimed = Callable[[int], Ve | None]


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    command: str
    is_init: bool

    @property
    def text(self) -> str:
        return f"process {self.pid} ({self.command})"


class Owners:
    """Remembers a process in each namespace of no VE, for as long as it is in there."""

    def __init__(self, unclaimed: Unclaimed | None = None) -> None:
        self._unclaimed = unclaimed
        self._processes: dict[NamespaceKey, _Process] = {}
        self._claims: dict[_Process, Ve] = {}

    def process_in(self, namespace: NamespaceKey) -> int | None:
        """A process that was in the namespace at the last look, None where none is known."""
        known = self._processes.get(namespace)
        return known.pid if known else None

    def forget(self) -> None:
        """Look anew for all that are no container's first process: one may have come. And ask anew
        about those that are."""
        self._processes = {key: known for key, known in self._processes.items() if known.is_init}
        self._claims.clear()

    def find(
        self, table: MountTable, ves: Mapping[VeId, Ve], node: NamespaceKey
    ) -> tuple[dict[NamespaceKey, str], dict[VeId, Ve]]:
        """The owner of each namespace, and the VEs with those that nobody had claimed."""
        owners: dict[NamespaceKey, str] = {
            ve.namespace: ve.ve_id for ve in ves.values() if ve.namespace is not None
        }
        owners[node] = NODE  # last: no VE is the node, whatever is said of it
        unknown = [key for key, found in table.items() if found and key not in owners]
        self._processes = {
            key: known
            for key, known in self._processes.items()
            if key in table and proc.mount_namespace_inode(known.pid) == key
        }
        self._look_for({key for key in unknown if not self._is_settled(key)})
        groups = {ve.cgroup: ve for ve in ves.values() if ve.cgroup}
        found = dict(ves)
        known_in = self._processes
        # First processes first: what else is in their cgroups is theirs.
        for key in sorted(
            known_in.keys() & set(unknown), key=lambda k: (not known_in[k].is_init, k)
        ):
            known = known_in[key]
            owner = _owner_of(known, groups)
            if owner is None and (ve := self._claimed(known, key, found)):
                owner = found.setdefault(ve.ve_id, ve).ve_id
                groups |= {ve.cgroup: ve} if ve.cgroup else {}
            owners[key] = owner or known.text
        self._claims = {
            known: self._claims[known] for known in self._claims.keys() & set(known_in.values())
        }
        return owners, found

    def _claimed(self, known: _Process, key: NamespaceKey, ves: Mapping[VeId, Ve]) -> Ve | None:
        ve = self._claims.get(known)
        if ve is not None and ve.init_started != proc.start_time(known.pid):
            ve = None
        if ve is None and known.is_init and self._unclaimed:
            ve = self._unclaimed(known.pid)
        if ve is None or ve.namespace != key or ve.ve_id in ves:
            return None
        self._claims[known] = ve
        others = (other.cgroup for other in ves.values() if other.cgroup)
        if ve.cgroup and any(f"{other}/".startswith(f"{ve.cgroup}/") for other in others):
            return None  # more than this one is in its cgroup
        return ve

    def _is_settled(self, key: NamespaceKey) -> bool:
        known = self._processes.get(key)
        if known is None or known.is_init:
            return known is not None
        started = proc.started_at(known.pid)
        return started is not None and time.time() - started >= _SETTLED_S

    def _look_for(self, wanted: set[NamespaceKey]) -> None:
        """A process in each of the namespaces; the first of a container where there is one."""
        if not wanted:
            return
        for pid in proc.pids():
            inode = proc.mount_namespace_inode(pid)
            if inode is None or (key := NamespaceKey(inode)) not in wanted:
                continue
            is_init = proc.is_container_init(pid)
            if is_init or key not in self._processes:
                self._processes[key] = _Process(pid, proc.command_name(pid), is_init)
            if is_init:
                wanted.discard(key)


def _owner_of(known: _Process, groups: dict[str, Ve]) -> str | None:
    for path in proc.cgroups(known.pid).values():
        for group, ve in groups.items():
            if path == group or path.startswith(f"{group}/"):
                # A hypervisor has copies of the node's mounts (libvirt gives it a namespace): they
                # are nothing of the guest's.
                return f"{known.text} of {ve.ve_id}" if ve.guest else ve.ve_id
    return None
