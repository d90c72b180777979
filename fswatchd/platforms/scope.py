"""Containers that no driver knows: made by hand, by bubblewrap, by a runtime without an engine.

One is a first process of a PID namespace with mounts of its own, in a cgroup of root's making that
no VE of another platform has. It gets its name from the cgroup; that a service's or a session's
process made a container is no reason to call the whole service or session one. There is nothing
that starts it again: it can be told of and killed, and is declared in ve.d to have it repaired.

Not a driver that lists: `inventory.owners` asks about the processes that it comes across. What
liblxc runs is not named by its cgroup, as its own driver will: that none does is told (`unlisted`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable

from fswatchd.events import printable
from fswatchd.inventory.model import Ve, VeId
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import seen
from fswatchd.platforms.seen import Seen

CONTAINER = "a container of no known platform: nothing would start it again (see ve.d)"
PLATFORM = "scope"
# Until then its own driver may not have seen it.
_SETTLED_S = 1.0
_NAME_SHOWN = 200
_PAYLOAD = re.compile(r"lxc\.payload\..+")
# Until then whoever is to list it may still have to be asked, or to answer.
_UNLISTED_S = 60.0
_NAMES_SHOWN = 5
# Of LXC and Incus, whose names for their containers are known only when they have answered, and of
# drills, which register what they make.
_NAMED_BY_OTHERS = ("lxc.payload.", "fswatchd-drill-")


def describe(pid: int) -> Ve | None:
    """The container with this first process, None where it has no name of its own."""
    started = proc.started_at(pid)
    if started is None or time.time() - started < _SETTLED_S or not seen.is_first_process(pid):
        return None
    group = next((g for g in map(place, _paths(pid)) if g and _is_roots(g)), None)
    if group is None:
        return None
    inits = [one for one in cgroup.pids(group) if proc.is_container_init(one)]
    if inits != [pid]:
        return None  # several: none of them is meant by the cgroup's name
    last = group.rpartition("/")[2]
    # The name of a unit is that of one cgroup; others may have the same below different parents.
    native_id = last if last.endswith(".scope") else group.lstrip("/")
    return Ve(
        ve_id=VeId(f"{PLATFORM}:{printable(native_id, _NAME_SHOWN)}"),
        platform=PLATFORM,
        native_id=native_id,
        name=printable(last, _NAME_SHOWN),
        unrepairable=CONTAINER,
        **seen.running(Seen(pid, group if _is_its_own(group) else None)),
    )


def unlisted(ves: Iterable[Ve]) -> str | None:
    """Which containers of liblxc run that are none of these VEs; None where there are none.

    In the cgroups at the root of the hierarchy only: elsewhere users make what they like.
    """
    known = {ve.cgroup for ve in ves}
    groups = sorted(seen.groups_named(["/"], _PAYLOAD).keys() - known)
    found = [group for group in groups if _has_run_for(group, _UNLISTED_S)]
    if not found:
        return None
    names = ", ".join(printable(group.lstrip("/"), _NAME_SHOWN) for group in found[:_NAMES_SHOWN])
    more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    return (
        f"{names}{more}: containers of liblxc that no driver lists, as they are of a platform that "
        "is not known or answers at another place: their errors are told as those of processes, "
        "and nothing of them is repaired"
    )


def _has_run_for(group: str, seconds: float) -> bool:
    pid = seen.first_of_group(group)
    started = proc.started_at(pid) if pid is not None else None
    return started is not None and time.time() - started >= seconds


def place(path: str) -> str | None:
    """The part of a process's cgroup path that a container can be named by."""
    parts = path.strip("/").split("/")
    if parts[-1] == "init.scope":  # where systemd as a container's first process puts itself
        parts.pop()
    kept: list[str] = []
    for part in parts:
        if part in {"", "..", "user.slice", "init.scope"} or part.endswith(".service"):
            return None
        kept.append(part)
        if part.endswith(".scope"):
            break
    if not kept or kept[-1].endswith(".slice") or kept[0].startswith(_NAMED_BY_OTHERS):
        return None
    return "/" + "/".join(kept)


def _paths(pid: int) -> list[str]:
    groups = proc.cgroups(pid)
    return [groups[one] for one in ("", "name=systemd", "freezer") if one in groups]


def _is_roots(group: str) -> bool:
    """Whether nobody but root can make or name it: no part of the path was given away."""
    for directory in cgroup.directories(group)[:1]:
        whole = [directory, *directory.parents][: group.count("/")]
        try:
            return all(os.stat(one).st_uid == 0 for one in whole)
        except OSError:
            return False
    return False


def _is_its_own(group: str) -> bool:
    """Whether a kill of the cgroup reaches the container only; bwrap(1) stays beside its own."""
    return all(seen.has_own_mounts(pid) for pid in cgroup.pids(group) if proc.is_alive(pid, None))
