from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.config import DaemonTable
from fswatchd.rules.files import chosen, embedded_rules, load, read
from fswatchd.rules.model import assemble, parse_file, step_from_options
from fswatchd.rules.problem import RuleProblem
from tests.unit.builders import rules

MISTAKES = """
[[rule]]
name = "first"
match.clas = "corruption"
threshold = 3
[[rule.step]]
do = "fsk"

[[rule]]
name = "second"
mode = "automatic"
"""


def problems(text: str) -> list[RuleProblem]:
    return parse_file("x.toml", text)[1]


def test_all_mistakes_are_reported_at_once_with_file_rule_and_key() -> None:
    found = {(p.file, p.rule, p.key) for p in problems(MISTAKES)}
    assert found == {
        ("x.toml", "first", "match.clas"),
        ("x.toml", "first", "threshold"),
        ("x.toml", "first", "step[1].do"),
        ("x.toml", "second", "mode"),
        ("x.toml", "second", "step"),
    }


def test_hints_name_what_was_probably_meant() -> None:
    hints = {p.key: p.hint for p in problems(MISTAKES)}
    assert "class" in hints["match.clas"]
    assert "fsck" in hints["step[1].do"]
    assert "auto" in hints["mode"]
    told = next(p for p in problems(MISTAKES) if p.key == "threshold")
    assert '"3 in 10m"' in told.message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('match.class = "corruptn"', "match.class"),
        ('match.severity = "> bad"', "match.severity"),
        ("match.severity = 3", "match.severity"),
        ('threshold = "0 in 10m"', "threshold"),
        ('threshold = "often"', "threshold"),
        ('cooldown = "10 parsecs"', "cooldown"),
        ("cooldown = 10", "cooldown"),
        ("budget = { node = -1 }", "budget.node"),
        ('budget = { node = "1" }', "budget.node"),
        ("budget = { nodes = 1 }", "budget.nodes"),
        ('continue = "yes"', "continue"),
        ("carry_on = true", "carry_on"),
        ("match.label.tier = 3", "match.label.tier"),
        ('match.role = "root"', "match.role"),
        ('match.cause = "disk"', "match.cause"),
        ('match.platform = "dockr"', "match.platform"),
        ('match.platform = ["lxc", "kube*"]', "match.platform"),
        ('match.platform = "re:(lxc"', "match.platform"),
        ('match.not = { platform = "dockr" }', "match.not[1].platform"),
        ("match.ves = 3", "match.ves"),
        ('match.ves = "many"', "match.ves"),
        ('match.during = "2am"', "match.during"),
        ('match.during = "25:00-26:00"', "match.during"),
        ('match.during = "02:00-02:00"', "match.during"),
        ('match.confirmed = "yes"', "match.confirmed"),
        ('match.any = { fstype = "ext4" }', "match.any"),
        ("match.any = []", "match.any"),
        ('match.any = [{ fstyp = "ext4" }]', "match.any[1].fstyp"),
        ('match.not = { clas = "corruption" }', "match.not[1].clas"),
        ('match.all = [{ not = { fstyp = "ext4" } }]', "match.all[1].not[1].fstyp"),
        ('match.ve = "re:(a"', "match.ve"),
        ('match.ve = "re:(?=a)"', "match.ve"),
        ("match.ve = 're:(a)\\1'", "match.ve"),
        ('mode = "automatic"', "mode"),
        ('approval = "soon"', "approval"),
        ("backoff = 10", "backoff"),
        ('flap = "1 day"', "flap"),
        ('budget = { label = "rack" }', "budget.label"),
        ("budget = { label.rack = -1 }", "budget.label.rack"),
        ("budget = { filesystems = 1 }", "budget.filesystems"),
        ('copies = ""', "copies"),
    ],
)
def test_wrong_values_are_refused(line: str, key: str) -> None:
    text = f'[[rule]]\nname = "r"\n{line}\n[[rule.step]]\ndo = "fsck"\n'
    (found,) = problems(text)
    assert found.key == key
    assert found.hint


