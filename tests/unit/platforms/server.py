"""A server with images at /mnt/nfs, which may be lost: who asks it then waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fswatchd.inventory import paths
from fswatchd.kernel import mountinfo
from fswatchd.kernel.mounts import Mount
from fswatchd.platforms.kinds import Kind, Kinds, kind_of

MOUNT = "60 1 0:45 / /mnt/nfs rw - nfs4 server:/ rw"


class Server:
    """Leave it, and all that wait get their answer. The event loop's thread must not ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "_PATIENCE_S", 0.05)
        self.asked: list[str] = []
        self.is_lost = False
        self._answers = threading.Event()
        self._loop = threading.current_thread()

    def kinds(self) -> Kinds:
        """As a driver has them, on a node that has mounted this server."""
        return Kinds(self._look_up, lambda: self.mounts)

    @property
    def mounts(self) -> list[Mount]:
        """The node's."""
        return [mountinfo.parse_line(MOUNT)]

    def _look_up(self, path: str) -> Kind | None:
        assert threading.current_thread() is not self._loop
        if not path.startswith("/mnt/nfs/"):
            return kind_of(path)
        self.asked.append(path)
        if self.is_lost:
            self._answers.wait(30)
        return Kind.FILE

    async def is_back(self) -> None:
        """All that wait have their answer."""
        self.is_lost = False
        self._answers.set()
        await asyncio.sleep(0.05)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.set()
