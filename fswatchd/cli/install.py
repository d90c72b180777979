"""`fswatch install`: what belongs to the program outside of Python, put in place and taken away.

The Debian package is made with it too. What was written is kept in a list with digests: a file that
an admin has changed since, or has made, is never overwritten and never removed, and a file of /etc
that an admin has removed does not come back. It starts and enables nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fswatchd import process
from fswatchd.errors import FswatchError
from fswatchd.exitcode import Exit
from fswatchd.rules import files

_RELOAD_SINCE = 254  # fswatchd.service.d/notify-reload.conf
_COMMAND_S = 60.0
_DIRECTORIES = ("etc/fswatchd/rules.d", "etc/fswatchd/ve.d")
_COMPLETIONS = {
    "bash": "share/bash-completion/completions/{}",
    "zsh": "share/zsh/site-functions/_{}",
    "fish": "share/fish/vendor_completions.d/{}.fish",
}
_PROGRAMS = ("fswatch", "fswatchctl")  # some systems have another tool called fswatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where things go: below `root`, with a prefix such as /usr/local; `program` is the daemon."""

    root: Path
    prefix: Path
    program: Path
    systemd: int

    @property
    def manifest(self) -> Path:
        """The list of what was written."""
        return self.root / "var/lib/fswatchd-install.json"


def run(
    *,
    root: Path,
    prefix: Path,
    program: Path | None,
    systemd: int | None,
    uninstall: bool,
    as_json: bool = False,
) -> int:
    """Install or uninstall, and say what was done; raises FswatchError."""
    layout = Layout(
        root=root,
        prefix=prefix.relative_to("/"),
        program=program or _beside(Path(sys.argv[0])),
        systemd=systemd if systemd is not None else _systemd_version(),
    )
    live = root == Path("/")
    if live and os.geteuid() != 0:
        raise FswatchError("not root: nothing was done", hint="or give --root DIR")
    try:
        if uninstall:
            if live:
                _call("systemctl", "disable", "--now", "fswatchd.service", "fswatchd.socket")
            story = _remove_all(layout)
        else:
            story = _write_all(layout)
        files_done = []
        for done, path in story:
            files_done.append({"what": done, "path": str(path)})
            if not as_json:
                print(f"{done:<10} {path}")
    except OSError as error:
        raise FswatchError(f"{error.filename or root}: {error.strerror}") from error
    warnings = list(_tell_systemd(layout, installed=not uninstall)) if live else []
    if as_json:
        print(json.dumps({"files": files_done, "warnings": warnings}))
        return Exit.OK
    for warning in warnings:
        print(f"warning:   {warning}")
    if live and not uninstall:
        print("next:      systemctl enable --now fswatchd, then fswatch doctor")
    return Exit.OK


def _beside(fswatch: Path) -> Path:
    program = fswatch.resolve().with_name("fswatchd")
    if not program.is_file():
        raise FswatchError(f"there is no {program}", hint="name the daemon: --program PATH")
    return program


def _files(layout: Layout) -> Iterator[tuple[Path, bytes]]:
    """Every file with its content, by its path below the root."""
    data, prefix = _data(), layout.prefix
    units = prefix / "lib/systemd/system"
    service = (data / "systemd/fswatchd.service").read_bytes()
    program = os.fsencode(f"ExecStart={layout.program}")
    yield units / "fswatchd.service", re.sub(rb"(?m)^ExecStart=.*$", lambda _: program, service)
    if layout.systemd >= _RELOAD_SINCE:
        name = "fswatchd.service.d/notify-reload.conf"
        yield units / name, (data / "systemd/notify-reload.conf").read_bytes()
    for name, place in (
        ("fswatchd.socket", "lib/systemd/system/fswatchd.socket"),
        ("fswatchd.sysusers", "lib/sysusers.d/fswatchd.conf"),
        ("fswatchd.tmpfiles", "lib/tmpfiles.d/fswatchd.conf"),
        ("fswatchd.rules", "lib/udev/rules.d/05-fswatchd.rules"),
        ("fswatchd.catalog", "lib/systemd/catalog/fswatchd.catalog"),
    ):
        yield prefix / place, (data / "systemd" / name).read_bytes()
    for page in sorted((data / "man").glob("*.[1-8]")):
        yield prefix / f"share/man/man{page.suffix[1:]}" / page.name, page.read_bytes()
    # Where the daemon looks for them, whatever the prefix.
    for rules in sorted(files.embedded_rules().glob("*.toml")):
        yield Path("usr/lib/fswatchd/rules.d") / rules.name, rules.read_bytes()
    yield Path("etc/fswatchd/fswatchd.toml"), (data / "fswatchd.toml").read_bytes()
    yield from _completions(prefix)