def test_a_platform_that_is_not_known_is_told_which_one_may_be_meant() -> None:
    text = '[[rule]]\nname = "r"\nmatch.not = {{ platform = {} }}\n[[rule.step]]\ndo = "fsck"\n'
    (found,) = problems(text.format('["lxc", "dockr"]'))
    assert "'dockr'" in found.message
    assert found.hint == 'did you mean "docker"?'
    for right in ('"*"', '"podman"', '["lx?", "re:pod.*|docker"]', '["scope", "cri"]'):
        assert problems(text.format(right)) == []


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ('do = "fsck"\nstrategy = "magic"', "step[1].strategy"),
        ('do = "fsck"\nstrategy = "online"\nmax_lost_files = 0', "step[1]"),
        ('do = "fsck"\nmax_write_pause = 5', "step[1].max_write_pause"),
        ('do = "fsck"\nto = ["ops"]', "step[1].to"),
        ('do = "notify"\non_failure = "explode"', "step[1].on_failure"),
        ('strategy = "clone"', "step[1].do"),
        ('do = "fsck"\nstrategy = "offline"\nmax_lost_files = 0', "step[1]"),
        ('do = "fsck"\nmax_changes = -1', "step[1].max_changes"),
        ('do = "exec"\nrun = ["relative"]', "step[1].run"),
        ('do = "exec"\nrun = ["/bin/true"]\ntimeout = "0s"', "step[1].timeout"),
        ('do = "fsck"\ntimeout = "0m"', "step[1].timeout"),
    ],
)
def test_wrong_steps_are_refused(step: str, key: str) -> None:
    text = f'[[rule]]\nname = "r"\n[[rule.step]]\n{step}\n'
    (found,) = problems(text)
    assert found.key == key
    assert found.hint


def test_where_re2_is_not_installed_a_regular_expression_says_so_and_globs_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    text = '[[rule]]\nname = "r"\nmatch.ve = "{}"\n[[rule.step]]\ndo = "fsck"\n'
    (found,) = problems(text.format("re:ve[0-9]+"))
    assert "google-re2" in found.message
    assert problems(text.format("ve[0-9]*")) == []


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        ("[storm]\n", "ves", "neither"),
        ("[storm]\nves = 0\n", "ves", "greater than or equal to 1"),
        ('[storm]\nshare = "150%"\n', "share", '"25%"'),
        ('[storm]\nves = 3\nresume = "later"\n', "resume", '"30s"'),
        ("[storm]\nvess = 3\n", "vess", "unknown key"),
        ("storm = 3\n", "", "a table"),
        ("[strom]\nves = 3\n", "strom", "unknown key"),
    ],
)
def test_wrong_storms_are_refused(text: str, key: str, part: str) -> None:
    (found,) = problems(text)
    assert found.key == key
    assert part in str(found)
    assert found.hint


def test_there_is_one_storm_in_all_files() -> None:
    text = '[storm]\nves = 3\nresume = "1h"\n'
    ruleset, wrong = assemble([("a.toml", text)])
    assert not wrong
    assert ruleset.storm is not None
    assert (ruleset.storm.ves, ruleset.storm.resume) == (3, 3600.0)
    _, wrong = assemble([("a.toml", text), ("b.toml", text)])
    assert [(p.file, p.rule) for p in wrong] == [("b.toml", "storm")]


@pytest.mark.parametrize(
    ("depth", "right"), [(8, True), (9, False), (200, False), (100_000, False)]
)
def test_groups_in_groups_have_an_end(depth: int, right: bool) -> None:
    """Also one that no recursion would survive."""
    for line in (
        f"match.{'not.' * (depth - 1)}fstype = 'ext4'",
        f"match.not = {'{ not = ' * (depth - 2)}{{ fstype = 'ext4' }}{' }' * (depth - 2)}",
        f"match = {{ {'not.' * (depth - 1)}fstype = 'ext4' }}",
    ):
        found = problems(f'[[rule]]\nname = "r"\n{line}\n[[rule.step]]\ndo = "fsck"\n')
        assert bool(found) is not right


def test_broken_toml_is_one_problem_with_its_place() -> None:
    (found,) = problems('[[rule]\nname = "x"')
    assert "line 1" in found.message


