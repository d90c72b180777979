"""The event API of a running daemon, as programs of others use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fswatchd.client import Client
from tests.schema import problems
from tests.system.conftest import PROJECT, wait_until
from tests.system.test_sources import image, mounted, start, trigger

__all__ = ["image"]


class Follow:
    """`fswatch events --follow --json`, or another program that prints a line an event."""

    def __init__(self, daemon, *arguments: str, argv: list[str] | None = None) -> None:
        script = "import sys; from fswatchd.cli.main import main; sys.exit(main())"
        cli = [sys.executable, "-c", script, "--socket", str(daemon.socket), "events", "--json"]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            argv or [*cli, "--follow", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def documents(self) -> list[dict]:
        return [json.loads(line) for line in list(self.lines)]

    def cursors(self) -> list[int]:
        return [document["cursor"] for document in self.documents()]

    def close(self) -> str:
        """End it; what it said on standard error."""
        self.process.terminate()
        self._thread.join()
        _, errors = self.process.communicate()
        return errors


@pytest.fixture
def follow(daemon) -> Iterator:
    made: list[Follow] = []

    def begin(*arguments: str, **more) -> Follow:
        made.append(Follow(daemon, *arguments, **more))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def stored(daemon) -> list[dict]:
    found: list[dict] = []
    cursor = 0
    while (page := daemon.client.get("/v1/events", since=cursor))["events"]:
        assert page["gaps"] == []
        found += page["events"]
        cursor = page["cursor"]
    return found


def device_errors(daemon, device: str, wanted: int) -> list[dict]:
    """All events, as soon as so many of them are the kernel's word about this device."""
    name = os.path.basename(device)

    def found() -> list[dict]:
        events = stored(daemon)
        own = [e for e in events if e["device"] == name and e["source"] == "kmsg"]
        return events if len(own) >= wanted else []

    return wait_until(found)


def test_real_events_are_what_the_schema_says(daemon, work, image, follow) -> None:
    device = mounted(work, image)
    start(daemon)
    live = follow("--since", "0")
    trigger(device)
    events = device_errors(daemon, device, 1)
    assert {e["source"] for e in events} >= {"kmsg", "fanotify"}
    wait_until(lambda: len(live.lines) >= len(events))
    for document in [*stored(daemon), *live.documents()]:
        assert problems(document) == [], document
    page = daemon.client.get("/v1/events", since=999_999_999)
    assert [problems(gap) for gap in page["gaps"]] == [[]]
    assert page["gaps"][0]["gap"]["reason"] == "foreign"
    # What is kept is told the same way to everybody, but for the moment of the commit.
    by_cursor = {e["cursor"]: e for e in stored(daemon)}
    for document in live.documents():
        assert by_cursor[document["cursor"]] | {"stored": 0} == document | {"stored": 0}


def test_following_goes_on_over_a_stop_and_a_kill_without_gap_or_repeat(
    daemon, work, image, follow
) -> None:
    device = mounted(work, image)
    start(daemon)
    trigger(device, "before")
    device_errors(daemon, device, 1)
    live = follow("--since", "0")
    wait_until(lambda: live.lines)
    daemon.stop()
    trigger(device, "while it was stopped")
    daemon.start()
    device_errors(daemon, device, 2)
    daemon.kill()
    trigger(device, "while it was dead")
    daemon.start()
    device_errors(daemon, device, 3)
    trigger(device, "afterwards")
    events = device_errors(daemon, device, 4)
    wait_until(lambda: live.cursors()[-1] >= events[-1]["cursor"])
    upto = [cursor for cursor in live.cursors() if cursor <= events[-1]["cursor"]]
    assert upto == [e["cursor"] for e in events]
    assert upto == sorted(set(upto))
    assert "connecting again" in live.close()
    # A second reader, from the middle.
    rest = follow("--since", str(upto[1]))
    wait_until(lambda: len(rest.lines) >= len(upto) - 2)
    assert rest.cursors()[: len(upto) - 2] == upto[2:]


def test_one_ve_only_while_another_has_errors_too(daemon, make_ve, work, image, follow) -> None:
    ve = make_ve()
    other = mounted(work, image)
    start(daemon)
    ve.declare()
    ve.start()
    daemon.wait_until_known("ve101")
    live = follow("--since", "0", "--ve", "ve101")
    trigger(other)
    device_errors(daemon, other, 1)
    trigger(ve.device)
    wait_until(lambda: live.lines)
    assert {tuple(d["ves"]) for d in live.documents()} == {("declared:ve101",)}


def test_a_stop_of_the_daemon_is_not_held_up_by_readers(daemon, work, image) -> None:
    device = mounted(work, image)
    start(daemon)
    trigger(device)
    device_errors(daemon, device, 1)
    readers = [Client(str(daemon.socket)).follow("/v1/events/stream", since=0) for _ in range(5)]
    for reader in readers:
        assert next(reader).event == "open"
    daemon.stop()
    for reader in readers:
        assert [message.event for message in reader][-1] == "message"


def test_the_example_in_the_manual_works(daemon, work, image, follow) -> None:
    text = (PROJECT / "docs" / "events.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    example = example.replace("/run/fswatchd/api.sock", str(daemon.socket))
    device = mounted(work, image)
    start(daemon)
    live = follow(argv=[sys.executable, "-u", "-c", example])
    trigger(device)
    first = device_errors(daemon, device, 1)
    wait_until(lambda: len(live.lines) >= len(first))
    daemon.stop()
    trigger(device)
    daemon.start()
    events = device_errors(daemon, device, 2)
    wait_until(lambda: len(live.lines) >= len(events))
    expected = [f"{e['class']} {e['device']} {e['ves']}" for e in events]
    assert live.lines[: len(events)] == expected
