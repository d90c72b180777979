"""Where the API is reached: the unix socket, and a port on loopback for reading."""

from __future__ import annotations

import fcntl
import grp
import logging
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from systemd import daemon as systemd

from fswatchd.errors import FswatchError

log = logging.getLogger(__name__)

_SHUTDOWN_S = 2.0


class RuntimeDirectory:
    """The directory of the socket; only one daemon at a time has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "api.sock"
        self._lock: int | None = None
        self._made_socket = False

    def claim(self) -> None:
        """Take the lock, which ends with this process; raises FswatchError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o755)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(lock)
                raise
            self._lock = lock
        except BlockingIOError:
            raise FswatchError(
                f"another fswatchd uses {self.path}",
                hint="stop it, or give this one a runtime_dir and a state_dir of its own",
            ) from None
        except OSError as error:
            hint = "fswatchd has to run as root"
            if os.geteuid() == 0:
                hint = "runtime_dir in fswatchd.toml names it; default: /run/fswatchd"
            raise FswatchError(f"cannot use {self.path}: {error.strerror}", hint=hint) from error

    def release(self) -> None:
        """Take our socket away and let go; one that systemd has made stays for the next daemon."""
        if self._lock is None:
            return  # it may be another daemon's
        if self._made_socket:
            with suppress(OSError):
                os.unlink(self.socket)
        os.close(self._lock)
        self._lock = None

    def listening_socket(self, group: str) -> socket.socket:
        """The socket, for root and for members of the group; raises FswatchError."""
        with suppress(FileNotFoundError):
            os.unlink(self.socket)  # ours: the lock says that nobody else uses this directory
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(self.socket))
        except OSError as error:
            sock.close()
            hint = "runtime_dir in fswatchd.toml; a socket's path has 107 bytes at most"
            raise FswatchError(f"cannot listen on {self.socket}: {error}", hint=hint) from None
        self._made_socket = True
        os.chmod(self.socket, 0o660)
        with suppress(KeyError):
            shutil.chown(self.socket, group=grp.getgrnam(group).gr_gid)
        return sock


class Endpoints:
    """Everything the API listens on."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def on_socket(self, app: web.Application, make: Callable[[], socket.socket]) -> None:
        """Serve on the socket that systemd hands over, else on the one that `make` makes."""
        inherited = systemd.listen_fds()
        sock = socket.socket(fileno=inherited[0]) if inherited else make()
        await web.SockSite(await self._runner(app), sock).start()

    async def on_loopback(self, app: web.Application, address: str) -> None:
        """Serve on `address:port`; raises FswatchError."""
        host, _, port = address.rpartition(":")
        try:
            await web.TCPSite(await self._runner(app), host, int(port)).start()
        except OSError as error:
            hint = "[api] http in fswatchd.toml; fswatchd can run without it"
            raise FswatchError(f"cannot listen on {address}: {error.strerror}", hint=hint) from None
        log.info("reading only: http://%s/v1/status", address)

    async def close(self) -> None:
        """Answer nobody any more."""
        for runner in self._runners:
            await runner.cleanup()

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        self._runners.append(runner)
        return runner
