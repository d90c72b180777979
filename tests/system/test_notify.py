"""Notices to a real receiver that comes and goes, from a daemon that comes and goes."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fswatchd.notify.webhook import signature
from tests.system import rules
from tests.system.conftest import wait_until

SECRET = "s3cret"


class Flaky:
    """A receiver that can be told what to answer; listens on one port all its life."""

    def __init__(self) -> None:
        self.status = 204
        self.headers: dict[str, str] = {}
        self.received: list[tuple[dict, dict, bytes]] = []
        self.attempts = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.attempts += 1
                if outer.status < 300:
                    outer.received.append((json.loads(body), dict(self.headers), body))
                self.send_response(outer.status)
                for key, value in outer.headers.items():
                    self.send_header(key, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def kinds(self) -> list[str]:
        """What was told of ve101; the machine may have incidents of its own."""
        prefix = "org.fswatchd.incident."
        return [event["type"].removeprefix(prefix) for event in self.of_ve101()]

    def of_ve101(self) -> list[dict[str, Any]]:
        """Not what else fails on the machine."""
        events = [event for event, _, _ in self.received]
        return [event for event in events if event["subject"] == "declared:ve101"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    made = Flaky()
    yield made
    made.close()


def start(daemon, ve, flaky, work, *, text: str | None = None, mode: str = "auto") -> None:
    (work / "secret").write_text(f"{SECRET}\n")
    daemon.configure(
        rules=text or rules.repair(),
        channels=rules.channel(flaky.url, work / "secret"),
        mode=mode,
    )
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)


def trigger(ve) -> None:
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")


def test_the_life_of_an_incident_is_told_signed_and_in_order(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    start(daemon, ve, flaky, work)
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed")
    wait_until(lambda: "closed" in flaky.kinds())
    kinds = flaky.kinds()
    assert kinds[0] == "opened"
    assert kinds[-1] == "closed"
    assert kinds.index("repaired") < kinds.index("closed")
    for event, headers, body in flaky.received:
        assert headers["Content-Type"].startswith("application/cloudevents+json")
        assert headers["X-Fswatchd-Signature"] == signature(body, SECRET.encode())
        assert event["specversion"] == "1.0"
    assert {event["data"]["id"] for event in flaky.of_ve101()} == {incident["id"]}
    ids = [event["id"] for event, _, _ in flaky.received]
    assert len(set(ids)) == len(ids)


def test_a_receiver_that_is_down_and_a_restart_lose_and_repeat_nothing(
    daemon, make_ve, flaky, work
) -> None:
    ve = make_ve()
    flaky.status = 503
    start(daemon, ve, flaky, work)
    ve.damage_directory()
    daemon.wait_for_incident("closed")
    wait_until(lambda: flaky.attempts >= 1)
    assert daemon.status()["notices"]["failing"]
    daemon.kill()
    flaky.status = 204
    daemon.start()
    wait_until(lambda: "closed" in flaky.kinds(), 60, "the last notice")
    wait_until(lambda: not any(daemon.status()["notices"]["waiting"].values()))
    kinds = flaky.kinds()
    assert kinds[0] == "opened"
    assert kinds.count("closed") == 1
    ids = [event["id"] for event, _, _ in flaky.received]
    assert len(set(ids)) == len(ids)
    daemon.stop()
    told = flaky.kinds()
    daemon.start()
    wait_until(lambda: daemon.answers())
    assert flaky.kinds() == told


def test_redirects_are_not_followed(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    flaky.status, flaky.headers = 302, {"Location": flaky.url}
    start(daemon, ve, flaky, work, text=rules.TELL)
    trigger(ve)
    wait_until(lambda: flaky.attempts >= 1)
    wait_until(lambda: daemon.status()["notices"]["failing"].get("ops") == "HTTP 302")
    assert flaky.received == []


def test_retry_after_is_honoured(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    flaky.status, flaky.headers = 429, {"Retry-After": "3"}
    start(daemon, ve, flaky, work, text=rules.TELL)
    trigger(ve)
    wait_until(lambda: flaky.attempts == 1)
    begin = time.monotonic()
    wait_until(lambda: flaky.attempts == 2)
    assert time.monotonic() - begin > 2.5


def test_an_unconfirmed_or_observed_fault_is_told_too(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    start(daemon, ve, flaky, work, mode="observe")
    ve.damage_directory()
    wait_until(lambda: "opened" in flaky.kinds())
    data = flaky.of_ve101()[0]["data"]
    assert (data["class"], data["state"], data["confirmed"]) == ("corruption", "open", True)


def test_waiting_for_approval_is_told(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    start(daemon, ve, flaky, work, mode="approve")
    ve.damage_directory()
    wait_until(lambda: "waiting" in flaky.kinds())
    assert flaky.kinds()[0] == "opened"


def test_a_question_is_told_with_what_a_yes_would_do(daemon, make_ve, flaky, work) -> None:
    ve = make_ve()
    start(daemon, ve, flaky, work, mode="approve")
    before = ve.inode
    ve.damage_directory()

    def told() -> dict[str, Any] | None:
        every = [event["data"] for event in flaky.of_ve101()]
        return next((data["preview"] for data in every if data["preview"]), None)

    preview = wait_until(told, 60, "the preview")
    assert preview["lost_files"] == 100
    incident = daemon.wait_for_incident("waiting")
    assert incident["preview"] == preview
    assert f"A repair would do: {preview['would_do']}" in daemon.why(incident["id"])
    assert ve.inode == before
    assert ve.wait_for_write()


def test_a_receiver_that_never_answers_does_not_hold_up_the_repair(daemon, make_ve, work) -> None:
    import socket

    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(8)
    try:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        ve = make_ve()
        (work / "secret").write_text("x")
        daemon.configure(rules=rules.repair(), channels=rules.channel(url, work / "secret"))
        ve.declare()
        ve.start()
        daemon.start()
        daemon.wait_until_known("ve101")
        ve.damage_directory()
        assert daemon.wait_for_incident("closed", timeout_s=15)["outcome"] == "repaired"
    finally:
        silent.close()
