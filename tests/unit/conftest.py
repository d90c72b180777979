"""Unit tests use no process, no network and leave no task behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from fswatchd.kernel import kmsg
from fswatchd.store.store import Store

# The machine is shared: how long one example takes says nothing.
hypothesis.settings.register_profile("fswatchd", deadline=None)
hypothesis.settings.load_profile("fswatchd")


def _refused(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a unit test must not start processes or open connections")


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _refused)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", _refused)
    monkeypatch.setattr(socket.socket, "connect", _refused)


@pytest.fixture(autouse=True)
def _no_kernel_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has attached is no test's."""
    monkeypatch.setattr(kmsg, "buffer", lambda: iter(()))


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    yield
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open one, with nothing in it."""
    made = Store(tmp_path / "fswatchd.db")
    await made.open()
    yield made
    await made.close()
