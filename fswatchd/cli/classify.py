"""`fswatch classify`: the kernel-line grammar on a file or on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import cast

from fswatchd.errors import FswatchError
from fswatchd.events import EventClass, Severity
from fswatchd.exitcode import Exit
from fswatchd.kernlog import grammar, prefix
from fswatchd.kernlog.grammar import LineClass

_PIECE = 1 << 20
# How many rows are held before they are written.
_ROWS = 4096


def run(path: str | None, *, problems_only: bool, as_json: bool) -> int:
    """Classify all lines; always 0, whatever they say."""
    if path is None or path == "-":
        if sys.stdin is None:
            raise FswatchError("standard input is closed", hint="name a file", code="FSW-FILE")
        lines = cast("BufferedReader", sys.stdin.buffer)
        _classify(lines, problems_only=problems_only, as_json=as_json)
        return Exit.OK
    try:
        with open(path, "rb") as file:
            _classify(file, problems_only=problems_only, as_json=as_json)
    except OSError as error:
        raise FswatchError(f"{path}: {error.strerror}", code="FSW-FILE") from None
    return Exit.OK


def _classify(lines: BufferedReader, *, problems_only: bool, as_json: bool) -> None:
    row = _json if as_json else _text
    finder = prefix.finder(grammar.shipped())
    held: list[str] = []
    found = finder.scan(_pieces(lines, held), problems_only=problems_only)
    rows = _problems(found, row) if problems_only else _all(found, row)
    for text in rows:
        held.append(text)
        if len(held) >= _ROWS:
            _write(held)
    _write(held)


def _pieces(lines: BufferedReader, held: list[str]) -> Iterator[bytes]:
    """What there is, piece by piece; the rows of one are written before the next is waited for.

    So a live log is classified while it comes, and not when it ends.
    """
    while piece := lines.read1(_PIECE):
        yield piece
        _write(held)


def _write(held: list[str]) -> None:
    sys.stdout.write("".join(held))
    sys.stdout.flush()
    held.clear()


def _problems(
    found: Iterator[tuple[int, LineClass | None]], row: Callable[[int, LineClass | None], str]
) -> Iterator[str]:
    for number, line in found:
        if line is not None:
            yield row(number, line)


def _all(
    found: Iterator[tuple[int, LineClass | None]], row: Callable[[int, LineClass | None], str]
) -> Iterator[str]:
    """A row for every line, also for those between what was found."""
    done = 0
    for number, line in found:
        for between in range(done + 1, number if line else number + 1):
            yield row(between, None)
        if line:
            yield row(number, line)
        done = number


def _json(number: int, found: LineClass | None) -> str:
    document = {
        "n": number,
        "problem": found.problem if found else False,
        "class": (found.klass if found else EventClass.NONE).value,
        "severity": (found.severity if found else Severity.INFO).label,
        "fstype": found.fstype if found else None,
        "device": found.device if found else None,
        "errno": found.errno if found else None,
    }
    return json.dumps(document) + "\n"


def _text(number: int, found: LineClass | None) -> str:
    if found is None:
        return f"{number}\tno\tnone\tinfo\t-\t-\n"
    problem = "yes" if found.problem else "no"
    return (
        f"{number}\t{problem}\t{found.klass.value}\t{found.severity.label}\t"
        f"{found.fstype or '-'}\t{found.device or '-'}\n"
    )
