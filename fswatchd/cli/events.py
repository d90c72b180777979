"""`fswatch events`: what the sources have heard, once or for ever, without gap or repeat.

While following, a daemon that restarts is waited for: what it has heard meanwhile comes afterwards.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

from fswatchd.client import Client, ClientError
from fswatchd.exitcode import Exit

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0


class Shown:
    """Prints; with `as_json` one document a line, gaps too, otherwise gaps go to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def event(self, event: dict[str, Any]) -> None:
        """One event."""
        if self._as_json:
            print(json.dumps(event), flush=True)
            return
        where = event["device"] or "-"
        who = ",".join(event["ves"]) or "-"
        print(
            f"{event['cursor']}\t{event['time']}\t{event['source']}\t{event['class']}\t"
            f"{event['severity']}\t{where}\t{who}\t{event['detail']}",
            flush=True,
        )

    def gap(self, document: dict[str, Any]) -> None:
        """Events that are missing here."""
        if self._as_json:
            print(json.dumps(document), flush=True)
            return
        gap = document["gap"]
        count = "an unknown number of" if gap["count"] is None else gap["count"]
        print(
            f"fswatch: gap: {count} events after {gap['from']} up to {gap['to']} are missing "
            f"({gap['reason']})",
            file=sys.stderr,
        )


def page(client: Client, shown: Shown, *, since: int | None, ve: str | None) -> None:
    """Everything that is stored, and then the end."""
    while True:
        document = client.get("/v1/events", since=since, ve=ve)
        gaps = document["gaps"]
        for event in document["events"]:
            while gaps and gaps[0]["gap"]["to"] < event["cursor"]:
                shown.gap(gaps.pop(0))
            shown.event(event)
        for gap in gaps:
            shown.gap(gap)
        if not document["events"]:
            return
        since = document["cursor"]


def follow(client: Client, shown: Shown, *, since: int | None, ve: str | None) -> None:
    """For ever. Raises ClientError when the daemon cannot be reached at first, or says no."""
    place = _Place(since)
    while True:
        try:
            _connection(client, shown, place, ve)
        except ClientError as error:
            if place.log is None or error.code is not Exit.UNKNOWN:
                raise
            problem = error.message
        else:
            problem = "the daemon has ended the stream"
        if place.failures == 0:
            print(f"fswatch: {problem}; connecting again", file=sys.stderr)
        time.sleep(pause_after(place.failures))
        place.failures += 1


class _Place:
    """How far one has read, in which log; `failures` counts connections that gave nothing."""

    def __init__(self, since: int | None) -> None:
        self.cursor: int | None = since
        self.log: str | None = None
        self.failures = 0


def _connection(client: Client, shown: Shown, place: _Place, ve: str | None) -> None:
    for name, data, cursor in client.follow(
        "/v1/events/stream", since=place.cursor, log=place.log, ve=ve
    ):
        if name == "open":
            place.log = data
            continue
        if name == "gap":
            shown.gap(data)
        elif data is not None:
            shown.event(data)
        if cursor is not None:
            place.cursor = int(cursor)
        place.failures = 0


def pause_after(failures: int) -> float:
    """Seconds until the next attempt: doubling, capped, with jitter so that readers spread."""
    pause = min(_FIRST_PAUSE_S * 2.0 ** min(failures, 10), _LONGEST_PAUSE_S)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, protects nothing
