"""Containers of a Virtuozzo node that start, stop, mount and unmount, from its kernel.

An event is a reason to read the inventory again, at once instead of at the next sign of change.
Errors of a container's ext4 come as uevents on the same kernel, see `uevent`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable

from fswatchd.events import SourceState
from fswatchd.kernel import vzevent
from fswatchd.sources import Sink, Source, batch


class VzEventSource(Source):
    """Container events; they lead to looks, not to `FsEvent`."""

    name = "vzevent"

    def __init__(
        self,
        sink: Sink,
        on_topology: Callable[[], None],
        protocol: int = vzevent.NETLINK_VZEVENT,
    ) -> None:
        super().__init__(sink)
        self._on_topology = on_topology
        self._protocol = protocol
        self._socket: socket.socket | None = None
        self._last_read_ns = time.time_ns()

    async def start(self) -> None:
        """See Source."""
        try:
            self._socket = vzevent.connect(self._protocol)
        except OSError as error:
            self._unavailable(_why_not(error))
            return
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._available()

    async def stop(self) -> None:
        """See Source."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self.status.state = SourceState.OFF

    def _readable(self) -> None:
        if self._socket is None:
            return
        for _ in batch():
            try:
                data = vzevent.receive(self._socket)
            except BlockingIOError:
                break
            except OSError as error:
                self._report_loss(f"the socket failed: {error.strerror}", None, self._last_read_ns)
                self._on_topology()
                break
            if data is not None:
                self.handle(data)
        self._last_read_ns = time.time_ns()

    def handle(self, data: bytes) -> None:
        """One message of the kernel."""
        try:
            event = vzevent.parse(data)
        except vzevent.VzEventFormatError:
            return  # an older module's numbers; the inventory sees the change by other signs
        if event.action.startswith("ve-"):
            self.status.events += 1
            self._on_topology()


def _why_not(error: OSError) -> str:
    if error.errno == errno.EPROTONOSUPPORT:
        return "this is no Virtuozzo kernel"
    return error.strerror or str(error)
