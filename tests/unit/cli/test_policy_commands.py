"""`rules list|test|replay`, `explain`: what needs no daemon, and what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fswatchd import config, views
from fswatchd.cli.main import main
from fswatchd.client import Client, ClientError
from fswatchd.events import EventClass
from fswatchd.exitcode import Exit
from fswatchd.store.store import StoredEvent
from tests.unit.builders import NOW_NS, event

NIGHT = """
[[rule]]
name = "gold"
match.class = "corruption"
match.fstype = "ext4"
match.label.tier = "gold"
mode = "auto"
[[rule.step]]
do = "fsck"
[[rule]]
name = "ask"
match.fstype = "ext4"
mode = "approve"
[[rule.step]]
do = "fsck"
[[rule.step]]
do = "notify"
"""


@pytest.fixture(autouse=True)
def _no_daemon(monkeypatch) -> None:
    def refuse(self: Client, *_: object, **__: object) -> None:
        raise ClientError("cannot reach the daemon", "", Exit.UNKNOWN)

    for name in ("get", "post"):
        monkeypatch.setattr(Client, name, refuse)
    monkeypatch.setattr(config, "DEFAULT_PATH", Path("/nonexistent"))


TELL_ALL = """
[[rule]]
name = "all"
mode = "auto"
[[rule.step]]
do = "notify"
to = ["ops"]
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    directory = tmp_path / "rules.d"
    directory.mkdir()
    (directory / "50-night.toml").write_text(NIGHT)
    return directory


def run(capsys, *argv: object) -> tuple[int, Any]:
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_hypothetical_event_is_decided_about_without_a_daemon(rules, tmp_path, capsys) -> None:
    file = tmp_path / "event.json"
    gold = {"id": "lxc:ve101", "labels": {"tier": "gold"}}
    for ves, rule in (([gold], "gold"), (["lxc:ve101"], "ask")):
        file.write_text(json.dumps({"class": "corruption", "fstype": "ext4", "ves": ves}))
        code, found = run(capsys, "rules", "test", "--event", file, "--rules", rules)
        assert (code, found["state"], found["mode"]) == (0, "files", "observe")
        assert found["decision"]["rule"] == rule
        stopped = found["decision"]["answers"][-1]
        assert (stopped["guard"], stopped["code"]) == ("mode", "FSW-GUARD-MODE")
    assert main(["rules", "test", "--event", str(file), "--rules", str(rules)]) == 0
    text = capsys.readouterr().out
    assert "no daemon" in text
    assert "[FSW-GUARD-MODE]" in text
    assert "nothing was done" in text


@pytest.mark.parametrize("klass", [one for one in EventClass if not one.is_problem])
def test_what_is_no_problem_by_itself_is_told_to_nobody(klass, tmp_path, capsys) -> None:
    (tmp_path / "all.toml").write_text(TELL_ALL)
    file = tmp_path / "event.json"
    file.write_text(json.dumps({"class": klass, "ves": ["lxc:ve101"]}))
    code, found = run(capsys, "rules", "test", "--event", file, "--rules", tmp_path)
    decision = found["decision"]
    assert (code, decision["verdict"], decision["rule"]) == (0, "none", None)
    assert decision["channels"] == []
    assert "opens no incident by itself" in decision["answers"][-1]["text"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"class": "corruption", "fs": "ext4"}', '{"class": "x"}', b"\xff", None]
)
def test_a_file_that_is_no_event_is_65(content, rules, tmp_path, capsys) -> None:
    file = tmp_path / "event.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    code, found = run(capsys, "rules", "test", "--event", file, "--rules", rules)
    assert (code, found["code"]) == (65, "FSW-EVENT-FILE")
    assert "event.json" in found["error"]


def test_rules_with_mistakes_decide_nothing(rules, tmp_path, capsys) -> None:
    (tmp_path / "event.json").write_text('{"class": "corruption"}')
    (rules / "60.toml").write_text("[[rule]]\n")
    argv = ("rules", "test", "--event", tmp_path / "event.json", "--rules", rules)
    code, found = run(capsys, *argv)
    assert (code, found["code"]) == (65, "FSW-RULE")
    assert main(["rules", "list", "--rules", str(tmp_path / "nowhere")]) == 65


def test_rules_are_listed_without_counts_where_nobody_counts(rules, capsys) -> None:
    code, found = run(capsys, "rules", "list", "--rules", rules)
    assert (code, found["state"]) == (0, "files")
    assert [(rule["name"], rule["mode"], rule["hits"]) for rule in found["rules"]] == [
        ("gold", "auto", None),
        ("ask", "approve", None),
    ]


