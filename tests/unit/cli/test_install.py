"""`fswatch install` below a directory: what is the admin's stays the admin's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fswatchd import config
from fswatchd.cli.install import run
from fswatchd.cli.main import main
from fswatchd.errors import FswatchError

CONFIG = Path("etc/fswatchd/fswatchd.toml")
SERVICE = Path("usr/local/lib/systemd/system/fswatchd.service")


def install(root: Path, *, uninstall: bool = False, systemd: int = 257) -> int:
    return run(
        root=root,
        prefix=Path("/usr/local"),
        program=Path("/opt/venv/bin/fswatchd"),
        systemd=systemd,
        uninstall=uninstall,
    )


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_everything_is_put_in_place_once(tmp_path, capsys) -> None:
    assert install(tmp_path) == 0
    first = tree(tmp_path)
    assert "ExecStart=/opt/venv/bin/fswatchd\n" in (tmp_path / SERVICE).read_text()
    for name in (
        "usr/local/lib/systemd/system/fswatchd.socket",
        "usr/local/lib/systemd/system/fswatchd.service.d/notify-reload.conf",
        "usr/local/lib/sysusers.d/fswatchd.conf",
        "usr/local/lib/tmpfiles.d/fswatchd.conf",
        "usr/local/lib/udev/rules.d/05-fswatchd.rules",
        "usr/local/lib/systemd/catalog/fswatchd.catalog",
        "usr/local/share/man/man5/fswatchd.rules.5",
        "usr/local/share/man/man8/fswatchd.8",
        "usr/local/share/bash-completion/completions/fswatch",
        "usr/local/share/zsh/site-functions/_fswatchctl",
        "usr/local/share/fish/vendor_completions.d/fswatch.fish",
        "usr/lib/fswatchd/rules.d/10-ext4.toml",
    ):
        assert name in first, name
    assert "next:" not in capsys.readouterr().out, "there is nothing here to be started"
    assert install(tmp_path) == 0
    assert tree(tmp_path) == first
    said = capsys.readouterr().out
    assert "installed" not in said
    assert "updated" not in said


def test_the_configuration_that_is_installed_is_the_defaults(tmp_path) -> None:
    install(tmp_path)
    text = (tmp_path / CONFIG).read_text()
    assert config.parse(text, "fswatchd.toml") == config.Config()


def test_an_older_systemd_gets_no_key_that_it_does_not_know(tmp_path) -> None:
    install(tmp_path, systemd=252)
    assert not list(tmp_path.rglob("notify-reload.conf"))
    assert "Type=notify\n" in (tmp_path / SERVICE).read_text()
    install(tmp_path, systemd=257)
    install(tmp_path, systemd=252)
    assert not list(tmp_path.rglob("notify-reload.conf"))


@pytest.mark.parametrize("uninstall", [False, True])
@pytest.mark.parametrize("file", [CONFIG, SERVICE])
def test_a_changed_file_is_kept(tmp_path, capsys, file: Path, uninstall: bool) -> None:
    install(tmp_path)
    (tmp_path / file).write_text("# mine\n")
    install(tmp_path, uninstall=uninstall)
    assert (tmp_path / file).read_text() == "# mine\n"
    assert f"kept       {tmp_path / file}" in capsys.readouterr().out


def test_an_unchanged_file_of_a_former_version_is_updated(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("fswatchd.cli.install._PROGRAMS", ("fswatch", "fswatch-of-old"))
    run(
        root=tmp_path,
        prefix=Path("/usr/local"),
        program=Path("/old/fswatchd"),
        systemd=257,
        uninstall=False,
    )
    monkeypatch.undo()
    install(tmp_path)
    assert "ExecStart=/opt/venv/bin/fswatchd\n" in (tmp_path / SERVICE).read_text()
    assert f"updated    {tmp_path / SERVICE}" in capsys.readouterr().out
    assert not [name for name in tree(tmp_path) if "fswatch-of-old" in name]


def test_on_the_node_itself_the_next_step_is_told(monkeypatch, capsys) -> None:
    monkeypatch.setattr("fswatchd.cli.install.os.geteuid", lambda: 0)
    monkeypatch.setattr("fswatchd.cli.install._write_all", lambda _: iter(()))
    monkeypatch.setattr("fswatchd.cli.install._tell_systemd", lambda *_, **__: iter(()))
    assert install(Path("/")) == 0
    said = capsys.readouterr().out
    assert said == "next:      systemctl enable --now fswatchd, then fswatch doctor\n"


def test_a_configuration_that_was_removed_stays_away(tmp_path) -> None:
    install(tmp_path)
    (tmp_path / CONFIG).unlink()
    install(tmp_path)
    assert not (tmp_path / CONFIG).exists()


def test_a_file_of_the_admins_own_is_not_taken_for_ours(tmp_path) -> None:
    (tmp_path / CONFIG).parent.mkdir(parents=True)
    (tmp_path / CONFIG).write_text("# mine from the start\n")
    install(tmp_path)
    install(tmp_path, uninstall=True)
    assert list(tree(tmp_path)) == [str(CONFIG)]


def test_a_link_is_not_written_through(tmp_path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    path = tmp_path / "root" / SERVICE
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    install(tmp_path / "root")
    install(tmp_path / "root", uninstall=True)
    assert target.read_text() == "data"
    assert path.is_symlink()


def test_uninstall_leaves_nothing(tmp_path) -> None:
    install(tmp_path)
    install(tmp_path, uninstall=True)
    assert tree(tmp_path) == {}
    assert not (tmp_path / "etc/fswatchd").exists()


def test_a_unit_never_names_a_daemon_that_is_not_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "fswatch")])
    arguments: Any = {"root": tmp_path / "root", "prefix": Path("/usr/local"), "systemd": 257}
    with pytest.raises(FswatchError, match="there is no"):
        run(**arguments, program=None, uninstall=False)
    assert not (tmp_path / "root").exists()
    (tmp_path / "fswatchd").touch()
    run(**arguments, program=None, uninstall=False)
    assert f"ExecStart={tmp_path}/fswatchd\n" in (tmp_path / "root" / SERVICE).read_text()


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/lib").write_text("in the way")
    with pytest.raises(FswatchError, match="usr/lib/fswatchd"):
        install(tmp_path)


def test_programs_get_one_document_of_what_was_done(tmp_path, capsys) -> None:
    program = str(tmp_path / "fswatchd")
    argv = ["install", "--root", str(tmp_path), "--program", program, "--systemd", "257", "--json"]
    for argv_more, what in (([], "installed"), ([], "unchanged"), (["--uninstall"], "removed")):
        assert main([*argv, *argv_more]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["warnings"] == []
        assert {one["what"] for one in document["files"]} == {what}
        assert str(tmp_path / SERVICE) in {one["path"] for one in document["files"]}
