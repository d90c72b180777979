"""A helper process as the daemon sees it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

from fswatchd.helpers.wire import receive, send

# -S leaves out site-packages: a helper needs nothing but the standard library and starts in a
# third of the time. Before it serves it says so, with the number 0, which no request has.
_BOOT = """\
import os, sys, importlib
sys.path.insert(0, sys.argv[1])
module, fd = importlib.import_module(sys.argv[2]), int(sys.argv[3])
try:
    os.write(fd, b'{"number": 0}')
except OSError:
    pass  # nobody is left who waits; the module finds that out
module.main(fd)
"""
# An interpreter from a cold disk on a busy node. Nothing is held or asked for meanwhile, so that a
# request's own deadline, which may stand for a pause of a VE, need not have room for it.
_START_S = 30.0


def argv_of(module: str, fd: int) -> tuple[str, ...]:
    """The interpreter's arguments that make it run a helper which becomes another program.

    The program's own arguments follow.
    """
    boot = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1]);"
        "importlib.import_module(sys.argv[2]).main(int(sys.argv[3]), sys.argv[4:])"
    )
    return ("-I", "-S", "-c", boot, str(Path(__file__).parents[2]), module, str(fd))


class HelperError(Exception):
    """The helper did not answer, or is gone."""


class Helper:
    """One helper process, seen from the daemon: requests one after the other, with deadlines."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._number = 0
        self._serves = False

    @property
    def pid(self) -> int | None:
        """The process id while the helper runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process unless it runs."""
        if self._process is not None and self._process.returncode is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                "-c",
                _BOOT,
                str(Path(__file__).parents[2]),
                self._module,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                cwd="/",
            )
        self._socket, self._serves = ours, False

    async def request(
        self,
        message: dict[str, Any],
        fds: tuple[int, ...] = (),
        *,
        timeout_s: float,
        start: bool = True,
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a request and wait for its answer, at most `timeout_s` once the helper serves.

        Without `start` only a helper is asked that runs: a new one knows nothing of an old one's.
        Raises HelperError when none comes in time; the caller decides whether to `kill`. An
        answer with `errno` is raised as the OSError it is.
        """
        async with self._lock:
            if start:
                await self.start()
            if self._socket is None:
                raise HelperError(f"{self._module} does not run")
            await self._until_it_serves(self._socket)
            self._number += 1
            try:
                send(self._socket, {**message, "number": self._number}, fds)
                async with asyncio.timeout(timeout_s):
                    answer, received = await self._receive(self._socket)
            except TimeoutError:
                raise HelperError(f"{self._module} did not answer in {timeout_s} s") from None
            except (OSError, ValueError) as error:
                raise HelperError(f"{self._module}: {error}") from error
        if answer is None:
            raise HelperError(f"{self._module} ended")
        if "errno" in answer:
            for fd in received:
                os.close(fd)
            raise OSError(answer["errno"], answer["message"])
        return answer, received

    async def _until_it_serves(self, sock: socket.socket) -> None:
        if self._serves:
            return
        try:
            async with asyncio.timeout(_START_S):
                await _readable(sock)
                self._serves = receive(sock)[0] is not None
        except TimeoutError:
            raise HelperError(f"{self._module} did not start in {_START_S} s") from None
        except (OSError, ValueError) as error:
            raise HelperError(f"{self._module}: {error}") from error
        if not self._serves:
            raise HelperError(f"{self._module} ended")

    async def _receive(self, sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
        while True:
            await _readable(sock)
            answer, received = receive(sock)
            if answer is None or answer.pop("number") == self._number:
                return answer, received
            # The late answer to a request that somebody stopped waiting for.
            for fd in received:
                os.close(fd)

    async def close(self, *, kill: bool = False) -> int | None:
        """Close the socket, on which the helper ends by itself; with `kill` end it at once.

        Returns its exit code, None where it has not ended yet or never ran.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return process.returncode if process else None
        if kill:
            process.kill()
        try:
            async with asyncio.timeout(2):
                await process.wait()
        except TimeoutError:
            return None  # in uninterruptible sleep; it ends when the kernel lets it
        return process.returncode


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