@pytest.mark.parametrize(
    ("read", "code"),
    [(None, "FSW-RULE-NONE"), ("2026-11-21T00:00:00Z", "FSW-RULE-LAST-GOOD")],
)
def test_whether_any_rules_are_in_force_is_listed(read, code, capsys, monkeypatch) -> None:
    document = {"mode": "auto", "problems": ["a mistake"], "read": read, "rules": []}
    monkeypatch.setattr(Client, "get", lambda *_: document)
    assert main(["rules", "list"]) == 0
    assert capsys.readouterr().out == f"not in force [{code}]: a mistake\n"


def recorded(tmp_path: Path) -> Path:
    lines = []
    for number in range(10):
        one = event(time_ns=NOW_NS + number * 86400 * 10**9)
        stored = StoredEvent(
            cursor=number + 1, event=one, ves=("lxc:ve101",), incident_id=f"20261121-{number:05}"
        )
        lines.append(json.dumps(views.stored_event(stored)))
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join([*lines, json.dumps(views.gap(3, 4, None, "retention")), ""]))
    return path


def test_a_replay_of_a_file_is_the_same_each_time(rules, tmp_path, capsys) -> None:
    argv = ["rules", "replay", "--json", "--mode", "auto"]
    argv += ["--events", str(recorded(tmp_path)), "--rules", str(rules)]
    assert main([*argv, "--since", "3d"]) == 0
    first = capsys.readouterr().out
    assert main([*argv, "--since", "3d"]) == 0
    assert capsys.readouterr().out == first
    found = json.loads(first)
    # Three days back from the newest event, whenever it is asked.
    assert (found["events"], found["incidents"], found["assumed"]) == (4, 4, 4)
    assert found["totals"] == {"recorded": {"not recorded": 4}, "replayed": {"wait": 4}}
    assert main([*argv, "--since", "1w"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 8


@pytest.mark.parametrize("line", ["nonsense", "[]", "3", '{"class": "corruption"}'])
def test_a_line_that_is_no_event_is_65(line, rules, tmp_path, capsys) -> None:
    path = recorded(tmp_path)
    path.write_text(f"{path.read_text()}{line}\n")
    code, found = run(capsys, "rules", "replay", "--events", path, "--rules", rules)
    assert (code, found["code"]) == (65, "FSW-EVENT-FILE")
    assert "line 12" in found["error"]


def test_without_a_daemon_there_is_no_record(rules, capsys) -> None:
    assert main(["rules", "replay", "--rules", str(rules)]) == 3
    assert "[FSW-DAEMON]" in capsys.readouterr().err


def test_warnings_of_a_check_do_not_change_its_exit_status(rules, capsys) -> None:
    (rules / "60.toml").write_text(
        '[[rule]]\nname = "late"\nmatch.fstype = "ext4"\n[[rule.step]]\ndo = "notify"\n'
    )
    code, found = run(capsys, "rules", "check", rules)
    assert (code, found["ok"], found["errors"]) == (0, True, [])
    (warning,) = found["warnings"]
    assert (warning["rule"], warning["code"]) == ("late", "FSW-RULE-UNREACHABLE")


def test_rules_that_cannot_be_read_are_65_also_without_a_daemon(tmp_path, capsys) -> None:
    code, found = run(capsys, "rules", "replay", "--rules", tmp_path / "none")
    assert (code, found["code"]) == (65, "FSW-RULE")


def test_for_root_a_file_that_the_daemon_refuses_is_an_error(rules, capsys, monkeypatch) -> None:
    for file in rules.iterdir():
        file.chmod(0o666)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    code, found = run(capsys, "rules", "check", rules)
    assert (code, found["ok"]) == (65, False)
    assert {one["code"] for one in found["errors"]} == {"FSW-RULE-FILE"}
    assert len(found["errors"]) == len(list(rules.iterdir()))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, found = run(capsys, "rules", "check", rules)
    assert (code, found["errors"], found["warnings"]) == (0, [], [])


MINE = '[[rule]]\nname = "mine"\nmatch.fstype = "xfs"\n[[rule.step]]\ndo = "fsck"\n'


@pytest.fixture
def tried(rules, tmp_path) -> Path:
    """A directory whose only file has the name, and the rules, of one that is in force."""
    directory = tmp_path / "try"
    directory.mkdir()
    (directory / "50-night.toml").write_text(NIGHT + MINE)
    return directory


def test_directories_are_checked_together_as_the_daemon_reads_them(rules, tried, capsys) -> None:
    code, found = run(capsys, "rules", "check", rules, tried)
    assert (code, found["errors"], found["rules"]) == (0, [], 3)
    # In this order the files of the first are the ones that are replaced.
    code, found = run(capsys, "rules", "check", tried, rules)
    assert (code, found["errors"], found["rules"]) == (0, [], 2)
    (tried / "50-night.toml").rename(tried / "60-night.toml")
    code, found = run(capsys, "rules", "check", rules, tried)
    assert [(one["rule"], one["key"]) for one in found["errors"]] == [
        ("gold", "name"),
        ("ask", "name"),
    ]


def test_a_file_that_is_named_is_checked_in_the_place_of_one_of_its_name(
    rules, tried, capsys
) -> None:
    file = tried / "50-night.toml"
    for paths in ((file,), (rules, file), (file, rules)):
        code, found = run(capsys, "rules", "check", *paths)
        assert (code, found["errors"], found["rules"]) == (0, [], 3)
    (tried / "60-more.toml").write_text(MINE)
    code, found = run(capsys, "rules", "check", tried / "60-more.toml", file)
    (problem,) = found["errors"]
    # They are read in name order, however they are given.
    assert (code, problem["file"], problem["key"]) == (65, str(tried / "60-more.toml"), "name")
    code, found = run(capsys, "rules", "check", rules, tried / "nowhere.toml")
    assert (code, [one["code"] for one in found["errors"]]) == (65, ["FSW-RULE-FILE"])


def test_what_will_be_in_force_is_checked_by_the_directories_that_the_daemon_reads(
    tried, capsys
) -> None:
    """Also where the shipped rules are still inside the program, and no rules are in /etc."""
    default = config.DaemonTable().rules
    code, found = run(capsys, "rules", "check", *default, tried)
    _, alone = run(capsys, "rules", "check", *default)
    assert (code, found["errors"], found["rules"]) == (0, [], alone["rules"] + 3)


def test_rules_of_several_directories_are_tried_together(rules, tried, tmp_path, capsys) -> None:
    both = ("--rules", rules, "--rules", tried)
    _, found = run(capsys, "rules", "list", *both)
    listed = [(rule["name"], rule["file"]) for rule in found["rules"]]
    assert listed == [(name, str(tried / "50-night.toml")) for name in ("gold", "ask", "mine")]
    (rules / "10-xfs.toml").write_text(MINE.replace("mine", "first"))
    event_file = tmp_path / "event.json"
    event_file.write_text('{"class": "corruption", "fstype": "xfs", "ves": ["lxc:a"]}')
    _, found = run(capsys, "rules", "test", "--event", event_file, *both)
    assert (found["decision"]["rule"], found["rules"]) == ("first", f"{rules}, {tried}")
    argv = ("rules", "replay", "--events", recorded(tmp_path), "--mode", "auto", *both)
    _, found = run(capsys, *argv)
    assert found["rules"] == [str(rules), str(tried)]


def test_a_code_is_explained(capsys) -> None:
    code, found = run(capsys, "explain", "fsw-guard-scope")
    assert (code, found["code"]) == (0, "FSW-GUARD-SCOPE")
    assert found["means"]
    assert found["do"]
    code, every = run(capsys, "explain")
    assert len(every) > 50
    code, found = run(capsys, "explain", "FSW-NONSENSE")
    assert (code, found["code"]) == (64, "FSW-UNKNOWN-CODE")


def test_on_a_node_that_only_watches_what_would_have_been_done_is_shown(
    rules, tmp_path, capsys, monkeypatch
) -> None:
    (tmp_path / "fswatchd.toml").write_text('[daemon]\nmode = "shadow"\n')
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "fswatchd.toml")
    asked = tmp_path / "event.json"
    asked.write_text('{"class": "corruption", "fstype": "ext4", "ves": ["lxc:a"]}')
    code, document = run(capsys, "rules", "test", "--event", asked, "--rules", rules)
    (shadow,) = document["decision"]["shadows"]
    assert (code, document["decision"]["verdict"]) == (0, "notify")
    assert (shadow["rule"], shadow["verdict"]) == ("ask", "wait")
    main(["rules", "test", "--event", str(asked), "--rules", str(rules)])
    assert "shadow     ask would have waited" in capsys.readouterr().out
