from __future__ import annotations

import pytest

from fswatchd.platforms.uml import consoles

# A line of /proc/net/unix as Linux 6.18 shows it for an instance of User-mode Linux 6.1.
LINE = "0000000085ebe9d1: 00000002 00000000 00000000 0002 01 115099 /root/.uml/web-1/mconsole"


def test_a_console_is_told_by_its_path() -> None:
    assert consoles([LINE]) == [(115099, "/root/.uml/web-1/mconsole", "web-1")]


@pytest.mark.parametrize(
    "path",
    [
        "/mconsole",
        "@/x/web/mconsole",
        "web/mconsole",
        "/x/we b/mconsole",
        "/x/-web/mconsole",
        "/x/../mconsole",
        "/x/web/mconsole2",
    ],
)
def test_what_is_no_console(path: str) -> None:
    assert consoles([LINE.replace("/root/.uml/web-1/mconsole", path)]) == []
