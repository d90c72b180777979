"""Files of the admin that decide what is done as root: rules, and VEs declared by hand.

Whoever can write one is root, so only root may; and nothing in their place may hold the daemon up.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fswatchd.errors import ConfigError

_MAX_BYTES = 1 << 20
_OWNER_HINT = "it decides what is done as root: chown root:root, chmod go-w"


class AdminFileError(ConfigError):
    """The file cannot be read, or is refused; the message does not repeat its path."""


def read(path: Path, *, trusted: bool = False) -> str:
    """The text of the file; raises AdminFileError.

    `trusted` is for the program's own files: who can write them can write the program.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AdminFileError(f"cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise AdminFileError("is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise AdminFileError(f"is larger than {_MAX_BYTES >> 20} MiB")
        if not trusted and status.st_uid != 0:
            raise AdminFileError(f"is owned by user {status.st_uid}, not by root", hint=_OWNER_HINT)
        if not trusted and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AdminFileError("can be written by others than root", hint=_OWNER_HINT)
        content = os.read(fd, _MAX_BYTES + 1)
        if len(content) != status.st_size or _stamp(os.fstat(fd)) != _stamp(status):
            raise AdminFileError("was written while it was read", hint="try again")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AdminFileError(f"is not UTF-8 (byte {error.start})") from None
    finally:
        os.close(fd)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
