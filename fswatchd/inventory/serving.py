"""Which VE serves a filesystem that others on this node use.

Declared for NFS and SMB (`serves` in ve.d); for FUSE found by the process that holds its
connection. Who is behind 9p and virtiofs is outside of the node that has them mounted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fswatchd.devno import Devno
from fswatchd.inventory.model import (
    NamespaceKey,
    NamespaceMount,
    RemoteFilesystem,
    Ve,
    VeId,
)
from fswatchd.inventory.ownership import server_of
from fswatchd.kernel import fuse, proc
from fswatchd.kernel.remote import is_remote

VeOfProcess = Callable[[int], VeId | None]


def declared(ves: Iterable[tuple[VeId, Sequence[str]]], source: str, address: str) -> VeId | None:
    """The VE that declares to serve what is mounted from `source`, a server at `address`."""
    wanted = {source, server_of(source), address} - {""}
    return next((ve_id for ve_id, serves in ves if wanted & set(serves)), None)


def mounted(
    places: Mapping[Devno, Sequence[NamespaceMount]], ves: Mapping[VeId, Ve]
) -> dict[Devno, RemoteFilesystem]:
    """Those of the mounted filesystems that others serve, with the VE that declares to."""
    declaring = [(ve.ve_id, ve.serves) for ve in ves.values() if ve.serves]
    found = {}
    for devno, mounts in places.items():
        mount = mounts[0].mount
        if is_remote(mount.fstype):
            options = [o for o in mount.superblock_options if o.startswith("addr=")]
            address = options[0].removeprefix("addr=") if options else ""
            found[devno] = RemoteFilesystem(
                devno=devno,
                fstype=mount.fstype,
                source=mount.source,
                mounts=tuple(mounts),
                address=address,
                served_by=declared(declaring, mount.source, address),
            )
    return found


def used_by_others(
    remote: Mapping[Devno, RemoteFilesystem],
    hosts: Collection[Devno | None],
    owners: Mapping[NamespaceKey, str],
) -> set[Devno]:
    """Those that hold images, or are mounted by several: else only who serves it can miss it."""
    return {
        devno
        for devno, found in remote.items()
        if devno in hosts or len({owners.get(place.namespace) for place in found.mounts}) > 1
    }


def ve_of_process(ves: Mapping[VeId, Ve]) -> VeOfProcess:
    """Whose a process is by its cgroup."""
    groups = {ve.cgroup: ve.ve_id for ve in ves.values() if ve.cgroup}

    def ve_of(pid: int) -> VeId | None:
        for path in proc.cgroups(pid).values():
            for group, ve_id in groups.items():
                if path == group or path.startswith(f"{group}/"):
                    return ve_id
        return None

    return ve_of


@dataclass(frozen=True, slots=True)
class _Server:
    pid: int
    started: int | None


class FuseServers:
    """Remembers who serves what: it is looked for once, and again when the server has ended."""

    def __init__(self) -> None:
        self._known: dict[Devno, _Server | None] = {}

    def forget(self) -> None:
        """Look for all of them again next time."""
        self._known.clear()

    def completed(
        self,
        remote: Mapping[Devno, RemoteFilesystem],
        used_by_others: Collection[Devno],
        ve_of: VeOfProcess,
    ) -> dict[Devno, RemoteFilesystem]:
        """With the serving VE, where others than the server use it; the rest is nobody's cause."""
        wanted = [
            devno
            for devno in used_by_others
            if devno in remote and remote[devno].fstype.partition(".")[0] == "fuse"
        ]
        self._known = {
            devno: server
            for devno, server in self._known.items()
            if devno in wanted and (server is None or proc.is_alive(server.pid, server.started))
        }
        if unknown := [devno for devno in wanted if devno not in self._known]:
            found = fuse.servers(unknown)
            for devno in unknown:
                pids = found.get(devno, [])
                # A helper of the server on the node may hold it as well: a VE's process counts.
                pid = next((pid for pid in pids if ve_of(pid)), pids[0] if pids else None)
                self._known[devno] = _Server(pid, proc.start_time(pid)) if pid else None
        served = dict(remote)
        for devno in wanted:
            server = self._known[devno]
            ve_id = ve_of(server.pid) if server is not None else None
            if ve_id is not None:
                served[devno] = replace(remote[devno], served_by=ve_id)
        return served
