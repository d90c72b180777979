"""What a path leads to, also where a server has to be asked that may not answer.

A path on a filesystem that others serve is looked up by a thread of its own: when its server is
lost that one waits, the look at the node goes on with what was known before, and nobody waits for
the same thread twice.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

from fswatchd.devno import Devno

Answer = TypeVar("Answer")
Key = tuple[Devno, int]
_PATIENCE_S = 0.5
_MAX_LINKS = 40  # as the kernel (path_resolution(7))


def inode_key(path: str) -> Key | None:
    """(device, inode) of the file at a path, None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (Devno.of(status.st_dev), status.st_ino)


def leads_onto(path: str, points: Collection[str]) -> bool:
    """Whether the way along a path crosses one of these mount points, symbolic links followed.

    Nothing at or below such a point is touched.
    """
    left, way = deque(part for part in path.split("/") if part), "/"
    links = 0
    while left:
        part = left.popleft()
        if part in {".", ".."}:
            way = os.path.normpath(os.path.join(way, part))
            continue
        step = os.path.join(way, part)
        if step in points:
            return True
        try:
            target = os.readlink(step)
        except (OSError, ValueError):
            way = step
            continue
        links += 1
        if links > _MAX_LINKS:
            return False
        if target.startswith("/"):
            way = "/"
        left.extendleft(reversed([piece for piece in target.split("/") if piece]))
    return False


class Patient(Generic[Answer]):
    """Looks paths up; those that a server is asked for get half a second, then an old answer."""

    def __init__(self, look_up: Callable[[str], Answer | None]) -> None:
        self._look_up = look_up
        self._answers: dict[str, Answer | None] = {}
        self._asked: deque[str] = deque()
        self._done = threading.Condition()
        self._busy = False
        self._points: frozenset[str] = frozenset()

    def served_at(self, points: Iterable[str]) -> None:
        """Where the node has mounted what others serve."""
        self._points = frozenset(points)

    def answer(self, path: str) -> Answer | None:
        """What it leads to; where no answer comes in time, the one from before, or None."""
        found, _ = self.ask(path)
        return found

    def ask(self, path: str) -> tuple[Answer | None, bool]:
        """See `answer`, and whether it came too late."""
        if not self._points or not leads_onto(path, self._points):
            return self._look_up(path), False
        with self._done:
            waits_already = bool(self._asked) or self._busy
            if path not in self._asked:
                self._asked.append(path)
            if not self._busy:
                self._busy = True
                # A daemon thread: at the end of the program nobody waits for a server either.
                threading.Thread(target=self._work, daemon=True, name="served paths").start()
            if not waits_already:
                deadline = time.monotonic() + _PATIENCE_S
                while self._busy and (left_s := deadline - time.monotonic()) > 0:
                    self._done.wait(left_s)
            return self._answers.get(path), path in self._asked

    def _work(self) -> None:
        while True:
            with self._done:
                if not self._asked:
                    self._busy = False
                    self._done.notify_all()
                    return
                path = self._asked[0]
            found = self._look_up(path)
            with self._done:
                self._answers[path] = found
                self._asked.popleft()


class PatientPaths(Patient[Key]):
    """Which file a path leads to."""

    def __init__(self, look_up: Callable[[str], Key | None] = inode_key) -> None:
        super().__init__(look_up)

    def key(self, path: str) -> Key | None:
        """See `inode_key` and `answer`."""
        return self.answer(path)
