"""Probes: each asks one question about one mounted filesystem, in the same way every time.

A probe remembers what it saw last and answers with what is new, as findings. It never waits:
what can only be asked of a helper process goes through `ask`. What a probe finds is a fact of the
kernel's state. Not here: when to look, and what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fswatchd.events import EventClass, Health
from fswatchd.helpers.client import HelperError
from fswatchd.inventory.model import Superblock

SYSFS = Path("/sys")

_PAUSE_ROUNDS = 8
_WORST_FIRST = (Health.SHUTDOWN, Health.READONLY, Health.SUSPECT, Health.OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something new: `count` is how many errors it stands for, `errno` what a caller would get."""

    klass: EventClass
    text: str
    errno: int | None = None
    count: int = 1


class Memory(Protocol):
    """What was last seen of a volume, across restarts of the daemon."""

    def load(self, volume: str) -> list[int] | None:
        """The numbers that a probe has saved, None when the volume is new."""
        ...

    def save(self, volume: str, seen: list[int]) -> None:
        """Remember."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """The memory of one volume."""

    memory: Memory
    volume: str

    def load(self) -> list[int] | None:
        """See Memory."""
        return self.memory.load(self.volume)

    def save(self, seen: list[int]) -> None:
        """See Memory."""
        self.memory.save(self.volume, seen)


class Mounts(Protocol):
    """What probes ask about a superblock besides sysfs."""

    def current_options(self, superblock: Superblock) -> tuple[str, ...] | None:
        """Its options at this moment; None when it is no longer mounted."""
        ...

    def at_once(self) -> AbstractContextManager[None]:
        """Around many such questions that nothing else comes between, to make them cheap."""
        ...

    async def root_error(self, superblock: Superblock) -> int:
        """The errno that stat(2) of its root gives, 0 for none.

        Raises OSError or HelperError when that cannot be found out.
        """
        ...

    async def btrfs_error(self, superblock: Superblock) -> int:
        """The errno with which a read-only btrfs was stopped, 0 when it was not; raises so too."""
        ...


class Probe:
    """What all probes share.

    `often` is true for those that are cheap enough for every turn of the timer. `wakes` are
    descriptors of sysfs files on which `poll` tells that they have changed. `errors` is how many
    errors are recorded, None where nothing counts them; `health` is what the last look has shown,
    UNKNOWN where it proves nothing. `lost` says that the superblock it was made for is gone.
    """

    often = False
    wakes: tuple[int, ...] = ()
    errors: int | None = None
    health: Health = Health.UNKNOWN
    lost = False

    def look(self) -> list[Finding]:
        """What is new since the last look; the first look tells what nobody knew."""
        return []

    async def ask(self) -> list[Finding]:
        """As `look`, for what takes a helper process."""
        return []

    def close(self) -> None:
        """Give everything back."""


class AskingProbe(Probe):
    """A probe that asks through the mount helper, and waits a while after no answer.

    So that a filesystem that hangs does not hold up the others.
    """

    _pause = 0

    async def ask(self) -> list[Finding]:
        """See Probe."""
        if self._pause:
            self._pause -= 1
            return []
        try:
            return await self._ask()
        except (HelperError, TimeoutError):
            self._pause = _PAUSE_ROUNDS
        except OSError:
            pass  # unmounted, or out of reach: the inventory will tell
        return []

    async def _ask(self) -> list[Finding]:
        raise NotImplementedError


def worst_health(probes: Iterable[Probe]) -> Health:
    """The worst that any of the probes knows."""
    known = {probe.health for probe in probes}
    return next((health for health in _WORST_FIRST if health in known), Health.UNKNOWN)


def read_text(path: Path) -> str | None:
    """The line in a sysfs file, None where there is none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return None


def read_number(path: Path, base: int = 10) -> int | None:
    """The number in a sysfs file, None where there is none."""
    with suppress(ValueError):
        return int(read_text(path) or "", base)
    return None


def open_file(path: Path) -> int | None:
    """A descriptor of a sysfs file, None where there is none."""
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None
