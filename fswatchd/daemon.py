"""`fswatchd`: puts the parts together, and takes them apart again.

Data flows one way: sources → intake → book → decider → executor → actions → outcome → notices. This
module knows all of them; none of them knows it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from systemd import daemon as systemd

from fswatchd import __version__, config, doctor, logs, views
from fswatchd.actions.every import every_action
from fswatchd.api import server
from fswatchd.api.auth import Peer
from fswatchd.api.listen import Endpoints, RuntimeDirectory
from fswatchd.api.status import StatusView
from fswatchd.api.status import disarm as disarm_document
from fswatchd.book import IncidentBook
from fswatchd.config import ChannelTable, Config
from fswatchd.engine.arming import Arming
from fswatchd.engine.base_digests import BaseDigests
from fswatchd.engine.bases import BaseWatch
from fswatchd.engine.closer import Closer
from fswatchd.engine.decider import Decider
from fswatchd.engine.evidence import EvidenceRoom
from fswatchd.engine.executor import Executor
from fswatchd.engine.freezer import Freezer
from fswatchd.engine.history import History
from fswatchd.engine.intake import Intake
from fswatchd.engine.listening import Listening
from fswatchd.engine.muting import Muting
from fswatchd.engine.naming import Naming
from fswatchd.engine.operations import Operations
from fswatchd.engine.operator import Operator
from fswatchd.engine.previews import Previews
from fswatchd.engine.refusals import Refusals
from fswatchd.engine.rehearsal import Rehearsal
from fswatchd.engine.reserve import ReserveWatch
from fswatchd.engine.retention import Retention
from fswatchd.engine.rulekeeper import RuleKeeper
from fswatchd.engine.said_well import SaidWell
from fswatchd.engine.scratch import ScratchVes
from fswatchd.engine.selfcheck import SelfCheck
from fswatchd.engine.snapshots import Snapshots
from fswatchd.engine.statedir import StateDirectory
from fswatchd.engine.stream import EventStream
from fswatchd.engine.substrate import Substrate
from fswatchd.engine.trust import Trust
from fswatchd.errors import ConfigError, FswatchError
from fswatchd.exitcode import Exit
from fswatchd.inventory import lookup
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.watch import InventoryWatch
from fswatchd.kernel import filelimit, heap, memlock
from fswatchd.notify.journal import JournalNotices
from fswatchd.notify.journal_socket import JournalSocket
from fswatchd.notify.notices import Notices
from fswatchd.notify.outbox import Outbox
from fswatchd.notify.webhook import Channel
from fswatchd.platforms import scope
from fswatchd.platforms.every import EveryPlatform
from fswatchd.rules.model import RuleSet
from fswatchd.steps import ActionSettings
from fswatchd.store.spool import Spool
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_WATCHDOG_SHARE = 0.4
_GIVE_BACK_EVERY_S = 60.0
_OPERATIONS_SHOWN = 20
# How long an event waits at most for a thread that looks at a thousand VEs (5 ms by default).
_SWITCH_S = 0.0005
_WITHOUT_ROOT = (
    "not root: fanotify, /dev/kmsg where it is restricted, other mount namespaces (and so most "
    "VEs), and every step of a repair cannot work"
)


class PartEndedError(Exception):
    """A part of the daemon has ended: what it did nobody does any more."""


class Daemon:
    """One running daemon: `start`, then `run` until told to stop, then `stop`."""

    def __init__(self, settings: Config) -> None:
        self._config = settings
        self._since_ns = time.time_ns()
        node = settings.daemon.node
        self.store = Store(
            settings.daemon.state_dir / "fswatchd.db",
            Spool(settings.daemon.runtime_dir / "events.spool"),
        )
        self.stream = EventStream(self.store)
        self._book = IncidentBook(self.store, node)
        self._platforms = EveryPlatform(settings.daemon.ves)
        self.inventory = Inventory(
            self._platforms.drivers,
            unclaimed=scope.describe,
            own_paths=[str(settings.daemon.state_dir)],
            unlisted=scope.unlisted,
        )
        self._watch = InventoryWatch(self.inventory)
        for asked in self._platforms.asked:
            asked.changed = self._watch.poke
        self._history = History(self.store)
        self._trust = Trust(self.store, self._tell_of_trust)
        self.inventory.on_refreshed = self._trust.follow_mounts
        self._selfcheck = SelfCheck(self.store, self._book, self._history, self._trust)
        self._intake = Intake(self.store, self._book, self.inventory, self.stream)
        self._listening = Listening(
            self.store,
            self._intake,
            self.inventory,
            self._watch,
            settings.sources,
            settings.daemon.canary,
        )
        self.outbox = Outbox(self.store, node, lambda delivery: self.notices.delivered(delivery))
        self.notices = Notices(self._book, self.outbox)
        self._journal = JournalNotices(self._book, JournalSocket())
        self._scratch = ScratchVes(self._platforms.drills, self.inventory, self.notices)
        self.rules = RuleKeeper(
            settings.daemon.rules,
            self.store,
            self._book,
            lambda kind, data: self.notices.tell_of_rules(kind, node, data),
        )
        self._make_engine()
        self.refusals = Refusals(self.store)
        self._runtime = RuntimeDirectory(settings.daemon.runtime_dir)
        self._state_dir = StateDirectory(settings.daemon.state_dir)
        self._endpoints = Endpoints()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._ended: list[str] = []

    # --- parts ----------------------------------------------------------------------------------

    def _make_engine(self) -> None:
        repair = self._config.repair
        settings = ActionSettings(
            node=self._config.daemon.node,
            state_dir=self._config.daemon.state_dir,
            reserve_share=repair.reserve_percent / 100,
            reserve_bytes=repair.reserve,
            stop_timeout_s=repair.stop_timeout,
            kill_timeout_s=repair.kill_timeout,
            start_timeout_s=repair.start_timeout,
        )
        self._operations = Operations(self.store)
        self.arming = Arming(
            self._history,
            self.inventory,
            self._trust,
            self._operations,
            lambda: self._decider.poke_all(),
        )
        self.evidence = EvidenceRoom(settings.state_dir, repair.keep_evidence)
        self._executor = Executor(
            self._book,
            self.inventory,
            self._listening.state,
            self._history,
            self.arming,
            settings,
            every_action(self.notices),
            self.evidence,
            self._plan_ended,
            lambda incident_id, delay_s: self._decider.poke(incident_id, delay_s),
        )
        substrate = Substrate(self.inventory, self._listening.state, self._book)
        self._decider = Decider(
            self._book,
            self.inventory,
            self._history,
            self._config.daemon.mode,
            submit=self._executor.submit,
            running=self._executor.running,
            on_decided=self.notices.opened,
            substrate=substrate,
            distrust=lambda: self._trust.why,
        )
        self.arming.storm = self._decider.storm
        self._closer = Closer(
            self._book,
            self.inventory,
            self._listening.state,
            forget_volume=self._listening.memory.forget,
            poke=self._decider.poke,
            has_room=substrate.has_room,
            device_fault=substrate.device_fault,
        )
        self._decider.look_for_recovery = self._closer.look_after_room
        self._intake.naming = Naming(self._book, self.inventory, settings)
        self.rules.on_rules = self._take_rules
        self.muting = Muting(self._book, self._history)
        self.rehearsal = Rehearsal(self._book, self.inventory, self._decider, substrate)
        self._intake.subscribe(self._decider.poke)
        self._intake.subscribe(self._closer.event_joined)
        self.operator = Operator(
            self._book,
            self.store,
            self.inventory,
            self._listening.state,
            self._decider,
            self._executor,
            self.arming,
            self._closer,
            SaidWell(
                self._book,
                self.inventory,
                self._listening.state,
                forget_volume=self._listening.memory.forget,
                poke=self._decider.poke,
                device_fault=substrate.device_fault,
            ),
            settings,
        )
        self.freezer = Freezer(
            self.store,
            self._book,
            self.inventory,
            self._decider,
            self.arming,
            self._operations,
        )
        self.snapshots = Snapshots(
            self.store, self.inventory, self.operator, self.freezer, self.arming, self._operations
        )
        self._previews = Previews(self._book, lambda: self.rules.current, self.operator.look)
        self._reserve = ReserveWatch(
            self.store, self._book, settings, lambda told: self.notices.send(told, "updated")
        )
        self._status = StatusView(
            self.inventory, self._listening.state, self._book, self.notices.is_of_another
        )

    # --- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up; raises FswatchError where the daemon cannot run at all."""
        self._runtime.claim()
        self._state_dir.claim()
        channels = self._channels()
        await self.store.open()
        self.stream.begin()
        await self._history.load()
        await self._trust.load()
        await self._operations.load()
        await self.refusals.load()
        await self.rules.load()
        await self._listening.load_stored()
        self._intake.remember_records(await self.store.recent_records())
        await self._book.load()
        await self._intake.catch_up()
        self.muting.resume()
        await self.outbox.start(channels)
        await self._selfcheck.begin()
        self.rules.read()
        self._watch.start()
        await self._listening.start()
        self._listening.hearing.suspect(self._trust.doubted_sources())
        self._listening.hearing.on_deaf = self._trust.follow_sources
        self.inventory.subscribe(on_vanished=lambda _: self._closer.wake())
        await self.inventory.refresh()
        await self.freezer.recover()
        await self.snapshots.recover()
        await self.operator.preview_clones.load()
        await self._executor.recover()
        self._run_forever("inventory watch", self._watch.run)
        self._run_forever("closer", self._closer.run)
        # A host filesystem that hangs does not hold up the start.
        self._run_beside("clones of previews", self.operator.preview_clones.discard_left)
        retention = Retention(
            self.store,
            self._book,
            self.evidence,
            self._config.daemon.state_dir,
            lambda: self._trust.why,
        )
        self._run_forever("retention", retention.run)
        self._run_forever("reserve", self._reserve.run)
        self._run_forever("marks", self._listening.keep_marked)
        watch = BaseWatch(self.inventory, self._listening.memory, self._intake.report)
        self._run_forever("bases", watch.run)
        if every_s := self._config.daemon.verify_bases:
            digests = BaseDigests(self.inventory, self.store, self._intake.report, every_s)
            self._run_forever("digests of bases", digests.run)
        self._run_forever("rules", self.rules.watch)
        self._run_forever("hearing", self._listening.hearing.run)
        self._run_forever("self-check", self._selfcheck.run)
        self._run_forever("watchdog", self._feed_watchdog)
        self._run_forever("heap", _keep_heap_small)
        self._trust.on_change = self._decider.poke_all
        self._decider.begin()
        await self._serve()
        # What has been made until now stays: no use in looking through it for garbage ever again.
        # The little there is (some 2000 objects of the imports) is not worth 40 ms of the start.
        gc.freeze()
        gc.enable()
        systemd.notify("READY=1\nSTATUS=watching")
        if self._config.daemon.lock_memory:
            # Everything is imported by now. Nobody waits for the thread: the disk may hang already.
            threading.Thread(target=_lock_memory, daemon=True, name="memory lock").start()
        log.info(
            "fswatchd %s on %s: %d VEs, %d filesystems, mode %s, API %s",
            __version__,
            self._config.daemon.node,
            len(self.inventory.view.ves),
            len(self.inventory.view.superblocks),
            self._decider.mode,
            self._runtime.socket,
        )

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; SIGHUP reads the rules again.

        Raises PartEndedError when the daemon cannot go on, so that whoever has started it does it
        again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self._stopping.wait()
        if self._ended:
            raise PartEndedError(f"the daemon cannot go on without: {', '.join(self._ended)}")

    async def stop(self) -> None:
        """Take everything down in the opposite order."""
        systemd.notify("STOPPING=1")
        self.stream.close()
        await self._endpoints.close()
        self._decider.stop()
        await self._previews.stop()
        self.muting.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._executor.stop()
        await self.freezer.close()
        await self._listening.stop()
        await self._intake.settle()
        self._watch.stop()
        await self.outbox.stop()
        if unsent := self._journal.close():
            log.warning("the journal has not taken %d entries about incidents", unsent)
        self._book.flush()
        for asked in self._platforms.asked:
            await asked.close()
        await self.inventory.close()
        await self.store.close()
        self._state_dir.release()
        self._runtime.release()

    def _reload(self) -> None:
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.rules.read()
        self._watch.poke()
        systemd.notify("READY=1")

    # --- what the parts tell each other ---------------------------------------------------------

    def _take_rules(self, rules: RuleSet) -> None:
        self._decider.rules = rules
        self._decider.poke_all()

    def _tell_of_trust(self, kind: str, data: dict[str, Any]) -> None:
        node = self._config.daemon.node
        self._journal.tell_of_trust(kind, node, data)
        self.notices.tell_of_trust(kind, node, data)

    def _plan_ended(self, _incident_id: str) -> None:
        self._closer.wake()
        self._decider.poke_waiting()

    # --- for the API ----------------------------------------------------------------------------

    def status(self, ve: str | None) -> dict[str, Any]:
        """See server.Facade."""
        only = lookup.find_ve(self.inventory.view, ve) if ve is not None else None
        return {
            "node": self._config.daemon.node,
            "mode": "observe" if self._trust.why else self._decider.mode,
            "configured_mode": self._decider.mode,
            "distrust": self._trust.document(),
            "since": views.timestamp(self._since_ns),
            "version": __version__,
            **self._listening.document(),
            "ves": self._status.ves(only),
            "incidents": self._status.incidents(only),
            "rules": self.rules.status(),
            "refused": self.refusals.latest(_OPERATIONS_SHOWN),
            "platforms": {"problems": self.inventory.problems},
            "disarmed": [
                disarm_document(one, self._history.wall_ns(one.until_ns))
                for one in self._history.current_disarms()
            ],
            "frozen": self.freezer.current(),
            "operations": self._operations.latest(_OPERATIONS_SHOWN),
            "notices": {"waiting": self.outbox.waiting(), "failing": self.outbox.failures},
            "journal": self._journal.status(),
            "reserve": {"low": self._reserve.low()},
            "store": {"problem": self.store.failed},
        }

    async def doctor(self) -> list[dict[str, Any]]:
        """See server.Facade."""
        findings = await doctor.examine(
            self._config,
            self._listening.statuses(),
            self.inventory,
            self.rules,
            self.outbox.failures,
        )
        return [finding.document() for finding in findings]

    async def register_scratch_ve(self, peer: Peer, body: dict[str, Any]) -> str:
        """See server.Facade: the VE is forgotten when the asking process ends."""
        return await self._scratch.register(peer.pid, body)

    async def forget_scratch_ve(self, ve_id: str) -> None:
        """See server.Facade."""
        await self._scratch.forget(ve_id)

    # --- plumbing -------------------------------------------------------------------------------

    def _run_forever(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await work()
                log.critical("%s has ended unexpectedly", name)
            except Exception:
                log.critical("%s has ended unexpectedly", name, exc_info=True)
            # Without one of its parts the daemon would look alive and be deaf.
            self._ended.append(name)
            self._stopping.set()

        self._tasks.append(asyncio.create_task(guarded(), name=name))

    def _run_beside(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """What has an end, and may fail without the daemon."""

        async def guarded() -> None:
            try:
                await work()
            except Exception:
                log.exception("%s: it is tried again at the next start", name)

        self._tasks.append(asyncio.create_task(guarded(), name=name))

    async def _feed_watchdog(self) -> None:
        interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        while True:
            if interval_us:
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval_us / 1e6 * _WATCHDOG_SHARE if interval_us else 3600)

    def _channels(self) -> list[Channel]:
        return [_channel(name, table) for name, table in self._config.channel.items()]

    async def _serve(self) -> None:
        group = self._config.api.group
        await self._endpoints.on_socket(
            server.application(self), lambda: self._runtime.listening_socket(group)
        )
        if self._config.api.http:
            await self._endpoints.on_loopback(
                server.application(self, changes=False), self._config.api.http
            )


def _channel(name: str, table: ChannelTable) -> Channel:
    secret = config.read_secret(table.secret_file) if table.secret_file else None
    return Channel(name=name, url=table.url, secret=secret)


async def _keep_heap_small() -> None:
    while True:
        await asyncio.sleep(_GIVE_BACK_EVERY_S)
        await asyncio.to_thread(heap.give_back)


def _lock_memory() -> None:
    try:
        memlock.lock()
    except OSError as error:
        log.warning("not locked into memory: %s", error)


async def _serve(settings: Config) -> None:
    daemon = Daemon(settings)
    try:
        await daemon.start()
        await daemon.run()
    finally:
        await daemon.stop()


def main(argv: list[str] | None = None) -> int:
    """The program `fswatchd`."""
    parser = argparse.ArgumentParser(
        prog="fswatchd", description="Watch filesystems of VEs, repair them while the node runs."
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: /etc/fswatchd/fswatchd.toml"
    )
    parser.add_argument("--version", action="version", version=f"fswatchd {__version__}")
    arguments = parser.parse_args(argv)
    try:
        settings = config.load(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        return 65
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
        # A helper that hangs in the kernel outlives us, and is told of where that matters.
        warnings.filterwarnings("ignore", "A loop is being detached", RuntimeWarning)
    sys.setswitchinterval(_SWITCH_S)
    heap.use_one_arena()
    listener = logs.set_up()
    if os.geteuid() != 0:
        log.warning("%s", _WITHOUT_ROOT)
    filelimit.allow_many()
    try:
        asyncio.run(_serve(settings))
    except PartEndedError as error:
        log.critical("%s", error)
        return Exit.SOFTWARE
    except FswatchError as error:
        log.critical("%s", error)
        return Exit.DATA if isinstance(error, ConfigError) else 1
    finally:
        listener.stop()
    return 0
