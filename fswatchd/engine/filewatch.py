"""Tells when rule files, or the directories that hold them, have changed (inotify(7)).

Watched are the directories; those above them, for one that comes, goes or is replaced; and those
that links lead to. What no event tells (a network filesystem, a watch that cannot be had) whoever
uses this looks for by himself now and then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fswatchd.kernel import inotify

log = logging.getLogger(__name__)

_FILES = (
    inotify.IN_MODIFY
    | inotify.IN_ATTRIB
    | inotify.IN_CLOSE_WRITE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
)
_NAMES = inotify.IN_CREATE | inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO | inotify.IN_DELETE
_OF_THE_WATCH = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | inotify.IN_UNMOUNT
_WRITTEN = inotify.IN_CLOSE_WRITE | inotify.IN_DELETE | inotify.IN_MOVED_FROM


class FileWatch:
    """See the module. `start` in the event loop; `works` is false where there is no inotify."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._fd = -1
        # Watch → the names that matter there; None: every rule file.
        self._names: dict[int, set[str] | None] = {}
        # (watch, name) → since when it is being written (CLOCK_MONOTONIC).
        self._writing: dict[tuple[int, str], float] = {}
        self._changed = asyncio.Event()

    @property
    def works(self) -> bool:
        """Whether changes are told."""
        return self._fd >= 0

    def start(self) -> None:
        """Begin to watch; without a descriptor nothing is told."""
        try:
            self._fd = inotify.init()
        except OSError as error:
            log.warning("changes of rule files are looked for every few seconds: %s", error)
            return
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        self._arm()

    def stop(self) -> None:
        """End it."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def changed(self, timeout_s: float) -> bool:
        """Wait for a change, at most so long; whether there was one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        found = self._changed.is_set()
        self._changed.clear()
        if found:
            self._arm()
        return found

    def is_written(self, patience_s: float) -> bool:
        """Whether somebody writes a file, and has not closed it yet; who takes longer than
        `patience_s` is waited for no more."""
        now = time.monotonic()
        return any(now - since < patience_s for since in self._writing.values())

    def _arm(self) -> None:
        """Also again after each change: a directory that was replaced is another one."""
        if self._fd < 0:
            return
        self._names.clear()
        for directory in self._directories:
            self._watch(directory, _FILES, None)
            with suppress(OSError):
                for entry in os.scandir(directory):
                    if entry.is_symlink() and _is_rule_file(entry.name):
                        target = Path(os.path.realpath(entry.path))
                        self._watch(target.parent, _FILES, target.name)
            # Every part of the path can be what is replaced.
            for above in directory.parents:
                below = directory.relative_to(above).parts[0]
                self._watch(above, _NAMES, below)

    def _watch(self, directory: Path, mask: int, name: str | None) -> None:
        if str(directory) == "/dev":
            return  # where masks lead to
        mask |= inotify.IN_ONLYDIR | inotify.IN_MASK_ADD
        try:
            number = inotify.watch(self._fd, str(directory), mask)
        except OSError:
            return
        known = self._names.setdefault(number, set() if name is not None else None)
        if name is None:
            self._names[number] = None
        elif known is not None:
            known.add(name)

    def _read(self) -> None:
        try:
            events = inotify.parse(os.read(self._fd, inotify.READ_SIZE))
        except OSError:
            return
        for event in events:
            if event.mask & inotify.IN_Q_OVERFLOW or event.mask & _OF_THE_WATCH:
                self._writing.clear()
                self._changed.set()
                continue
            if event.mask & inotify.IN_IGNORED or event.watch not in self._names:
                continue
            names = self._names[event.watch]
            if _is_rule_file(event.name) if names is None else event.name in names:
                self._note(event)
                self._changed.set()

    def _note(self, event: inotify.InotifyEvent) -> None:
        key = (event.watch, event.name)
        if event.mask & _WRITTEN:
            self._writing.pop(key, None)
        elif event.mask & inotify.IN_MODIFY:
            self._writing.setdefault(key, time.monotonic())


def _is_rule_file(name: str) -> bool:
    return name.endswith(".toml") and not name.startswith(".")
