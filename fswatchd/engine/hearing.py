"""Keeps the sources hearing, and the account of when they did not.

A watcher fails by going deaf and looking healthy. So every source is proved every few minutes by a
canary that takes the way of a real error; one that does not answer within `ANSWER_S` is `deaf`. A
source that is deaf, or whose reading failed, is started again. And the daemon notices when it did
not run itself: stopped, starved, or held up by a call that did not return.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fswatchd.devno import Devno
from fswatchd.engine import canary
from fswatchd.engine.canary import CanaryFilesystem
from fswatchd.errors import FswatchError
from fswatchd.events import Lost, SourceState
from fswatchd.kernel.logclock import log_clock
from fswatchd.sources import Sink, Source
from fswatchd.sources.fanotify import FanotifySource
from fswatchd.sources.state import StateSource

log = logging.getLogger(__name__)

ANSWER_S = 30.0
_TICK_S = 1.0
# What a busy node may delay the loop by without it being worth a word.
_STALL_S = 1.0
_RETRY_S = (1.0, 300.0)

_LISTENING = {SourceState.OK, SourceState.DEAF}

OF_THE_FILESYSTEM = ("fanotify", "state", "uevent")
OF_THE_LOG = ("kmsg", "journal")


@dataclass(slots=True)
class _Round:
    """One canary: who has not answered yet, and until when they may."""

    token: str
    silent: set[str]
    deadline: float


@dataclass(slots=True)
class _Retry:
    at: float = 0.0
    wait: float = field(default=_RETRY_S[0])


class Hearing:
    """Minds the sources. `every_s` is the time between canaries, 0 for none.

    `reattach` hands all superblocks to the sources again, after one of them was started again.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        sink: Sink,
        every_s: float,
        reattach: Callable[[], Awaitable[None]],
        answer_s: float = ANSWER_S,
    ) -> None:
        self._sources = sources
        self._sink = sink
        self._every = every_s
        self._reattach = reattach
        self._answer = answer_s
        self._filesystem: CanaryFilesystem | None = None
        self._round: _Round | None = None
        self._next = 0.0
        self._retries: dict[str, _Retry] = {}
        self.problem = ""
        # Called with the sources that do not hear, and why, whenever these are others.
        self.on_deaf: Callable[[dict[str, str]], None] = lambda _: None
        self._deaf: dict[str, str] | None = None

    @property
    def devno(self) -> Devno | None:
        """The canary's device: what is heard of it is for `heard`, and nobody else."""
        return self._filesystem.superblock.devno if self._filesystem else None

    def suspect(self, names: set[str]) -> None:
        """An earlier run of the daemon has left these deaf: they hear when a canary says so."""
        for name in names & {*OF_THE_LOG, *OF_THE_FILESYSTEM}:
            source = self._sources.get(name)
            if self._every and source is not None and source.status.state is SourceState.OK:
                source.status.state = SourceState.DEAF
                source.status.detail = "was deaf when the daemon ended, and was not heard since"

    async def run(self) -> None:
        """Mind the sources until cancelled."""
        try:
            last = time.monotonic()
            while True:
                await asyncio.sleep(_TICK_S)
                now = time.monotonic()
                self._look_at_clock(now - last)
                # Read again: what was done below is no stall of the daemon.
                await self._tick(now)
                last = time.monotonic()
        finally:
            if self._filesystem is not None:
                self._filesystem.close()

    def heard(self, source: str, token: str | None) -> None:
        """A source has heard the canary; without a token it was an error of its filesystem."""
        current = self._round
        if current is None or token not in {None, current.token}:
            return
        current.silent.discard(source)
        status = self._sources[source].status
        if token is None:
            status.events -= 1  # it came as an error does, and is none
        status.proven_ns = time.time_ns()
        if status.state in {SourceState.DEAF, SourceState.UNAVAILABLE}:
            log.warning("%s hears again", source)
            status.state, status.detail = SourceState.OK, ""
        self._retries.pop(source, None)

    # --- one tick -------------------------------------------------------------------------------

    def _look_at_clock(self, passed: float) -> None:
        if passed < _TICK_S + _STALL_S:
            return
        blind_s = passed - _TICK_S
        since = time.time_ns() - round(blind_s * 1e9)
        if self._round is not None:
            self._round.deadline += blind_s  # nobody could answer while nobody ran
        for source in self._sources.values():
            if source.status.state is SourceState.OK:
                source.blind(since, None)
        self._sink.lost(
            Lost(
                source="fswatchd",
                since_ns=since,
                until_ns=time.time_ns(),
                reason=f"the daemon did not run for {blind_s:.1f} s",
            )
        )

    async def _tick(self, now: float) -> None:
        if self._round is not None and (not self._round.silent or now > self._round.deadline):
            silent, self._round = self._round.silent, None
            for name in sorted(silent):
                self._is_deaf(self._sources[name])
        for name, source in self._sources.items():
            if source.status.state in {SourceState.BLIND, SourceState.DEAF}:
                await self._start_again(name, source, now)
        self._tell_deaf()
        if self._every and self._round is None and now >= self._next:
            self._next = now + self._every
            await self._sing(now)

    def _tell_deaf(self) -> None:
        """After those were started again that could be: what is left does not hear."""
        states = {name: source.status for name, source in self._sources.items()}
        deaf = {
            name: status.detail
            for name, status in states.items()
            if status.state in {SourceState.BLIND, SourceState.DEAF}
        }
        if deaf.keys() != (self._deaf.keys() if self._deaf is not None else None):
            self._deaf = deaf
            self.on_deaf(deaf)

    def _is_deaf(self, source: Source) -> None:
        status = source.status
        if source.name == "journal" and status.proven_ns is None:
            # Journal files lie about, but no journald reads the kernel's log on this node.
            status.state = SourceState.UNAVAILABLE
            status.detail = "journald passes no kernel messages on"
            return
        since = status.proven_ns or time.time_ns() - round(self._answer * 1e9)
        log.error("%s is deaf: it did not hear a canary within %g s", source.name, self._answer)
        status.state = SourceState.DEAF
        status.detail = f"did not hear a canary within {self._answer:g} s"
        source.blind(since, None)
        self._sink.lost(
            Lost(
                source=source.name,
                since_ns=since,
                until_ns=time.time_ns(),
                reason="it did not hear a canary",
            )
        )

    async def _start_again(self, name: str, source: Source, now: float) -> None:
        retry = self._retries.setdefault(name, _Retry(now))
        if now < retry.at:
            return
        retry.at, retry.wait = now + retry.wait, min(retry.wait * 2, _RETRY_S[1])
        was = source.status.state
        log.warning("starting the source %s again: %s", name, source.status.detail)
        await source.stop()
        await source.start()
        if source.status.state is SourceState.OK:
            if self._filesystem is not None:
                self._show(self._filesystem)
            await self._reattach()
            if was is SourceState.DEAF:
                # Deaf until a canary says otherwise, and that is asked at once.
                source.status.state, self._next = was, 0.0

    # --- canaries -------------------------------------------------------------------------------

    async def _sing(self, now: float) -> None:
        self.problem = ""
        await self._renew(now)
        wanted = OF_THE_LOG if self._filesystem is None else OF_THE_LOG + OF_THE_FILESYSTEM
        proven = [name for name in wanted if name in self._sources]
        token = str(uuid.uuid4())
        for name in proven:
            self._sources[name].expect_canary(token)
        # Of a source that is off or unavailable no answer is demanded; one is heard all the same.
        demanded = {name for name in proven if self._sources[name].status.state in _LISTENING}
        self._round = _Round(token, demanded, now + self._answer)
        before_ns = time.monotonic_ns()
        try:
            canary.write_record(token)
            log_clock.wrote(token, before_ns, time.monotonic_ns())
        except OSError as error:
            self.problem = f"cannot write /dev/kmsg: {error.strerror}"
            self._round.silent -= set(OF_THE_LOG)
        if self._filesystem is None:
            return
        try:
            self._filesystem.fail(token)
        except OSError as error:
            self.problem = f"cannot use the canary's filesystem: {error}"
            self._round.silent -= set(OF_THE_FILESYSTEM)
            self._drop()

    async def _renew(self, now: float) -> None:
        old = self._filesystem
        if old is not None and now - old.made < canary.LIFETIME_S:
            return
        self._drop()
        try:
            self._filesystem = await CanaryFilesystem.make()
        except (OSError, FswatchError) as error:
            self.problem = f"no canary for {', '.join(OF_THE_FILESYSTEM)}: {error}"
            return
        self._show(self._filesystem)

    def _show(self, filesystem: CanaryFilesystem) -> None:
        for source in self._sources.values():
            if source.status.state is not SourceState.OK:
                continue
            if isinstance(source, FanotifySource):
                source.watch_canary(filesystem.superblock, filesystem.directory_fd)
            elif isinstance(source, StateSource):
                source.watch(filesystem.superblock)

    def _drop(self) -> None:
        if self._filesystem is None:
            return
        for source in self._sources.values():
            if isinstance(source, FanotifySource | StateSource):
                source.forget(self._filesystem.superblock)
        self._filesystem.close()
        self._filesystem = None
