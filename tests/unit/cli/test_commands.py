from __future__ import annotations

import json

import pytest

from fswatchd import client
from fswatchd.cli import policy_commands
from fswatchd.cli.main import main, parser
from fswatchd.client import Client
from fswatchd.exitcode import Exit


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["status", "--nonsense"], ["rules"], ["why"]])
def test_wrong_usage_is_64(argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 64
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["freeze", "ve101", "--for", "soon"],
        ["disarm", "--node", "--reason", "x", "--for", "2"],
        ["mute", "abcde", "--for", "1y"],
        ["rules", "replay", "--since", "yesterday"],
        ["drill", "--size", "large"],
        ["events", "--since", "-5"],
        ["events", "--since", "99999999999999999999"],
    ],
)
def test_what_is_no_time_size_or_cursor_is_64_without_a_daemon(argv, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--socket", str(tmp_path / "none"), *argv])
    assert caught.value.code == 64
    assert argv[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["disarm", "--node", "--reason", "x", "--for", "1h30m"],
        ["arm", "--node", "--reason", "x"],
        ["approve", "abcde", "--reason", "x"],
        ["events", "--since", "0"],
        ["mute", "abcde", "--for", "1d"],
    ],
)
def test_what_is_right_is_taken(argv) -> None:
    assert parser().parse_args(argv).command == argv[0]


@pytest.mark.parametrize(
    ("words", "whom"),
    [
        ([], {"target": None, "label": None}),
        (["--node"], {"target": None, "label": None}),
        (["ve101"], {"target": "ve101", "label": None}),
        (["--label", "a=b"], {"target": None, "label": "a=b"}),
    ],
)
def test_who_is_disarmed_is_the_node_where_nobody_is_named(words: list[str], whom: dict) -> None:
    for command in ("arm", "disarm"):
        arguments = parser().parse_args([command, *words, "--reason", "x"])
        assert policy_commands._whom(arguments) == whom
    with pytest.raises(SystemExit) as caught:
        policy_commands._whom(parser().parse_args(["arm", "ve101", "--node"]))
    assert caught.value.code == 64


