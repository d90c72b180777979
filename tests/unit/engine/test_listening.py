"""What minds the marks of filesystems. Sources and inventory are stand-ins."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.devno import Devno
from fswatchd.engine import listening
from fswatchd.engine.listening import Listening


async def test_marks_that_cannot_be_read_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing changes any more: the filesystem has no mark, and nobody hears it."""
    monkeypatch.setattr(listening, "_MARKS_AGAIN_S", 0.0)
    answers: list[Any] = [OSError(24, "Too many open files"), {Devno(7, 3)}]
    announced: asyncio.Queue[object] = asyncio.Queue()
    changes: asyncio.Queue[object] = asyncio.Queue()

    def unmarked() -> set[Devno]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    minded = SimpleNamespace(
        _watch=SimpleNamespace(changes=lambda: changes),
        _fanotify=SimpleNamespace(unmarked=unmarked),
        _superblock=str,
        _inventory=SimpleNamespace(announce=announced.put),
    )
    running = asyncio.create_task(Listening.keep_marked(cast("Any", minded)))
    told = asyncio.create_task(announced.get())
    changes.put_nowait("a change")
    await asyncio.wait({running, told}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert told.done()
    assert told.result() == "7:3"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
