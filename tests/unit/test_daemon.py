"""How the daemon ends. Its parts are not started here."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fswatchd import daemon, logs
from fswatchd.daemon import Daemon
from fswatchd.exitcode import Exit
from fswatchd.kernel import filelimit

Work = Callable[[], Coroutine[Any, Any, None]]


async def _lives() -> None:
    await asyncio.Event().wait()


async def _fails() -> None:
    raise OSError(24, "Too many open files")


async def _returns() -> None:
    pass


@pytest.fixture
def ends_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit status of a daemon with these parts and no others."""
    config = tmp_path / "fswatchd.toml"
    config.write_text(
        f'[daemon]\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n'
        f'rules = ["{tmp_path}"]\nves = ["{tmp_path}"]\n'
    )

    class NoListener:
        def stop(self) -> None: ...

    def run(**parts: Work) -> int:
        async def start(self: Daemon) -> None:
            for name, work in parts.items():
                self._run_forever(name, work)

        async def stop(self: Daemon) -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._journal.close()

        monkeypatch.setattr(Daemon, "start", start)
        monkeypatch.setattr(Daemon, "stop", stop)
        return daemon.main(["--config", str(config)])

    monkeypatch.setattr(logs, "set_up", NoListener)
    monkeypatch.setattr(filelimit, "allow_many", lambda: 0)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    monkeypatch.setattr(asyncio, "set_child_watcher", lambda _: None)
    return run


@pytest.mark.parametrize("work", [_fails, _returns])
def test_a_daemon_without_one_of_its_parts_ends_so_that_it_is_started_again(
    ends_with: Callable[..., int], caplog: pytest.LogCaptureFixture, work: Work
) -> None:
    """Restart=on-failure of its unit: 0 would leave the node without one."""
    assert ends_with(lives=_lives, marks=work) == Exit.SOFTWARE
    assert "marks has ended unexpectedly" in caplog.text


def test_a_daemon_that_is_told_to_end_ends_well(ends_with: Callable[..., int]) -> None:
    async def asks() -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    assert ends_with(asks=asks) == Exit.OK
