"""Quota warnings by generic netlink, family VFS_DQUOT (fs/quota/netlink.c), through pyroute2.

The kernel sends them in the initial network namespace only, when a user, group or project passes
a limit and when it is below again. pyroute2 keeps a socket that has overflowed in a broken state,
so after any error it is closed and opened anew. What cannot be decoded is such an error too:
nobody knows what it was.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec, module_from_spec

from fswatchd.devno import Devno
from fswatchd.events import EventClass, Severity, SourceState
from fswatchd.sources import Source

# What the package itself imports, all of routing and firewalls, is a tenth of the daemon's start
# and of its memory. It stays an empty package: nothing else here uses it, no event may load it.
if (_spec := find_spec("pyroute2")) is not None:
    sys.modules.setdefault("pyroute2", module_from_spec(_spec))
from pyroute2.netlink.event.dquot import AsyncDQuotSocket
from pyroute2.netlink.exceptions import NetlinkError

_REOPEN_S = 5.0
# What pyroute2 raises for messages that it cannot decode, besides its own.
_UNDECODABLE = (struct.error, ValueError, TypeError, KeyError, IndexError)

# include/uapi/linux/quota.h
_KIND = {0: "user", 1: "group", 2: "project"}
_WARNING = {
    1: (EventClass.QUOTA, Severity.ERROR, "has reached the hard limit of files"),
    2: (EventClass.QUOTA, Severity.ERROR, "was above the soft limit of files for too long"),
    3: (EventClass.QUOTA, Severity.WARNING, "is above the soft limit of files"),
    4: (EventClass.QUOTA, Severity.ERROR, "has reached the hard limit of space"),
    5: (EventClass.QUOTA, Severity.ERROR, "was above the soft limit of space for too long"),
    6: (EventClass.QUOTA, Severity.WARNING, "is above the soft limit of space"),
    7: (EventClass.RECOVERED, Severity.INFO, "is below the hard limit of files again"),
    8: (EventClass.RECOVERED, Severity.INFO, "is below the soft limit of files again"),
    9: (EventClass.RECOVERED, Severity.INFO, "is below the hard limit of space again"),
    10: (EventClass.RECOVERED, Severity.INFO, "is below the soft limit of space again"),
}


class QuotaSource(Source):
    """Limits that are passed, and their all-clear."""

    name = "quota"
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See Source."""
        try:
            connection = await _connect()
        except (OSError, NetlinkError) as error:
            self._unavailable(f"this kernel sends no quota warnings ({error})")
            return
        self._task = asyncio.create_task(self._run(connection))
        self._available()

    async def stop(self) -> None:
        """See Source."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self.status.state = SourceState.OFF

    async def _run(self, connection: AsyncDQuotSocket) -> None:
        while True:
            try:
                while True:  # the iterator ends after each batch
                    async for message in connection.get():
                        self.handle(dict(message.get("attrs", [])))
            except (OSError, NetlinkError) as error:
                self._report_loss(f"the socket failed: {error}")
            except _UNDECODABLE as error:
                self._report_loss(f"a message could not be decoded: {error!r}")
            finally:
                connection.close()
            while True:
                await asyncio.sleep(_REOPEN_S)
                with suppress(OSError, NetlinkError):
                    connection = await _connect()
                    break

    def handle(self, attributes: Mapping[str, object]) -> None:
        """One warning, as the attributes of the message."""
        numbers = {key: value for key, value in attributes.items() if isinstance(value, int)}
        try:
            klass, severity, text = _WARNING[numbers["QUOTA_NL_A_WARNING"]]
            kind = _KIND[numbers["QUOTA_NL_A_QTYPE"]]
            owner = numbers["QUOTA_NL_A_EXCESS_ID"]
            devno = Devno(numbers["QUOTA_NL_A_DEV_MAJOR"], numbers["QUOTA_NL_A_DEV_MINOR"])
        except KeyError:
            return  # a code newer than this version, or no warning at all
        self._emit(klass, f"{kind} {owner} {text}", confirms=True, severity=severity, devno=devno)


def limits_after(passed: tuple[str, ...], detail: str) -> tuple[str, ...]:
    """The limits that are passed on a filesystem after this event: "user 1000 hard space".

    The kernel tells each once. Who is below the soft limit of something is below its hard one.
    """
    kind, owner = detail.split(" ")[:2]
    what = detail.removesuffix(" again").removesuffix(" for too long").rpartition(" ")[2]
    soft, hard = (f"{kind} {owner} {level} {what}" for level in ("soft", "hard"))
    limit = hard if " hard " in detail else soft
    if " is below " not in detail:
        return passed if limit in passed else (*passed, limit)
    return tuple(one for one in passed if one not in {limit, hard})


async def _connect() -> AsyncDQuotSocket:
    connection = AsyncDQuotSocket()
    try:
        await connection.setup_endpoint()
    except BaseException:
        connection.close()
        raise
    return connection
