"""The directory of what is kept: only one daemon at a time has it.

The lock (flock(2)) is on the directory itself: nothing has to be written for it, so neither a full
disk nor a frozen filesystem holds up the start here. What is wrong with it the store says better.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from fswatchd.errors import FswatchError


class StateDirectory:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def claim(self) -> None:
        """Take the lock, which ends with this process; raises FswatchError where another has it."""
        with suppress(OSError):
            self._lock = self._opened()
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise FswatchError(
                f"another fswatchd uses {self._path}",
                hint="stop it, or give this one a state_dir of its own",
            ) from None
        except OSError:
            pass  # a filesystem without locks: SQLite has one of its own

    def release(self) -> None:
        """Let go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _opened(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            return os.open(self._path, flags)
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self._path, flags)
