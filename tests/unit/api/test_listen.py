"""The socket is taken away by who has made it."""

from __future__ import annotations

import socket

import pytest

from fswatchd.api.listen import RuntimeDirectory
from fswatchd.errors import FswatchError


def test_the_daemons_own_socket_goes_with_it(tmp_path) -> None:
    runtime = RuntimeDirectory(tmp_path)
    runtime.claim()
    runtime.listening_socket("no-such-group").close()
    assert runtime.socket.exists()
    runtime.release()
    assert not runtime.socket.exists()


def test_a_socket_of_systemd_stays_for_the_next_daemon(tmp_path) -> None:
    runtime = RuntimeDirectory(tmp_path)
    with socket.socket(socket.AF_UNIX) as made_by_systemd:
        made_by_systemd.bind(str(runtime.socket))
        runtime.claim()
        runtime.release()
        assert runtime.socket.exists()


def test_a_second_daemon_takes_nothing_away(tmp_path) -> None:
    first, second = RuntimeDirectory(tmp_path), RuntimeDirectory(tmp_path)
    first.claim()
    first.listening_socket("no-such-group").close()
    with pytest.raises(FswatchError, match="another fswatchd"):
        second.claim()
    second.release()
    assert first.socket.exists()
    first.release()


@pytest.mark.parametrize(("user", "hint"), [(0, "runtime_dir"), (1000, "run as root")])
def test_a_directory_that_cannot_be_used_has_the_hint_that_helps(
    user: int, hint: str, tmp_path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("os.geteuid", lambda: user)
    with pytest.raises(FswatchError, match="Not a directory") as caught:
        RuntimeDirectory(tmp_path / "file" / "run").claim()
    assert hint in caught.value.hint
