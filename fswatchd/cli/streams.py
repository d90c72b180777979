"""The standard streams of `fswatch`: closed ones, readers that go away, and disks that are full.

What is printed for a reader that has gone goes nowhere, and the command ends as it would have: its
exit code is what a script asked for. Only a command that would print for ever ends with its reader.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer


class OutputError(Exception):
    """Nothing more can be printed. `reason` is None where only nobody reads it any more.

    No OSError: that of a file which a command reads must not be taken for this one.
    """

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Output(io.RawIOBase):
    """A descriptor to print to; after an error what comes goes nowhere.

    While `endless` is set a reader that goes away is an error too.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lost = False
        self.endless = False

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._fd)

    def write(self, data: ReadableBuffer, /) -> int:
        """Raises OutputError, once."""
        if not self._lost:
            try:
                return os.write(self._fd, data)
            except BrokenPipeError:
                self._lost = True
                if self.endless:
                    raise OutputError(None) from None
            except OSError as error:
                self._lost = True
                raise OutputError(error.strerror) from None
        return memoryview(data).nbytes


def opened() -> Output:
    """Make the standard streams safe to use; returns what is printed to."""
    closed = list(_closed())
    for _ in closed:
        # The lowest one that is free, so one of these: no socket may be taken for an output.
        os.open(os.devnull, os.O_RDWR)
    if 2 in closed:
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False))
    output, known = Output(1), sys.stdout
    # A test reads what is printed in a way of its own.
    if known is sys.__stdout__:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=getattr(known, "encoding", None),
            errors=getattr(known, "errors", None),
            line_buffering=output.isatty(),
        )
    return output


def _closed() -> Iterator[int]:
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            yield fd