def test_single_brackets_are_explained() -> None:
    (found,) = problems('[rule]\nname = "x"\n')
    assert "[[rule]]" in found.hint


def test_a_name_is_used_once() -> None:
    one = '[[rule]]\nname = "same"\n[[rule.step]]\ndo = "fsck"\n'
    _, found = assemble([("a.toml", one), ("b.toml", one)])
    assert [(p.file, p.key) for p in found] == [("b.toml", "name")]
    assert "a.toml" in found[0].message


def test_any_problem_makes_the_whole_set_empty() -> None:
    good = '[[rule]]\nname = "good"\n[[rule.step]]\ndo = "fsck"\n'
    found, _ = assemble([("a.toml", good), ("b.toml", "nonsense = 1")])
    assert found.rules == ()


def test_the_contracts_example_is_right() -> None:
    found = rules(
        """
        [[rule]]
        name           = "ext4-metadata"
        match.class    = ["corruption", "readonly"]
        match.severity = ">= error"
        match.fstype   = "ext4"
        match.ve       = "*"
        threshold      = "1 in 10m"
        mode           = "approve"
        cooldown       = "30m"
        budget         = { node = 2, device = 1 }
        [[rule.step]]
        do = "snapshot"
        [[rule.step]]
        do = "fsck"
        strategy   = "clone"
        on_failure = "quarantine"
        [[rule.step]]
        do = "notify"
        to = ["ops"]
        """
    )
    assert [step.do for step in found.rules[0].step] == ["snapshot", "fsck", "notify"]


def test_a_step_survives_being_recorded() -> None:
    step = (
        rules('[[rule]]\nname = "r"\n[[rule.step]]\ndo = "fsck"\nmax_write_pause = "7s"\n')
        .rules[0]
        .step[0]
    )
    again = step_from_options(step.model_dump())
    assert again == step


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_file("x.toml", text)


def test_shipped_rules_are_right_and_only_the_drill_acts_by_itself() -> None:
    found, wrong = load([embedded_rules()])
    assert not wrong
    assert [rule.name for rule in found.rules if rule.mode == "auto"] == ["drill"]


