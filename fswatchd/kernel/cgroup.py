"""Control groups, v2 and the v1/hybrid layouts (Documentation/admin-guide/cgroup-v2.rst).

A VE's cgroup is named by its path below the hierarchy, as in /proc/PID/cgroup. Freezing and
killing work in the unified hierarchy where there is one, and in the v1 freezer else.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from fswatchd.kernel import mountinfo
from fswatchd.kernel.pseudofile import read

_POLL_S = 0.002


@cache
def hierarchies() -> tuple[Path, ...]:
    """Where cgroup paths are rooted, the best one for control first: unified, then freezer."""
    unified: list[Path] = []
    legacy: list[Path] = []
    for mount in mountinfo.read("self"):
        path = Path(mount.point)
        if mount.fstype == "cgroup2":
            unified.append(path)
        elif mount.fstype == "cgroup":
            first = "freezer" in mount.superblock_options
            legacy.insert(0 if first else len(legacy), path)
    return tuple(unified + legacy)


def directories(path: str) -> list[Path]:
    """The existing directories of the cgroup `path`, in the order of `hierarchies`."""
    return [Path(place) for place in _places(path)]


def _places(path: str) -> Iterator[str]:
    """As `directories`. Every VE is asked at every look: neither pathlib nor exceptions here."""
    relative = path.lstrip("/")
    if relative and ".." not in relative.split("/"):
        for root in hierarchies():
            place = f"{root}/{relative}/"
            if os.access(place, os.F_OK):
                yield place


def look(path: str) -> tuple[list[int], bool]:
    """`pids` and `is_frozen` in one go, for whoever asks about a thousand VEs."""
    places = list(_places(path))
    return _pids(places), _is_frozen(places)


def pids(path: str) -> list[int]:
    """All processes in the cgroup and the cgroups below it, in any hierarchy."""
    return _pids(_places(path))


def _pids(places: Iterable[str]) -> list[int]:
    found: dict[int, None] = {}
    for place in places:
        _add_pids(place, found)
    return list(found)


def _add_pids(directory: str, found: dict[int, None]) -> None:
    with suppress(OSError):
        found.update((int(word), None) for word in read(f"{directory}cgroup.procs").split())
        if os.stat(directory).st_nlink > 2:  # kernfs counts the directories below
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    _add_pids(f"{entry.path}/", found)


def kill(path: str) -> None:
    """SIGKILL every process of the cgroup, also frozen ones, also ones that fork meanwhile."""
    for directory in directories(path):
        with suppress(OSError):
            (directory / "cgroup.kill").write_text("1", encoding="ascii")
            return
    # Before 5.14: repeat until a pass finds nobody new, a fork can slip between list and kill.
    killed: set[int] = set()
    while fresh := [pid for pid in pids(path) if pid not in killed]:
        for pid in fresh:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(fresh)


def freeze(path: str, timeout_s: float) -> bool:
    """Stop all tasks of the cgroup; False, and running again, when it took too long."""
    if _set_frozen(path, frozen=True, timeout_s=timeout_s):
        return True
    _set_frozen(path, frozen=False, timeout_s=timeout_s)
    return False


def thaw(path: str, timeout_s: float) -> bool:
    """Let the tasks of the cgroup run; False when they do not within the time."""
    return _set_frozen(path, frozen=False, timeout_s=timeout_s)


def is_frozen(path: str) -> bool:
    """Whether the cgroup's tasks are stopped by a freezer; with both kinds, by either."""
    return _is_frozen(_places(path))


def _is_frozen(places: Iterable[str]) -> bool:
    for place in places:
        for name, frozen in (("cgroup.events", b"frozen 1"), ("freezer.state", b"FROZEN")):
            with suppress(OSError):
                if frozen in read(f"{place}{name}"):
                    return True
    return False


def _set_frozen(path: str, *, frozen: bool, timeout_s: float) -> bool:
    """In the best hierarchy; a thaw in all, whoever froze may have used another one."""
    found = False
    for directory in directories(path):
        try:
            if (directory / "cgroup.freeze").exists():
                text = "1" if frozen else "0"
                (directory / "cgroup.freeze").write_text(text, encoding="ascii")
            elif (directory / "freezer.state").exists():
                text = "FROZEN" if frozen else "THAWED"
                (directory / "freezer.state").write_text(text, encoding="ascii")
            else:
                continue
        except OSError:
            continue
        found = True
        if frozen:
            break
    deadline = time.monotonic() + timeout_s
    while found and is_frozen(path) != frozen:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return found
