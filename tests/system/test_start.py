"""What a start loads, and that nothing has to be loaded afterwards."""

from __future__ import annotations

import re
from pathlib import Path

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


class TestLockMemory:
    """`lock_memory`: what the daemon has, and what its files have, needs no disk."""

    def test_the_daemon_and_the_files_it_runs_from_are_in_memory(self, daemon) -> None:
        daemon.configure(daemon="lock_memory = true")
        daemon.start()
        wait_until(lambda: _locked_kb(daemon.pid), what="a lock")
        wait_until(lambda: not _missing(daemon.pid), what="all of the program's files")
        assert _finding(daemon)["level"] == "ok"
        # A stack or a reserve that nobody has touched is not brought in.
        assert _status(daemon.pid, "VmRSS") < _status(daemon.pid, "VmSize") * 3 / 4

    def test_without_it_nothing_is_locked(self, daemon) -> None:
        daemon.configure()
        daemon.start()
        assert _finding(daemon)["level"] == "ok"
        assert _locked_kb(daemon.pid) == 0

    def test_where_it_may_not_it_says_so_and_runs(self, daemon) -> None:
        """With a limit the kernel would refuse it memory later."""
        daemon.configure(daemon="lock_memory = true")
        drop = ["setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock"]
        daemon.run_by = [*drop, "prlimit", "--memlock=1000000:1000000"]
        daemon.start()
        wait_until(lambda: "not locked into memory" in daemon.log())
        assert _locked_kb(daemon.pid) == 0
        assert _finding(daemon)["level"] == "warning"


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _locked_kb(pid: int) -> int:
    return _status(pid, "VmLck")


def _missing(pid: int) -> list[str]:
    """Code of the interpreter and its libraries that is not in memory, by smaps."""
    found, name, size = [], "", ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, value = (part.strip() for part in line.partition(":")[::2])
        if " r-xp " in line:
            name = line.split(maxsplit=5)[-1]
        elif "-" in key:
            name = ""
        elif name.startswith("/") and key == "Size":
            size = value
        elif name.startswith("/") and key == "Rss" and value != size:
            found.append(f"{name}: {value} of {size}")
    return found


def _finding(daemon) -> dict:
    findings = daemon.client.get("/v1/doctor")["findings"]
    return next(one for one in findings if one["code"] == "FSW-DOCTOR-MEMORY")