class TestFiles:
    GOOD = '[[rule]]\nname = "{}"\n[[rule.step]]\ndo = "fsck"\n'

    def test_a_later_directory_replaces_and_masks_by_name(self, tmp_path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        for name in ("10-a", "20-b", "30-c"):
            (one / f"{name}.toml").write_text(self.GOOD.format(name))
        (two / "20-b.toml").write_text(self.GOOD.format("mine"))
        (two / "10-a.toml").symlink_to("/dev/null")
        (two / ".hidden.toml").write_text("nonsense")
        (two / "README").write_text("nonsense")
        assert [str(p.relative_to(tmp_path)) for p in chosen([one, two])[0]] == [
            "two/20-b.toml",
            "one/30-c.toml",
        ]

    def test_a_file_others_can_write_is_refused(self, tmp_path) -> None:
        path = tmp_path / "a.toml"
        path.write_text(self.GOOD.format("a"))
        path.chmod(0o664)
        answer = read(path)
        assert isinstance(answer, RuleProblem)
        assert "written by others" in answer.message or "owned by" in answer.message

    @pytest.mark.parametrize("kind", ["directory", "missing", "binary", "loop", "huge"])
    def test_what_is_no_text_file_is_refused_by_name(self, tmp_path, kind: str) -> None:
        path = tmp_path / "a.toml"
        if kind == "directory":
            path.mkdir()
        elif kind == "binary":
            path.write_bytes(b"\xff\xfe\x00")
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(100 << 20)
        answer = read(path, trusted=True)
        assert isinstance(answer, RuleProblem)
        assert answer.file == str(path)


def test_a_directory_that_is_named_and_not_there_is_a_problem(tmp_path: Path) -> None:
    rules, wrong = load([tmp_path / "gone"])
    assert rules.rules == ()
    (problem,) = wrong
    assert problem.file == str(tmp_path / "gone")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also a default one, and also the shipped rules, which the program has beside it."""
    (tmp_path / "a.toml").write_text(TestFiles.GOOD.format("a"))

    def fails(path: Path) -> Iterator[Path]:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "iterdir", fails)
    for directory in (tmp_path, *DaemonTable().rules):
        paths, (problem,) = chosen([directory])
        assert paths == []
        assert problem.file == str(directory)
        assert problem.message == f"cannot be listed: {os.strerror(number)}"


def test_the_default_directories_need_not_exist() -> None:
    _, wrong = load([Path("/etc/fswatchd/rules.d"), Path("/usr/lib/fswatchd/rules.d")])
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "key", "form", "example"),
    [
        ("name = 5", "name", "a text in quotes", 'name = "ext4-damage"'),
        ('name = "a b"', "name", "a name of letters", 'name = "ext4-damage"'),
        ('name = "a"\nbudget.node = "2"', "budget.node", "a whole number, without quotes", "2"),
        ('name = "a"\nmatch.confirmed = "yes"', "match.confirmed", "true or false", "= true"),
        ('name = "a"\nmatch.label = "gold"', "match.label", "a table", 'label.tier = "gold"'),
        ('name = "a"\nbudget = 2', "budget", "a table", "budget = { node = 2, device = 1 }"),
        ('name = "a"\ncontinue = "true"', "continue", "true or false", "continue = true"),
        ('name = "a"\ncooldown = 30', "cooldown", "a duration in quotes", '"30s"'),
        ('name = "a"\napprovers = ["a b"]', "approvers[1]", "a user", '"@storage"'),
        ('name = "a"\nmatch.ves = 3', "match.ves", "a count of VEs", '">= 3"'),
        ('name = "a"\nmatch.ve = []', "match.ve", "a list that is not empty", '"web-*"'),
        ('name = "a"\ncopies = ""', "copies", "a text that is not empty", 'copies = "cluster"'),
    ],
)
def test_a_wrong_type_is_told_the_form_and_an_example(
    line: str, key: str, form: str, example: str
) -> None:
    text = f'[[rule]]\n{line}\n[[rule.step]]\ndo = "notify"\n'
    (found,) = problems(text)
    assert found.key == key
    assert form in found.message
    assert example in f"{found.message} {found.hint}"


def test_channels_that_are_none_are_told_how_one_is_named() -> None:
    (found,) = problems('[[rule]]\nname = "a"\n[[rule.step]]\ndo = "notify"\nto = []\n')
    assert found.message == "expected a list that is not empty, not []"
    assert found.hint == 'like to = ["ops"]'


@pytest.mark.parametrize("step", ["notify", ["notify"]])
def test_a_step_that_is_no_table_is_told_how_one_is_written(step: object) -> None:
    (found,) = problems(f'[[rule]]\nname = "a"\nstep = {step!r}'.replace("'", '"'))
    assert "[[rule.step]]" in found.hint


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"budget.node = {'1' * 5000}", "not valid TOML"),
        (f"budget.node = 0x{'f' * 5000}", "1000000"),
        (f'threshold = "{"9" * 5000} in 10m"', "no threshold"),
        (f'threshold = "1 in {"9" * 300}d"', "100 years"),
        (f'cooldown = "{"9" * 400}d"', "100 years"),
        ('match.severity = "< info"', "no severity"),
    ],
)
def test_numbers_that_nothing_could_bear_are_refused_and_do_no_harm(line: str, part: str) -> None:
    """A rule file must not be able to end the daemon, nor a decision."""
    (found,) = problems(f'[[rule]]\nname = "a"\n{line}\n[[rule.step]]\ndo = "notify"\n')
    assert part in found.message


def test_a_size_that_nothing_could_bear_is_refused() -> None:
    text = '[[rule]]\nname = "a"\n[[rule.step]]\ndo = "fsck"\nsalvage_max = "SIZET"\n'
    (found,) = problems(text.replace("SIZE", "9" * 400))
    assert "1 EiB" in found.message


def test_a_name_cannot_write_on_the_terminal() -> None:
    (found, *_) = problems('[[rule]]\nname = "a\\u001b[2J"\nmode = "no"\n')
    assert "\x1b" not in str(found)