def _data() -> Path:
    inside = Path(__file__).parents[1] / "data"
    data = inside if inside.is_dir() else Path(__file__).parents[2] / "data"
    if not data.is_dir():
        raise FswatchError("this program came as a package, which has put everything in place")
    return data


def _completions(prefix: Path) -> Iterator[tuple[Path, bytes]]:
    import shtab

    from fswatchd.cli.main import parser

    for name in _PROGRAMS:
        tree = parser()
        tree.prog = name
        for shell, place in _COMPLETIONS.items():
            yield prefix / place.format(name), shtab.complete(tree, shell).encode()


def _write_all(layout: Layout) -> Iterator[tuple[str, Path]]:
    known = _read_manifest(layout)
    wanted = dict(_files(layout))
    for name in _DIRECTORIES:
        (layout.root / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    for place, content in wanted.items():
        path = layout.root / place
        digest, there = _digest(content), _digest_of(path)
        if there is None and str(place) in known and place.parts[0] == "etc":
            yield "left out", path  # an admin has removed it
            continue
        if there == digest:
            yield "unchanged", path
        elif there is not None and there != known.get(str(place)):
            yield "kept", path  # an admin has changed or made it
            continue
        else:
            _write(path, content)
            yield ("installed" if there is None else "updated"), path
        known[str(place)] = digest
    for name in sorted(set(known) - set(map(str, wanted))):  # of a former version
        yield from _remove(layout.root / name, known.pop(name))
    _write(layout.manifest, json.dumps(known, indent=1).encode() + b"\n")


def _remove_all(layout: Layout) -> Iterator[tuple[str, Path]]:
    for name, digest in sorted(_read_manifest(layout).items()):
        yield from _remove(layout.root / name, digest)
    for name in (*_DIRECTORIES, "etc/fswatchd", "usr/lib/fswatchd/rules.d", "usr/lib/fswatchd"):
        _remove_if_empty(layout.root / name)
    layout.manifest.unlink(missing_ok=True)


def _remove(path: Path, digest: str) -> Iterator[tuple[str, Path]]:
    there = _digest_of(path)
    if there is None:
        return
    if there != digest:
        yield "kept", path
        return
    path.unlink()
    if path.parent.name.endswith(".service.d"):
        _remove_if_empty(path.parent)
    yield "removed", path


def _remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.chmod(0o644)
    new.replace(path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: Path) -> str | None:
    """None where there is nothing; a link or a directory is like no content of ours."""
    if path.is_symlink() or path.is_dir():
        return "not a file"
    return _digest(path.read_bytes()) if path.exists() else None


def _read_manifest(layout: Layout) -> dict[str, str]:
    try:
        known = json.loads(layout.manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        hint = "remove it: what is in place then counts as yours"
        raise FswatchError(f"{layout.manifest}: {error}", hint=hint) from None
    return {str(name): str(digest) for name, digest in known.items()}


def _systemd_version() -> int:
    ended = _call("systemctl", "--version")
    found = re.match(r"systemd (\d+)", ended.output) if ended else None
    return int(found[1]) if found else 0


def _tell_systemd(layout: Layout, *, installed: bool) -> Iterator[str]:
    """What did not go well."""
    if installed:
        lib = layout.root / layout.prefix / "lib"
        for argv in (
            ("systemd-sysusers", str(lib / "sysusers.d/fswatchd.conf")),
            ("systemd-tmpfiles", "--create", str(lib / "tmpfiles.d/fswatchd.conf")),
        ):
            yield from _warning(_call(*argv))
    yield from _warning(_call("journalctl", "--update-catalog"))
    if Path("/run/systemd/system").is_dir():
        yield from _warning(_call("systemctl", "daemon-reload"))


def _warning(ended: process.Completed | None) -> Iterator[str]:
    if ended is not None and not ended.succeeded:
        yield ended.describe()


def _call(*argv: str) -> process.Completed | None:
    try:
        return asyncio.run(process.run(argv, timeout_s=_COMMAND_S))
    except process.ProcessError:
        return None