def test_classify_needs_no_daemon(tmp_path, capsys) -> None:
    path = tmp_path / "log"
    path.write_text(
        "[ 1.0] EXT4-fs error (device loop0): ext4_lookup:1: inode #2: comm x: deleted inode\n"
        "Jul 1 10:00:00 host sshd[1]: hello\n"
        "[ 2.0] EXT4-fs (sda1): re-mounted. Opts: errors=remount-ro\n"
    )
    assert main(["classify", "--json", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {
        "n": 1, "problem": True, "class": "corruption", "severity": "critical",
        "fstype": "ext4", "device": "loop0", "errno": 117,
    }  # fmt: skip
    assert [line["problem"] for line in lines] == [True, False, False]
    assert main(["classify", "--problems", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "log", [b"", b"\n", b"x", b"x\n\ny", b"\xff\0\r\nEXT4-fs (a): mount failed"]
)
def test_classify_gives_every_line_a_row(log: bytes, tmp_path, capsys) -> None:
    path = tmp_path / "log"
    path.write_bytes(log)
    assert main(["classify", "--json", str(path)]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["n"] for row in rows] == list(range(1, len(log.splitlines()) + 1))
    assert [row["n"] for row in rows if row["problem"]] == [2] * (b"mount failed" in log)


def test_classify_of_a_file_that_is_not_there_is_65(capsys) -> None:
    assert main(["classify", "/nonexistent"]) == 65
    assert "/nonexistent" in capsys.readouterr().err


def test_rules_check_reports_everything_and_ends_with_65(tmp_path, capsys) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[[rule]]\nname = "r"\nmod = "auto"\nthreshold = 1\n[[rule.step]]\ndo = "fsk"\n'
    )
    assert main(["rules", "check", "--json", str(path)]) == 65
    found = json.loads(capsys.readouterr().out)
    assert [(e["rule"], e["key"]) for e in found["errors"]] == [
        ("r", "threshold"),
        ("r", "step[1].do"),
        ("r", "mod"),
    ] or len(found["errors"]) == 3
    path.write_text('[[rule]]\nname = "r"\n[[rule.step]]\ndo = "fsck"\n')
    assert main(["rules", "check", str(tmp_path)]) == 0


def test_the_cli_does_not_load_the_daemons_libraries() -> None:
    import sys

    before = set(sys.modules)
    for name in ("fswatchd.cli.main", "fswatchd.cli.commands", "fswatchd.client"):
        assert name in before
    source = sys.modules["fswatchd.cli.commands"].__dict__
    assert "aiohttp" not in source


@pytest.mark.parametrize(
    ("answer", "code"),
    [(403, 2), (404, 64), (409, 1), (422, 1), (500, 2)],
)
def test_what_the_daemon_refuses_ends_as_fswatch_1_says(
    answer: int, code: int, monkeypatch, capsys
) -> None:
    def post(*_: object) -> None:
        raise client._refused(answer, b'{"error": "no"}')

    monkeypatch.setattr(Client, "post", post)
    assert main(["approve", "abcde"]) == code
    assert "fswatch: no" in capsys.readouterr().err


def test_an_interrupted_command_ends_with_130(monkeypatch) -> None:
    def get(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "get_at_once", get)
    assert main(["status"]) == 130


@pytest.mark.parametrize(("curable", "code"), [(True, 0), (False, 2)])
def test_a_preview_of_what_no_repair_cures_is_critical(
    curable: bool, code: int, monkeypatch, capsys
) -> None:
    document = {
        "ve": "lxc:a", "found": "1 error", "would_do": "nothing", "seconds": 1, "output": "",
        "dropped_files": [], "unnamed_files": [], "named_files": [], "curable": curable,
    }  # fmt: skip
    monkeypatch.setattr(Client, "post", lambda *_: document)
    assert main(["repair", "ve101", "--dry-run"]) == code
    assert "a repair would do: nothing" in capsys.readouterr().out


INCIDENT = {
    "id": "20261121-abcde", "state": "open", "outcome": None, "muted": None, "class": "corruption",
    "confirmed": True, "severity": "critical", "ves": ["lxc:a"], "filesystem": {"device": "loop3"},
    "sources": ["kmsg"], "opened": None, "cause": None, "consequences": [], "part_of": None,
    "summary": "It is damaged.", "stack_lines": [], "steps": [], "acknowledged_by": "root",
}  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "became", "said"),
    [
        ([], {}, "open: noted that root has seen it, no more"),
        (
            [],
            {"state": "closed", "outcome": "dismissed"},
            "closed, dismissed: rules may act again where it held them back",
        ),
        (
            ["--recovered"],
            {"state": "closed", "outcome": "recovered"},
            "closed, recovered: it is well again",
        ),
        (
            ["--recovered"],
            {},
            "open: what its device has reported counts no more, and it is decided about anew",
        ),
    ],
)
def test_ack_says_what_came_of_it(argv, became: dict, said: str, monkeypatch, capsys) -> None:
    asked = []

    def post(_: object, path: str, body: dict) -> dict:
        asked.append((path, body))
        return INCIDENT | became

    monkeypatch.setattr(Client, "post", post)
    assert main(["ack", "abcde", "--reason", "seen", *argv]) == 0
    assert capsys.readouterr().out == f"20261121-abcde: {said}\n"
    body = {"reason": "seen", "recovered": bool(argv)}
    assert asked == [("/v1/incidents/abcde/ack", body)]
    assert main(["approve", "abcde"]) == 0
    assert capsys.readouterr().out.startswith(f"20261121-abcde: {became.get('state', 'open')}\n")


@pytest.mark.parametrize("by", ["root", None])
def test_an_incident_shows_who_has_acknowledged_it(by: str | None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Client, "get_at_once", lambda *_: INCIDENT | {"acknowledged_by": by})
    assert main(["incident", "abcde"]) == 0
    assert ("Acknowledged by root\n" in capsys.readouterr().out) is (by is not None)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_log_that_cannot_be_read_is_a_wrong_file(name: str, tmp_path, capsys) -> None:
    assert main(["classify", str(tmp_path / name), "--json"]) == Exit.DATA
    assert json.loads(capsys.readouterr().out)["code"] == "FSW-FILE"


def test_a_log_of_nothing_is_none(tmp_path, capsys) -> None:
    (tmp_path / "log").write_text("")
    assert main(["classify", str(tmp_path / "log")]) == Exit.OK
    assert capsys.readouterr().out == ""


def test_a_drill_that_is_refused_says_so_in_json_too(capsys, monkeypatch) -> None:
    assert main(["drill", "--fault", "nonsense", "--json"]) == Exit.USAGE
    said = json.loads(capsys.readouterr().out)
    assert said["code"] == "FSW-UNKNOWN-FAULT"
    assert "dir-block" in said["hint"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["drill", "--json"]) == Exit.CRITICAL
    assert "root" in json.loads(capsys.readouterr().out)["error"]
