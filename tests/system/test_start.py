"""What a start loads, and that nothing has to be loaded afterwards."""

from __future__ import annotations

import re

from tests.system import rules
from tests.system.conftest import fswatch, wait_until

# `python -X importtime` writes a line to stderr for each module; so do the daemon's messages.
_IMPORTED = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)
_READY = "API "


def test_once_it_is_ready_an_incident_loads_no_module(daemon, make_ve, receiver, work) -> None:
    """The disk that Python's files lie on may be the one that hangs."""
    ve = make_ve()
    secret = work / "secret"
    secret.write_text(receiver.secret)
    secret.chmod(0o600)
    # By a name, so that it is looked up.
    url = receiver.url.replace("127.0.0.1", "localhost")
    daemon.configure(rules=rules.repair(), channels=rules.channel(url, secret))
    daemon.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    ve.damage_directory()
    incident = daemon.wait_for_incident("closed", "needs-operator")
    assert incident["outcome"] == "repaired", daemon.why(incident["id"])
    told = "org.fswatchd.incident.closed"
    wait_until(lambda: told in {notice["type"] for _, notice in receiver.notices}, 60)
    for command in ("status", "incidents", "events", f"incident {incident['id']}", "rules list"):
        assert fswatch(daemon, *command.split()).returncode < 3
    before, ready, after = daemon.log().partition(_READY)
    assert ready
    assert "fswatchd.repair.clone_repair" in _IMPORTED.findall(before)
    assert not _IMPORTED.findall(after)


def test_a_start_loads_nothing_that_only_the_command_or_nobody_needs(daemon) -> None:
    """Imports are nearly all the time until it is ready."""
    daemon.configure()
    daemon.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    daemon.start()
    loaded = _IMPORTED.findall(daemon.log())
    assert "pyroute2.netlink.event.dquot" in loaded
    useless = ("pyroute2.ndb", "pyroute2.iproute", "rich", "fswatchd.cli", "unittest")
    assert not [name for name in loaded if name.startswith(useless)]
    heard = {source["name"]: source["state"] for source in daemon.status()["sources"]}
    assert heard["quota"] == "ok"
