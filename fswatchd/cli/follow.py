"""Watch an incident until nothing happens to it any more: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any

from fswatchd.client import Client
from fswatchd.exitcode import Exit

_LOOK_EVERY_S = 0.25
_BUSY = {"acting", "verifying"}


def incident(client: Client, incident_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Follow to the end; returns the incident as it is then."""
    shown = _Bar() if sys.stdout.isatty() and not quiet else _Lines(quiet=quiet)
    settled = 0
    with shown:
        while True:
            document: dict[str, Any] = client.get(f"/v1/incidents/{incident_id}")
            shown.show(document)
            # An incident is "open" for a moment before its plan begins.
            settled = settled + 1 if document["state"] not in _BUSY else 0
            if settled > 3 or document["state"] in {"closed", "needs-operator"}:
                return document
            time.sleep(_LOOK_EVERY_S)


def exit_code(document: dict[str, Any]) -> Exit:
    """What the end of an incident means for a script."""
    if document["state"] == "closed":
        return Exit.OK
    return Exit.CRITICAL if document["state"] == "needs-operator" else Exit.WARNING


def _now(document: dict[str, Any]) -> tuple[str, int, int]:
    steps = document["steps"]
    done = sum(step["state"] in {"done", "skipped", "failed"} for step in steps)
    running = [step for step in steps if step["state"] == "running"]
    if running:
        text = f"{running[0]['do']}: {running[0]['detail'] or 'begins'}"
    else:
        text = document["state"]
    return text, done, max(len(steps), 1)


class _Lines:
    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, document: dict[str, Any]) -> None:
        text, _, _ = _now(document)
        if text != self._last and not self._quiet:
            print(text, flush=True)
        self._last = text


class _Bar:
    def __enter__(self) -> _Bar:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
        )
        self._task = self._progress.add_task("begins", total=None)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, document: dict[str, Any]) -> None:
        text, done, total = _now(document)
        self._progress.update(self._task, description=text, completed=done, total=total)
