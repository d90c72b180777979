from __future__ import annotations

import pytest

from fswatchd import config
from fswatchd.errors import ConfigError


def test_everything_has_a_default() -> None:
    found = config.parse("", "x")
    assert found.daemon.mode == "observe"
    assert found.sources.fanotify == "auto"
    assert found.channel == {}


def test_the_contracts_example_is_right() -> None:
    found = config.parse(
        """
        [daemon]
        node = "hn1"
        mode = "approve"
        state_dir = "/var/lib/fswatchd"
        runtime_dir = "/run/fswatchd"
        rules = ["/usr/lib/fswatchd/rules.d", "/etc/fswatchd/rules.d"]
        ves = ["/etc/fswatchd/ve.d"]
        [sources]
        journal = false
        quota = true
        state = "auto"
        [channel.ops]
        kind = "webhook"
        url = "https://example.org/hook"
        secret_file = "/etc/fswatchd/ops.secret"
        """,
        "x",
    )
    assert found.daemon.node == "hn1"
    assert found.sources.journal is False


def test_an_unknown_key_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r'daemon\.mod: unknown key; did you mean "mode"'):
        config.parse('[daemon]\nmod = "auto"\n', "x")


def test_all_mistakes_are_named_at_once() -> None:
    text = '[daemon]\nmode = "wild"\nstate_dir = "relative"\n[channell.ops]\nkind = "webhook"\n'
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "x")
    message = str(caught.value)
    assert "daemon.mode" in message
    assert "daemon.state_dir" in message
    assert 'did you mean "channel"' in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[sources]\nfanotify = "yes"',
            """sources.fanotify: expected true, false or "auto", not 'yes'""",
        ),
        ("[sources]\njournal = 1", 'sources.journal: expected true, false or "auto", not 1'),
        ('[channel.ops]\nkind = "webhook"', 'channel.ops.url: "url" is missing'),
        (
            '[channel]\nkind = "webhook"',
            "channel.kind: expected a table, not 'webhook'; write [channel.ops] above its keys",
        ),
        ("daemon = 3", "daemon: expected a table, not 3; write [daemon] above its keys"),
        (
            '[channel.ops]\nkind = "webhok"\nurl = "https://h/"',
            """channel.ops.kind: expected "webhook", not 'webhok'; did you mean "webhook"?""",
        ),
        (
            '[channel.a]\nkind = "webhook"\nurl = "x"',
            """channel.a.url: expected an address, like "https://example.net/hook", not 'x'""",
        ),
        ('[daemon]\nnode = ""', "daemon.node: expected a text that is not empty, not ''"),
        (
            "[daemon]\ncanary = 3",
            'daemon.canary: expected a duration in quotes, like "30s" or "10m", not 3',
        ),
        (
            '[daemon]\ncanary = "5x"',
            """daemon.canary: '5x' is no duration; write it like "30s", "10m" or "1h30m\"""",
        ),
    ],
)
def test_a_mistake_is_one_line_in_the_words_of_an_admin(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "x.toml")
    assert caught.value.message == f"x.toml: {said}"


def test_a_source_is_switched_by_three_words() -> None:
    found = config.parse('[sources]\nkmsg = true\njournal = false\nquota = "auto"\n', "x")
    assert (found.sources.kmsg, found.sources.journal, found.sources.quota) == (True, False, "auto")


@pytest.mark.parametrize("text", ["[daemon", "daemon = 3", '[channel.x]\nkind = "webhook"'])
def test_what_is_wrong_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="x"):
        config.parse(text, "x")


def test_a_file_that_was_named_must_exist(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "missing.toml")


def test_a_secret_loses_the_line_break_and_must_not_be_empty(tmp_path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    assert config.read_secret(path) == b"s3cret"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        config.read_secret(path)


def test_a_number_that_nothing_could_bear_is_an_error_of_the_file() -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        config.parse(f"[repair]\nreserve_percent = {'1' * 5000}\n", "x.toml")
