from __future__ import annotations

import errno

import pytest

from fswatchd.events import EventClass
from fswatchd.sources.fanotify import classify


@pytest.mark.parametrize(
    ("error", "of_a_file", "options", "klass"),
    [
        (errno.EUCLEAN, True, (), "corruption"),
        (errno.EBADMSG, True, (), "corruption"),
        (errno.EUCLEAN, False, ("emergency_ro",), "corruption"),
        (errno.ESHUTDOWN, False, ("emergency_ro",), "readonly"),
        (errno.ESHUTDOWN, False, ("shutdown",), "shutdown"),
        (errno.ESHUTDOWN, False, (), "readonly"),
        (errno.EIO, False, ("emergency_ro",), "readonly"),
        (errno.EIO, False, (), "readonly"),
        (errno.EIO, False, ("shutdown",), "shutdown"),
        (errno.EIO, True, ("emergency_ro",), "io_error"),
        (errno.ENOSPC, False, (), "space"),
        (errno.EROFS, False, (), "readonly"),
        (errno.ENOENT, False, (), "corruption"),
    ],
)
def test_the_class_of_an_error(error: int, of_a_file: bool, options, klass: str) -> None:
    assert classify(error, of_a_file=of_a_file, options=lambda: options) is EventClass(klass)
