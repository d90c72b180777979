"""What a suite of Debian means for the package: asked by debian/rules and data/deb.sh.

suite.py bundle SUITE DIR    put what the suite lacks, or has too old, into DIR
suite.py depends SUITE       the substitution variable with what the suite has
suite.py systemd SUITE       the version of systemd
suite.py changelog SUITE REVISION DATE
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from fswatchd import __version__

HERE = Path(__file__).parent
# Debian's names, where python3-NAME is not it; None: not needed by what is installed.
NAMES: dict[str, str | None] = {"systemd-python": "python3-systemd", "shtab": None}


def suite(name: str) -> dict[str, Any]:
    """The table of one suite; ends the program where there is none."""
    known = tomllib.loads((HERE / "suites.toml").read_text(encoding="utf-8"))
    if name not in known:
        sys.exit(f'no suite "{name}" in debian/suites.toml, which has {", ".join(known)}')
    table: dict[str, Any] = known[name]
    return table


def requirements() -> list[Requirement]:
    """What the project needs when it runs."""
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    wanted = map(Requirement, tomllib.loads(text)["project"]["dependencies"])
    return [one for one in wanted if NAMES.get(one.name, "") is not None]


def split(name: str) -> tuple[list[Requirement], list[Requirement]]:
    """What the suite has as it is needed, and what has to come with the package."""
    has = suite(name)["packages"]
    enough = [one for one in requirements() if has.get(one.name, "0") in one.specifier]
    return enough, [one for one in requirements() if one not in enough]


def bundle(name: str, target: str) -> None:
    """By pip, for the Python of the suite; only wheels: nothing is compiled."""
    lacking = split(name)[1]
    if not lacking:
        return
    python = suite(name)["python"]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, "--no-compile"]
    argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    argv += [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28")]
    subprocess.run([*argv, *map(str, lacking)], check=True)


def depends(name: str) -> str:
    """Compiled parts of what comes with the package fit one version of Python only."""
    version = suite(name)["python"]
    major, minor = map(int, version.split("."))
    parts = [f"python3 (>= {version}~)", f"python3 (<< {major}.{minor + 1}~)"]
    for one in split(name)[0]:
        least = next(spec.version for spec in one.specifier if spec.operator == ">=")
        parts.append(f"{NAMES.get(one.name) or f'python3-{one.name}'} (>= {least})")
    return "fswatchd:Depends=" + ", ".join(parts)


def changelog(name: str, revision: str, date: str) -> str:
    """The suite is a part of the version: an upgrade of Debian brings the next package."""
    version = f"{__version__}-{revision}~deb{suite(name)['release']}"
    lines = ["", "  * See the history of the project.", "", f" -- {MAINTAINER}  {date}", ""]
    return "\n".join([f"fswatchd ({version}) {name}; urgency=medium", *lines])


MAINTAINER = "fswatchd developers <fswatchd@localhost>"


def main(argv: list[str]) -> None:
    """See the top of this file."""
    match argv:
        case ["bundle", name, target]:
            bundle(name, target)
        case ["depends", name]:
            print(depends(name))
        case ["systemd", name]:
            print(suite(name)["systemd"])
        case ["changelog", name, revision, date]:
            print(changelog(name, revision, date), end="")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
