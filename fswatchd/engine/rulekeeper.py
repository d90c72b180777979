"""The rules in force: read, read again when their files change, and how often each was used.

A set with a mistake never takes the place of one without. That files may have changed the kernel
tells (`filewatch`), whether they have, their times, sizes and inodes; where nothing is told these
are looked at every few seconds. Files are read when nothing has changed for a moment and nobody has
one of them open and half written: nobody is told of a mistake in what an editor is saving.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.engine.filewatch import FileWatch
from fswatchd.incidents import Incident, State
from fswatchd.rules import files, review
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.rules.problem import RuleProblem
from fswatchd.store.store import Store

log = logging.getLogger(__name__)

_KEY = "rule:"
_GOOD = "rules-in-force"
# With the kernel's word for it, and without.
_LOOK_EVERY_S = 60.0
_LOOK_UNTOLD_S = 2.0
_SETTLE_S = 0.3
# Who writes a file for longer than that is not waited for.
_PATIENCE_S = 5.0
_PROBLEMS_TOLD = 20

# Called with "rejected" or "accepted", and what is told.
Tell = Callable[[str, dict[str, Any]], None]


class RuleKeeper:
    """See the module. `load` and `read` before use."""

    def __init__(
        self, directories: list[Path], store: Store, book: IncidentBook, tell: Tell
    ) -> None:
        self.directories = directories
        self._store = store
        self._tell = tell
        self._uses: dict[str, dict[str, Any]] = {}
        self._good: list[tuple[str, str]] = []
        self._read_ns = 0
        self._seen: object = None
        # Whether the last reading got all files: else nothing may ever tell that it can.
        self._is_to_be_had = True
        self._files = FileWatch(directories)
        self.current = RuleSet()
        self.problems: list[RuleProblem] = []
        self.warnings: list[RuleProblem] = []
        # Takes the rules that are in force from now on; set by the daemon.
        self.on_rules: Callable[[RuleSet], None] = lambda _: None
        book.subscribe(self._count)

    async def load(self) -> None:
        """Read how often rules were used by earlier runs of the daemon, and which they were."""
        stored = await self._store.facts(_KEY)
        self._uses = {key.removeprefix(_KEY): value for key, value in stored.items()}
        with suppress(ValueError, TypeError):  # of another version
            good = (await self._store.facts(_GOOD)).get(_GOOD, [])
            self._good = [(str(name), str(text)) for name, text in good]

    def read(self, *, again: bool = False) -> None:
        """Read the files; where anything is wrong the last good set stays.

        Read `again` because a file or directory could not be had, the same is not logged once more.
        """
        self._seen = signature(self.directories)
        texts: list[tuple[str, str]] = []
        try:
            texts, problems = files.read_all(self.directories)
            rules, wrong = assemble(texts)
            problems += wrong
        except Exception as error:  # a border: whatever a file holds, it must not end the daemon
            log.exception("the rule files cannot be read")
            rules, problems = RuleSet(), [_unexpected(error)]
        before = [str(problem) for problem in self.problems]
        self.problems = problems
        now = [str(problem) for problem in problems]
        self._is_to_be_had = not any(problem.code == files.NOT_HAD for problem in problems)
        if problems:
            if not self._read_ns:
                self._go_on_with_those_of_before()
            what = "the last good ones stay" if self._read_ns else "none are in force"
            if not again or now != before:
                log.error("the rules have errors, %s:\n%s", what, "\n".join(now))
            if now != before:
                self._tell("rejected", {"problems": now[:_PROBLEMS_TOLD], "count": len(now)})
            return
        self._take(rules)
        if texts != self._good:
            self._good = texts
            self._store.set_fact(_GOOD, texts)
        if before:
            self._tell("accepted", {"problems": [], "count": len(rules.rules)})

    def _go_on_with_those_of_before(self) -> None:
        """A daemon that starts beside a mistake would know no rule, and tell nobody of anything."""
        if not self._good:
            return
        try:
            rules, problems = assemble(self._good)
        except Exception:  # a border, as in `read`
            log.exception("the rules of before cannot be read")
            return
        if not problems:  # an older version may have understood them
            self._take(rules)

    def _take(self, rules: RuleSet) -> None:
        self.current = rules
        self.warnings = review.warnings(rules)
        self._read_ns = time.time_ns()
        log.info("%d rules", len(rules.rules))
        for warning in self.warnings:
            log.warning("rules: %s", warning)
        self.on_rules(rules)

    async def watch(self) -> None:
        """For ever: read the files again when they have changed."""
        self._files.start()
        try:
            while True:
                pause_s = _LOOK_EVERY_S if self._files.works else _LOOK_UNTOLD_S
                told = await self._files.changed(pause_s)
                found = await asyncio.to_thread(signature, self.directories)
                if told or found != self._seen:
                    await self._read_when_quiet(found)
                elif not self._is_to_be_had:
                    self.read(again=True)
        finally:
            self._files.stop()

    async def _read_when_quiet(self, found: object) -> None:
        settle_s = _SETTLE_S if self._files.works else _LOOK_UNTOLD_S
        while True:
            told = await self._files.changed(settle_s)
            now = await asyncio.to_thread(signature, self.directories)
            if not told and now == found and not self._files.is_written(_PATIENCE_S):
                break
            found = now
        if found != self._seen:
            log.info("rule files have changed")
            self.read()

    def status(self) -> dict[str, Any]:
        """In `fswatch status`."""
        return {
            "count": len(self.current.rules),
            "problems": [str(problem) for problem in self.problems],
            "warnings": [str(warning) for warning in self.warnings],
            "read": views.timestamp(self._read_ns or None),
        }

    def document(self, mode: str) -> dict[str, Any]:
        """`fswatch rules list`; `mode` is the node's."""
        return {
            **self.status(),
            "directories": [str(directory) for directory in self.directories],
            "mode": mode,
            "rules": [{**entry, **self._use(entry["name"])} for entry in views.rules(self.current)],
        }

    def _use(self, name: str) -> dict[str, Any]:
        use = self._uses.get(name, {})
        return {
            "hits": use.get("hits", 0),
            "acted": use.get("acted", 0),
            "last_used": views.timestamp(use.get("last_ns")),
        }

    def _count(self, before: Incident | None, after: Incident) -> None:
        """One hit for each incident that a rule has decided about, one act for each plan."""
        if after.rule is None:
            return
        hit = before is None or before.rule != after.rule
        acted = after.state is State.ACTING and before is not None
        acted = acted and before is not None and before.state in {State.OPEN, State.WAITING}
        if not (hit or acted):
            return
        use = self._uses.get(after.rule, {"hits": 0, "acted": 0})
        self._uses[after.rule] = {
            "hits": use["hits"] + hit,
            "acted": use["acted"] + acted,
            "last_ns": time.time_ns(),
        }
        self._store.set_fact(f"{_KEY}{after.rule}", self._uses[after.rule])


def signature(directories: list[Path]) -> object:
    """Changes whenever what `files.read_all` would read has changed."""
    paths, problems = files.chosen(directories)
    found: list[tuple[object, ...]] = [(str(one), os.path.isdir(one)) for one in directories]
    found += [(str(problem),) for problem in problems]
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            found.append((str(path), error.errno))
            continue
        moment = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        found.append((str(path), status.st_dev, status.st_ino, *moment))
    return found


def _unexpected(error: Exception) -> RuleProblem:
    hint = "a mistake of fswatchd: the log has more"
    return RuleProblem(
        file="rules", rule="", key="", message=f"cannot be read: {error!r}", hint=hint
    )
