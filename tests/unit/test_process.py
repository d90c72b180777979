from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from fswatchd import transient
from fswatchd.process import _in_unit, oom_score_prefix

SERVICE = Path(__file__).parents[2] / "data" / "systemd" / "fswatchd.service"
UNITS_ENDED_BEFORE_A_START = re.findall(
    r"^ExecStartPre=-systemctl stop --quiet (.+)$", SERVICE.read_text(encoding="utf-8"), re.M
)[0].split()


@pytest.mark.parametrize(
    ("own", "wanted", "given"),
    [(-900, 0, "0"), (-900, 500, "500"), (0, 500, "500"), (0, 0, None), (700, 0, None)],
)
def test_a_program_never_gets_the_protection_of_the_service(
    own: int, wanted: int, given: str | None
) -> None:
    prefix = oom_score_prefix(wanted, own=own)
    assert prefix == (("choom", "-n", given, "--") if given else ())


def test_what_lives_on_is_started_by_systemd_where_the_daemon_is_its_service(monkeypatch) -> None:
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert transient.is_service()
    argv = _in_unit(("lxc-start", "-n", "ve101"), 60.0, "start")
    assert argv[0] == "systemd-run"
    assert argv[argv.index("--") + 1 :] == ("lxc-start", "-n", "ve101")
    assert "--property=TimeoutStartSec=60" in argv
    (name,) = [one for one in argv if one.startswith("--unit=")]
    unit = name.removeprefix("--unit=")
    assert any(fnmatch(unit, pattern) for pattern in UNITS_ENDED_BEFORE_A_START)
    # What could leave a volume suspended half-way is left to end by itself.
    own = next(one for one in _in_unit(("lvcreate",), 60.0, "lvm") if one.startswith("--unit="))
    name = own.removeprefix("--unit=")
    assert not any(fnmatch(name, pattern) for pattern in UNITS_ENDED_BEFORE_A_START)


@pytest.mark.parametrize("value", [None, "1"])
def test_a_daemon_in_a_terminal_or_below_a_service_is_none(monkeypatch, value) -> None:
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    if value:
        monkeypatch.setenv("SYSTEMD_EXEC_PID", value)
    assert not transient.is_service()
