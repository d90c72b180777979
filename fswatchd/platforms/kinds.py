"""What lies where a configuration says that a VE has its disk: an image, a device, a directory.

It may lie on a server that does not answer, or on a disk that does not. So nobody asks on the
event loop's thread: a thread of its own does, and where that is late what was known before is
taken, until it comes back.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from fswatchd.events import printable
from fswatchd.inventory.paths import Patient
from fswatchd.kernel import mountinfo
from fswatchd.kernel.mounts import Mount
from fswatchd.kernel.patience import Patience
from fswatchd.kernel.remote import is_remote

_ANSWER_S = 2.0


class Kind(StrEnum):
    """What a path leads to."""

    FILE = "file"
    DIRECTORY = "directory"
    DEVICE = "block device"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found; None is nothing, and what is not in it nobody has ever said. `late` are the
    paths that gave no answer now."""

    kinds: Mapping[str, Kind | None] = field(default_factory=dict)
    late: tuple[str, ...] = ()

    def get(self, path: str) -> Kind | None:
        """What the path leads to, None also where that is not known."""
        return self.kinds.get(path)

    def is_unknown(self, path: str) -> bool:
        """Whether nobody has ever said."""
        return path not in self.kinds

    @property
    def problems(self) -> list[str]:
        """What to tell an admin, nothing where all have answered."""
        if not self.late:
            return []
        more = f" (and {len(self.late) - 1} more)" if len(self.late) > 1 else ""
        return [f"{printable(self.late[0])} does not answer{more}: is its server there?"]


class Kinds:
    """The kinds of the paths of one platform. `mounts` reads the node's mount table."""

    def __init__(
        self,
        look_up: Callable[[str], Kind | None] | None = None,
        mounts: Callable[[], list[Mount]] = lambda: mountinfo.read("self"),
    ) -> None:
        self._patient: Patient[Kind] = Patient(look_up or kind_of)
        self._mounts = mounts
        self._patience = Patience()
        self._known: dict[str, Kind | None] = {}

    async def look(self, paths: Iterable[str]) -> Looked:
        """What these are, and of those that do not answer what was known before."""
        wanted = sorted(set(paths))
        self._known = {path: self._known[path] for path in wanted if path in self._known}
        if not wanted:
            return Looked()
        try:
            answers = await asyncio.to_thread(
                self._patience.ask, "kinds", lambda: self._look(wanted), _ANSWER_S
            )
        except TimeoutError:  # not a server that the mount table shows: nobody knows which path
            return Looked(dict(self._known), tuple(wanted))
        for path, (kind, waits) in answers.items():
            if kind is not None or not waits:
                self._known[path] = kind
        late = tuple(path for path, (_, waits) in answers.items() if waits)
        return Looked(dict(self._known), late)

    def _look(self, paths: list[str]) -> dict[str, tuple[Kind | None, bool]]:
        """Each with whether its server is late."""
        with suppress(OSError):
            self._patient.served_at(
                mount.point for mount in self._mounts() if is_remote(mount.fstype)
            )
        return {path: self._patient.ask(path) for path in paths}


def kind_of(path: str) -> Kind | None:
    """What the path leads to, None where there is nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    return Kind.DEVICE if stat.S_ISBLK(mode) else Kind.OTHER
