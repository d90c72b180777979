"""The shipped service under a real systemd: installed, shut in, and able to repair all the same."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.sandbox import Sandbox, unit
from tests.system.booted import Booted, booted
from tests.system.conftest import PROJECT, wait_until

BIN = Path(sys.executable).parent
FSWATCH = str(BIN / "fswatch")


@pytest.fixture
def node(work) -> Iterator[Booted]:
    with booted(work) as one:
        yield one


def install(node: Booted) -> None:
    done = node.run((FSWATCH, "install"))
    assert done.returncode == 0, done.stdout
    assert node.run(("systemctl", "start", "fswatchd")).returncode == 0


def units(node: Booted) -> list[str]:
    """The tools that PID 1 was asked to run, by its journal."""
    said = node.run(("journalctl", "--output=cat", "--unit=fswatchd-tool-*", "_PID=1")).stdout
    return re.findall(r"Started fswatchd-tool-\w+\.service - .* bash (\S+)", said)


def test_the_installed_service_repairs_by_tools_in_units_of_their_own(node: Booted) -> None:
    """Its own sandbox makes no namespaces, so that those of the tools must be PID 1's."""
    install(node)
    drill = node.run((FSWATCH, "drill", "--json"))
    assert drill.returncode == 0, drill.stdout
    result = json.loads(drill.stdout.splitlines()[-1])
    assert result["files"]["lost"] == result["acked"]["lost"] == 0
    assert {"e2fsck", "debugfs"} <= set(units(node))
    left = node.run(("systemctl", "list-units", "--all", "--plain", "--no-legend", "fswatchd-*"))
    assert "fswatchd-tool-" not in left.stdout


def test_a_tool_of_a_former_daemon_is_ended_before_the_next_one_starts(node: Booted) -> None:
    """Else it would go on working on what the new one takes up; a unit of others stays."""
    install(node)
    for name in ("fswatchd-tool-former", "fswatchd-other"):
        assert node.run(("systemd-run", f"--unit={name}", "sleep", "1000")).returncode == 0
    pid = node.run(("systemctl", "show", "--property=MainPID", "--value", "fswatchd")).stdout
    assert node.run(("kill", "-KILL", pid.strip())).returncode == 0

    def state(name: str) -> str:
        return node.run(("systemctl", "is-active", name)).stdout.strip()

    def next_one() -> str:
        said = ("systemctl", "show", "--property=MainPID", "--value", "fswatchd")
        now = node.run(said).stdout
        return now if now not in {pid, "0\n"} and state("fswatchd") == "active" else ""

    wait_until(next_one, 60)
    assert state("fswatchd-tool-former") != "active"
    assert state("fswatchd-other") == "active"


def test_the_sandbox_of_a_service_holds_what_the_other_one_holds(node: Booted) -> None:
    tests = (
        "test_a_hostile_program_reaches_its_own_device_and_nothing_else",
        "test_time_ends_it",
        "test_a_program_may_ask_what_its_limits_are",
        "test_a_program_of_several_threads_may_have_files_in_memory",
        "test_what_a_program_is_given_to_read",
        "test_what_is_passed_on_keeps_its_number",
        "test_what_is_only_to_be_read_cannot_be_written",
        "test_a_sandbox_that_cannot_be_built_is_no_answer_of_the_program",
    )
    where = [f"{PROJECT}/tests/system/test_sandbox.py::{test}" for test in tests]
    options = ("-p", "no:cacheprovider", f"--rootdir={PROJECT}", f"-c{PROJECT}/pyproject.toml")
    done = node.serve((sys.executable, "-m", "pytest", "-q", *options, *where))
    assert done.returncode == 0, done.stdout
    assert f"{len(tests) + 1} passed" in done.stdout  # one of them twice
    assert units(node), "it ran without a unit"


def test_names_of_images_are_only_names(node: Booted, work: Path) -> None:
    """Blanks, quotes, colons and dollars mean something to systemd-run."""
    place = work / "a b:c\"d'e$HOME%n"
    place.mkdir()
    (place / "own.img").write_bytes(b"x")
    inside = str(Path("/var/tmp") / place.name / "own.img")
    program = (
        "import asyncio; from fswatchd import process; from fswatchd.sandbox import Sandbox\n"
        f"place = Sandbox(device={inside!r})\n"
        f"run = process.run(('cat', {inside!r}), timeout_s=60, sandbox=place)\n"
        "done = asyncio.run(run); print(done.returncode, done.output)"
    )
    # A script's name, because systemd-run would put variables into the argument.
    script = work / "script.py"
    script.write_text(program)
    done = node.serve((sys.executable, f"/var/tmp/{script.name}"))
    assert done.stdout == "0 x\n"


@pytest.mark.parametrize(("what", "most"), [("service", 6.0), ("sandbox", 3.0)])
def test_systemd_finds_little_exposed(work: Path, what: str, most: float) -> None:
    path = work / "fswatchd.service"
    text = (PROJECT / "data/systemd/fswatchd.service").read_text()
    if what == "sandbox":
        own = unit.limits(Sandbox(device="/srv/ve101.img"), 60.0)
        text = "\n".join(["[Service]", "ExecStart=/bin/true", *unit.SHUT_IN, *own])
    path.write_text(text)
    judge = ("systemd-analyze", "security", "--no-pager", "--offline=true", str(path))
    said = subprocess.run(judge, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= most, said


@pytest.mark.parametrize("shut_in", [True, False])
def test_the_limits_of_others_are_out_of_reach_for_a_tool_of_a_unit(*, shut_in: bool) -> None:
    """It is user 0, without capabilities; but for its group it could take their files from them."""
    (group,) = (one.removeprefix("Group=") for one in unit.SHUT_IN if one.startswith("Group="))
    weak = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    if shut_in:
        weak += [f"--regid={group}", "--clear-groups"]
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            argv = [*weak, "prlimit", f"--pid={other.pid}", "--nofile=77:77"]
            done = subprocess.run(argv, capture_output=True, check=False)
            limit, _ = resource.prlimit(other.pid, resource.RLIMIT_NOFILE)
        finally:
            other.kill()
    assert (done.returncode == 0, limit == 77) == (not shut_in, not shut_in)
