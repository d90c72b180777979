"""Logging waits for nobody: not for who reads the log, and not for the disk."""

from __future__ import annotations

import linecache
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from fswatchd import logs


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_the_lines_of_a_traceback_are_read_by_the_thread_that_writes(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source lies on the disk that may hang."""
    readers: set[int] = set()
    real = linecache.checkcache

    def checkcache(filename: str | None = None) -> None:
        readers.add(threading.get_ident())
        real(filename)

    monkeypatch.setattr(linecache, "checkcache", checkcache)
    listener = logs.set_up()
    try:
        sizes = {"big": 1}
        try:
            raise ValueError("of a test")
        except ValueError:
            root.error("failed with %s", sizes, exc_info=True)
        sizes["big"] = 2  # a record says what was, when it is written does not matter
    finally:
        listener.stop()
    said = capsys.readouterr().err
    assert "ERROR   failed with {'big': 1}" in said
    assert "ValueError: of a test" in said
    assert 'raise ValueError("of a test")' in said
    assert readers
    assert threading.get_ident() not in readers


def test_each_line_of_a_traceback_has_the_priority_that_journald_reads(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    listener = logs.set_up()
    try:
        raise ValueError("of a test")
    except ValueError:
        root.warning("failed", exc_info=sys.exc_info())
    finally:
        listener.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<4>") for line in lines)
