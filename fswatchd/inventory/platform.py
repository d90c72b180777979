"""What the inventory wants from a platform's driver (`fswatchd.platforms` holds the drivers).

A driver only says what is; starting and stopping is `Ve.commands`, run by the actions. A driver
that fails must not hide the VEs of the others: it raises PlatformError, which status shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fswatchd.errors import FswatchError
from fswatchd.inventory.model import Ve


class PlatformError(FswatchError):
    """The platform's state cannot be read, or only in part: `partial` holds the VEs that could."""

    def __init__(self, message: str, *, hint: str = "", partial: Sequence[Ve] = ()) -> None:
        super().__init__(message, hint=hint)
        self.partial = partial


class Platform(Protocol):
    """One platform of this node."""

    name: str

    async def list_ves(self) -> list[Ve]:
        """Every VE, running or not. Raises PlatformError."""
        ...

    def watch_directories(self) -> list[str]:
        """Directories whose entries come and go with VEs or their configuration."""
        ...
