"""The standard streams of the program itself, without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("fswatch")
# Python's own buffer is what a script's user has.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


def shell(command: str) -> tuple[int, str]:
    """Exit code of `fswatch` in a line of bash, and what it says on stderr."""
    done = subprocess.run(
        ["bash", "-c", command.replace("fswatch", str(PROGRAM))],
        check=False,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("fswatch explain --json | true; exit ${PIPESTATUS[0]}", 0),
        ("fswatch --help | true; exit ${PIPESTATUS[0]}", 0),
        ("seq 1 100000 | fswatch classify | true; exit ${PIPESTATUS[1]}", 0),
        ("fswatch rules check /dev/zero/x --json | true; exit ${PIPESTATUS[0]}", 65),
        ("fswatch explain >&-", 0),
    ],
)
def test_a_reader_that_has_gone_changes_nothing(command: str, code: int) -> None:
    assert shell(command) == (code, "")


@pytest.mark.parametrize("command", ["explain", "explain --json", "classify /etc/services"])
def test_an_output_that_is_full_is_one_line_and_3(command: str) -> None:
    code, said = shell(f"fswatch {command} >/dev/full")
    assert (code, said.count("\n")) == (3, 1)
    assert "No space left" in said


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_live_log_is_classified_while_it_comes(options: list[str]) -> None:
    with subprocess.Popen(
        [PROGRAM, "classify", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"nothing\n", b"[    1.0] EXT4-fs error (device sda1): a:1: b\n", b"more\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline()
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait() == 0


def test_a_closed_input_is_no_empty_one() -> None:
    code, said = shell("fswatch classify <&-")
    assert code == 65
    assert "standard input is closed" in said
