"""What exec runs, what scrub believes, and where evacuate goes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd import guards
from fswatchd.actions import evacuate, execute, scrub, ve_steps
from fswatchd.incidents import StepRecord
from fswatchd.inventory.model import Commands
from fswatchd.process import Completed
from fswatchd.rules.model import ExecStep, PlainStep, parse_file
from fswatchd.steps import ActionSettings, Next, StepEnded
from tests.unit.builders import incident
from tests.unit.repair.test_outage import VE


class TestExec:
    def test_a_program_that_only_root_can_change_is_run(self) -> None:
        assert execute.why_not("/bin/sh") is None

    def test_in_a_place_where_others_can_write_it_is_not(self, tmp_path) -> None:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert execute.why_not(str(program)) is not None
        link = tmp_path / "link"
        link.symlink_to("/bin/sh")
        assert execute.why_not(str(link)) is not None

    @pytest.mark.parametrize("path", ["sh", "/bin/../bin/sh", "/etc/passwd", "/bin", "/missing"])
    def test_what_is_no_program_or_could_be_another_is_not(self, path: str) -> None:
        assert execute.why_not(path) is not None

    def test_what_it_is_told(self) -> None:
        told = execute.environment(incident())
        assert told["FSWATCH_INCIDENT"] == incident().incident_id
        assert told["FSWATCH_CLASS"] == incident().klass.value
        assert all(isinstance(value, str) for value in told.values())

    async def test_after_a_crash_it_is_not_run_again(self) -> None:
        context = SimpleNamespace(record=SimpleNamespace(journal={"running": "/bin/sh"}))
        step = ExecStep(do="exec", run=["/bin/sh"])
        result = await execute.ExecAction().recover(cast("Any", context), step)
        assert (result.next.value, result.result) == ("operator", "interrupted")

    def test_a_rule_names_the_whole_path(self) -> None:
        text = '[[rule]]\nname = "x"\n[[rule.step]]\ndo = "exec"\nrun = ["{}"]\n'
        assert parse_file("x", text.format("/bin/sh"))[1] == []
        (problem,) = parse_file("x", text.format("sh"))[1]
        assert "whole path" in problem.message


def ended(code: int, output: str, *, timed_out: bool = False) -> Completed:
    return Completed(
        argv=("tool",), returncode=code, output=output, duration_s=1.0, timed_out=timed_out
    )


COUNTERS = "\tcsum_errors: 1\n\tcorrected_errors: {}\n\tuncorrectable_errors: {}\n"


class TestScrub:
    @pytest.mark.parametrize(
        ("done", "left", "mended"),
        [
            (ended(0, COUNTERS.format(0, 0)), False, False),
            (ended(0, COUNTERS.format(3, 0)), False, True),
            (ended(3, COUNTERS.format(1, 2)), True, True),
            (ended(1, COUNTERS.format(0, 0)), None, False),
            (ended(0, "nothing"), None, False),
            (ended(-9, COUNTERS.format(0, 0)), None, False),
            (ended(0, COUNTERS.format(0, 0), timed_out=True), None, False),
        ],
    )
    def test_btrfs(self, done: Completed, left: bool | None, mended: bool) -> None:
        verdict = scrub.interpret_btrfs(done)
        assert (verdict.left, verdict.mended) == (left, mended)

    @pytest.mark.parametrize(
        ("code", "left"), [(0, False), (1, True), (2, False), (3, True), (4, None), (8, None)]
    )
    def test_xfs(self, code: int, left: bool | None) -> None:
        assert scrub.interpret_xfs(ended(code, "")).left is left


def ve(*migrate: str) -> Any:
    return SimpleNamespace(ve_id="lxc:ve101", commands=SimpleNamespace(migrate=migrate))


class TestEvacuate:
    def test_the_other_node_stands_in_the_command(self) -> None:
        assert evacuate.command(ve("move", "101", "{to}"), "hn2") == ("move", "101", "hn2")

    @pytest.mark.parametrize(("one", "to"), [(ve(), "hn2"), (ve("move", "{to}"), "")])
    def test_without_a_command_or_a_place_nothing_is_run(self, one: Any, to: str) -> None:
        with pytest.raises(StepEnded):
            evacuate.command(one, to)

    @pytest.mark.parametrize(
        ("steps", "passes"), [(("evacuate", "notify"), True), (("evacuate", "fsck"), False)]
    )
    def test_a_failing_disk_holds_up_a_repair_and_not_the_way_out(
        self, monkeypatch, steps: tuple[str, ...], passes: bool
    ) -> None:
        cause = SimpleNamespace(name="sda", text="it fails")
        monkeypatch.setattr(guards, "blame", lambda _: cause)
        rule = SimpleNamespace(step=[SimpleNamespace(do=do) for do in steps])
        scope, nothing = SimpleNamespace(beneath=()), cast("Any", None)
        answer = guards.guard_cause(cast("Any", rule), incident(), cast("Any", scope), nothing, 0)
        assert answer.passed is passes


@pytest.mark.parametrize("writing", [True, False])
async def test_a_volume_whose_repair_was_cut_off_is_not_started_by_the_next_step(
    monkeypatch: pytest.MonkeyPatch, *, writing: bool
) -> None:
    """`on_failure = "continue"` leads from a repair that failed to the step `start`."""
    ve = replace(VE, commands=Commands(start=("start-it",)))
    record = StepRecord(do="fsck", options={}, journal={"writing": writing})
    started: list[object] = []

    async def only_ve(_: object) -> Any:
        return ve

    async def start(*_: object) -> str:
        started.append(ve)
        return ""

    async def running(*_: object) -> Any:
        return ve

    async def about(_: object) -> None: ...

    monkeypatch.setattr(ve_steps, "only_ve", only_ve)
    monkeypatch.setattr(ve_steps.ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_steps.ve_control, "start", start)
    monkeypatch.setattr(ve_steps.ve_control, "wait_running", running)
    context = SimpleNamespace(
        incident=SimpleNamespace(steps=(record,)), about_to_start=about, settings=ActionSettings()
    )
    result = await ve_steps.StartAction().run(cast("Any", context), PlainStep(do="start"))
    assert (result.next, bool(started)) == (
        (Next.OPERATOR, False) if writing else (Next.CONTINUE, True)
    )
