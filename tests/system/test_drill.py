"""`fswatch drill`: it proves what works, fails where nothing listens, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fswatchd.drill import janitor
from fswatchd.drill.faults import FAULTS
from fswatchd.drill.paths import ScenePaths
from fswatchd.kernel import loop, proc
from tests.system.conftest import PROJECT, wait_until


def command(work: Path, *arguments: str, program: str = "fswatchd.cli.main") -> list[str]:
    script = f"import sys; from {program} import main; sys.exit(main())"
    return [sys.executable, "-W", "error", "-c", script, "drill", "--dir", str(work), *arguments]


def drill(work: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        command(work, "--json", *arguments),
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=170,
        check=False,
    )
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def loops_below(work: Path) -> list[str]:
    """Devices on files of this test, deleted ones too; others come and go."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it went away this very moment
            if path.read_text().startswith(f"{work}/"):
                found.append(str(path))
    return found


def nothing_left(work: Path) -> bool:
    return (
        not list(work.iterdir())
        and not loops_below(work)
        and str(work) not in Path("/proc/self/mountinfo").read_text()
    )


@pytest.mark.parametrize(
    ("fs", "fault"),
    [(fs, name) for fs, faults in FAULTS.items() for name in faults if name != "none"],
)
def test_a_fault_is_noticed_repaired_proved_and_told(work: Path, fs: str, fault: str) -> None:
    code, result = drill(work, "--private", "--fs", fs, "--fault", fault)
    assert result["passed"], result["why_failed"]
    assert code == 0
    assert all(seconds is not None for seconds in result["timeline_s"].values())
    assert result["acked"]["lost"] == 0
    assert result["acked"]["written"] > 0
    assert result["files"]["lost"] == result["files"]["expected_lost"]
    assert result["bystander"]["errors"] == 0
    assert result["outage_s"] <= result["write_pause_s"] + 0.05
    assert nothing_left(work)


@pytest.mark.parametrize("fs", list(FAULTS))
def test_without_a_fault_nothing_happens(work: Path, fs: str) -> None:
    code, result = drill(work, "--private", "--fs", fs, "--fault", "none")
    assert (code, result["passed"], result["incident"]) == (0, True, None)
    # How long nothing was detected is measured: no milestone was reached within that.
    assert result["timeline_is"] == "not-within"
    times = result["timeline_s"]
    assert times.pop("injected") == 0.0
    assert all(seconds > 1 for seconds in times.values())
    assert nothing_left(work)


def test_with_the_sources_switched_off_the_drill_fails(work: Path) -> None:
    off = [
        word for name in ("fanotify", "kmsg", "journal", "state") for word in ("--without", name)
    ]
    code, result = drill(work, "--private", *off)
    assert (code, result["passed"]) == (2, False)
    assert "unnoticed" in result["why_failed"][0]
    assert nothing_left(work)


def test_a_daemon_that_runs_beside_is_not_alarmed(daemon, work: Path) -> None:
    daemon.configure(mode="auto")
    daemon.start()
    code, result = drill(work, "--private", "--socket", str(daemon.socket))
    assert code == 0, result["why_failed"]
    # Whatever else fails on this machine meanwhile is no affair of the drill's.
    for incident in daemon.incidents():
        if any(ve.startswith("drill:") for ve in incident["ves"]):
            assert incident["steps"] == []


def test_the_running_daemon_handles_a_drill_even_in_mode_observe(daemon, work: Path) -> None:
    daemon.configure(mode="observe")
    text = (PROJECT / "rules.d" / "05-drill.toml").read_text()
    (work / "rules.d" / "05-drill.toml").write_text(text)
    daemon.start()
    code, result = drill(work / "..", "--socket", str(daemon.socket))
    assert code == 0, result["why_failed"]
    left = [ve["id"] for ve in daemon.status()["ves"]]
    assert not [ve_id for ve_id in left if "drill" in ve_id], left


def test_disarm_stops_a_drill_too(daemon, work: Path) -> None:
    daemon.configure(mode="observe")
    text = (PROJECT / "rules.d" / "05-drill.toml").read_text()
    (work / "rules.d" / "05-drill.toml").write_text(text)
    daemon.start()
    daemon.client.post("/v1/disarm", {"reason": "test"})
    process = subprocess.Popen(
        command(work / "..", "--json", "--socket", str(daemon.socket)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    wait_until(lambda: [i for i in daemon.incidents() if i["waiting_for"] == "armed"], 60)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    result = json.loads(output)
    assert (process.returncode, result["why_failed"]) == (2, ["interrupted"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_drill_that_is_ended_leaves_nothing_behind(work: Path, number: int) -> None:
    process = subprocess.Popen(
        command(work, "--private", "--files", "300"), stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("fault:"):
            break
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    wait_until(lambda: nothing_left(work), 60, "everything to be gone")


def test_what_is_left_is_found_where_its_files_are_gone_too(work: Path) -> None:
    paths = ScenePaths.new(work)
    with paths.host_image.open("xb") as file:
        file.truncate(1 << 20)
        device, held = loop.attach(file.fileno(), autoclear=True)
    argv = ["sh", "-c", "read line", f"{paths.directory}/daemon"]
    daemon = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        shutil.rmtree(paths.directory)
        wait_until(lambda: proc.arguments(daemon.pid) == argv, what="the process to be there")
        process, image = janitor.leftovers(paths)
        assert process == f"process {daemon.pid}"
        assert image.startswith(f"loop device {Path(device).name} on {paths.host_image}")
    finally:
        daemon.communicate(timeout=10)
        os.close(held)
    wait_until(lambda: janitor.leftovers(paths) == [], what="all to be gone")


def test_an_unknown_fault_is_wrong_usage(work: Path) -> None:
    done = subprocess.run(
        command(work, "--fault", "meteor"), capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert done.returncode == 64
    assert "dir-block" in done.stderr
