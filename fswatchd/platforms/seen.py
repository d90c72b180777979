"""What the kernel shows of a container that a driver has found, and how it is written down.

Shared by the drivers whose containers lie in cgroups that only root can make: a cgroup of a
container's name proves whose its processes are only where nobody else can make one, which is
below the hierarchy's root and its slices, never below what was delegated to a user.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from fswatchd.events import VeState
from fswatchd.inventory.model import NamespaceKey
from fswatchd.kernel import cgroup, mounts, proc

# Slices are root's; below a session scope or user@UID.service users make what they like.
SLICES = r"(?:/[^/]+\.slice)*"


@dataclass(frozen=True, slots=True)
class Seen:
    """The first process of a container, and the cgroup of all of it; `group` is None where other
    processes may be in the same one."""

    pid: int
    group: str | None


class Running(TypedDict):
    """The fields of a `Ve` that say how it runs."""

    state: VeState
    init_pid: int | None
    init_started: int | None
    namespace: NamespaceKey | None
    namespace_id: int | None
    cgroup: str | None


def running(seen: Seen | None) -> Running:
    """Those fields for a container with this first process, or with none."""
    inode, namespace_id = (mounts.namespace_of(seen.pid) if seen else None) or (None, None)
    state = VeState.STOPPED
    if seen is not None:
        frozen = seen.group is not None and cgroup.is_frozen(seen.group)
        state = VeState.FROZEN if frozen else VeState.RUNNING
    return Running(
        state=state,
        init_pid=seen.pid if seen else None,
        init_started=proc.start_time(seen.pid) if seen else None,
        namespace=NamespaceKey(inode) if inode is not None else None,
        namespace_id=namespace_id,
        cgroup=seen.group if seen else None,
    )


def running_guest(seen: Seen | None, *, paused: bool = False) -> Running:
    """The same for a virtual machine: its process is the node's, and so are that one's mounts."""
    found = running(seen)
    found["namespace"] = found["namespace_id"] = None
    if paused and seen is not None:
        found["state"] = VeState.FROZEN
    return found


def has_own_mounts(pid: int) -> bool:
    """Whether the process is in a mount namespace that is not the node's."""
    return proc.mount_namespace_inode(pid) not in {None, proc.mount_namespace_inode("self")}


def is_first_process(pid: int) -> bool:
    """Whether it is process 1 of a container with mounts of its own."""
    return proc.is_container_init(pid) and has_own_mounts(pid)


def group_of(pid: int, place: str) -> str | None:
    """The part of the process's cgroup path that the expression `place` matches from its start.

    An init such as systemd moves itself further down: the container is the subtree.
    """
    wanted = re.compile(f"(?:{place})(?=/|$)")
    groups = proc.cgroups(pid)
    for controllers in ("", "name=systemd", "freezer", *groups):
        match = wanted.match(groups.get(controllers, ""))
        if match:
            return match[0]
    return None


def first_of_group(group: str) -> int | None:
    """The first process of the container that has the cgroup to itself, None where none is left.

    One whose PID namespace is somebody else's (a pod's, the node's) has no process 1 of its own:
    then the oldest one that has mounts of its own.
    """
    members = [pid for pid in cgroup.pids(group) if proc.is_alive(pid, None)]
    inits = [pid for pid in members if is_first_process(pid)]
    return min(inits or filter(has_own_mounts, members), key=_age, default=None)


def groups_named(parents: Iterable[str], name: re.Pattern[str]) -> dict[str, re.Match[str]]:
    """Cgroups directly below `parents` (paths below the hierarchies) whose name matches whole.

    The unified hierarchy and the one beside it that the v1 tools use are looked at.
    """
    found: dict[str, re.Match[str]] = {}
    for root in cgroup.hierarchies()[:2]:
        for parent in parents:
            for entry in _names(root / parent.lstrip("/")):
                match = name.fullmatch(entry)
                if match:
                    found[f"{parent.rstrip('/')}/{entry}"] = match
    return found


def stamp(path: str) -> tuple[int, int, int] | None:
    """What changes with every change of a file or of a directory's entries; None without it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _age(pid: int) -> tuple[float, int]:
    return (proc.start_time(pid) or math.inf, pid)
