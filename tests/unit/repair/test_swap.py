"""An exchange is made or not made by the time its end is told of."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from fswatchd.repair import storage, swap
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings


def file(path: Path, content: bytes) -> ImageFile:
    path.write_bytes(content)
    return ImageFile.at(str(path))


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
async def test_what_is_cancelled_in_an_exchange_deletes_no_original(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    image, made = file(tmp_path / "a.raw", b"original"), file(tmp_path / "a.clone", b"repaired")
    lies_in = storage.of(image, ActionSettings())
    begun, go_on, real = threading.Event(), threading.Event(), swap.exchange

    def exchange(*files: ImageFile) -> None:
        begun.set()
        assert go_on.wait(30)
        real(*files)

    async def repair() -> None:
        try:
            await lies_in.exchange(made, "")
        finally:
            await lies_in.discard(made)

    monkeypatch.setattr(swap, "exchange", exchange)
    task = asyncio.create_task(repair())
    await asyncio.to_thread(begun.wait)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    assert made.is_at(made.path), "nothing is deleted while it may still be exchanged"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "a.raw").read_bytes() == b"repaired"
    assert (tmp_path / "a.clone").read_bytes() == b"original"
