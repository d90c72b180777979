"""The client with what is no daemon, or one that hangs, at the other end of its socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fswatchd import client as client_module
from fswatchd.cli.main import main

Other = Callable[[bytes], str]


@pytest.fixture
def other(work: Path) -> Iterator[Other]:
    """Listens, and answers each question with the same bytes; empty ones are no answer."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(work / "api.sock"))
    listening.listen(8)
    taken: list[socket.socket] = []

    def begin(answer: bytes) -> str:
        def serve() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                taken.append(one)
                if answer:
                    one.recv(65536)
                    one.sendall(answer)
                    one.close()

        threading.Thread(target=serve, daemon=True).start()
        return os.fspath(work / "api.sock")

    yield begin
    listening.shutdown(socket.SHUT_RDWR)
    for one in (listening, *taken):
        one.close()


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize("command", [["status"], ["incidents"], ["incident", "x"], ["why", "x"]])
def test_a_daemon_that_hangs_is_unknown_soon(other, monkeypatch, capsys, command) -> None:
    monkeypatch.setattr(client_module, "_AT_ONCE_S", 0.05)
    assert main([*command, "--socket", other(b"")]) == 3
    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", "hello"),
        http("200 OK", "[]"),
        http("200 OK", ""),
        http("500 Internal Server Error", "[1]"),
        http("404 Not Found", "<html>"),
        b"220 mail.example.org ESMTP\r\n",
    ],
)
def test_what_answers_otherwise_than_the_daemon_is_unknown(other, capsys, answer) -> None:
    assert main(["status", "--socket", other(answer)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("fswatch: ")
    assert said.count("[FSW-DAEMON]") == 1


@pytest.mark.parametrize("command", [["status"], ["incidents"], ["incident", "x"], ["why", "x"]])
@pytest.mark.parametrize("output", [[], ["--json"]], ids=["for people", "json"])
def test_a_daemon_of_another_version_is_unknown(other, capsys, command, output) -> None:
    """It has other keys: it may have been upgraded, and not started again."""
    code = main([*command, *output, "--socket", other(http("200 OK", '{"of_2031": {}}'))])
    said = capsys.readouterr()
    if code == 0:
        assert json.loads(said.out) == {"of_2031": {}}
        return
    assert code == 3
    assert said.err.startswith("fswatch: fswatchd answers without '")
    assert "another version" in said.err


def test_what_the_daemon_says_no_to_keeps_its_exit_code(other, capsys) -> None:
    body = json.dumps({"error": "there is no VE", "hint": "?", "code": "FSW-UNKNOWN-VE"})
    assert main(["status", "ve101", "--socket", other(http("404 Not Found", body))]) == 64
    assert "FSW-UNKNOWN-VE" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "why", "events --follow --ve"])
def test_a_name_that_nothing_can_have_is_wrong_usage(capsys, command) -> None:
    assert main([*command.split(), "x" * 9000, "--socket", "/nonexistent"]) == 64
    assert "so long a name" in capsys.readouterr().err
