"""How far a long piece of work is, and about how long it still takes."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fswatchd.steps import ActionContext
from fswatchd.units import show_duration

# Called with the share that is done, 0 to 1.
OnProgress = Callable[[float], None]

_EVERY_S = 0.5
_LONGEST_LINE = 4096
_LEAST_SHARE = 0.02  # before that an estimate means nothing
_LINE = re.compile(rb"^(\d) (\d+) (\d+)\b", re.MULTILINE)
# Where each pass of e2fsck begins, in the time that it usually takes (its own bar does the same).
_PASSES = (0.0, 0.70, 0.90, 0.92, 0.95, 1.0)


def of_headings(
    on_progress: OnProgress | None,
    pattern: re.Pattern[bytes],
    share: Callable[[re.Match[bytes]], float],
) -> Callable[[bytes], None]:
    """Tells how far a program is by the headings that it prints, for `process.run`.

    `pattern` finds one in a line, `share` says where it stands in the whole.
    """
    rest = b""

    def read(chunk: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-_LONGEST_LINE:]
        found = [match for line in lines if (match := pattern.match(line)) is not None]
        if found and on_progress is not None:
            on_progress(share(found[-1]))

    return read


def begin(context: ActionContext, text: str) -> OnProgress:
    """Say what begins now; what is returned says how far it is."""
    started = last = time.monotonic()
    context.progress(None, text)

    def report(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _EVERY_S:
            return
        last = now
        share = min(max(share, 0.0), 1.0)
        left = ""
        if share >= _LEAST_SHARE:
            left = f", about {show_duration((now - started) * (1 - share) / share)} left"
        context.progress(round(share, 3), f"{text}: {share:.0%}{left}")

    return report


@asynccontextmanager
async def of_e2fsck(on_progress: OnProgress) -> AsyncIterator[int]:
    """A descriptor for `-C` of e2fsck(8), which writes "PASS DONE OF DEVICE" lines to it.

    The caller closes it once the program has it.
    """
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    loop = asyncio.get_running_loop()

    def readable() -> None:
        try:
            said = os.read(ours, 65536)
        except BlockingIOError:
            return
        if not said:
            loop.remove_reader(ours)
        elif (share := share_of(said)) is not None:
            on_progress(share)

    loop.add_reader(ours, readable)
    try:
        yield theirs
    finally:
        loop.remove_reader(ours)
        os.close(ours)


def share_of(said: bytes) -> float | None:
    """The share that the last whole line tells of; None where none does."""
    lines = _LINE.findall(said[: said.rfind(b"\n") + 1])
    if not lines:
        return None
    number, done, of = (int(part) for part in lines[-1])
    if not 1 <= number < len(_PASSES) or not of:
        return None
    start, end = _PASSES[number - 1], _PASSES[number]
    return start + (end - start) * min(done / of, 1.0)
