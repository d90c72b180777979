"""docs/walkthrough-rules.md: its commands are run as they stand, and print what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import recorded
from fswatchd.rules import files
from tests.system.conftest import PROJECT, wait_until

_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_SCRIPT = "#!/bin/sh\nexec {python} -c '{code}' \"$@\"\n"
_CODE = (
    "import sys; sys.path.insert(0, {project}); "
    "from fswatchd.cli.main import main; sys.exit(main())"
)


class Admin:
    """Somebody at a shell of the node."""

    def __init__(self, daemon, work: Path) -> None:
        self._daemon, self._work = daemon, work
        self.incident = ""
        (work / "try").mkdir()
        (work / "bin").mkdir()
        program = work / "bin" / "fswatch"
        code = _CODE.format(project=f'"{PROJECT}"')
        program.write_text(_SCRIPT.format(python=sys.executable, code=code))
        program.chmod(0o755)

    def here(self, text: str) -> str:
        """A text with the paths of this test."""
        text = text.replace("/root/try", str(self._work / "try"))
        return text.replace("/etc/fswatchd/rules.d", str(self._work / "rules.d"))

    def types(self, commands: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", self.here(commands)],
            env={
                "PATH": f"{self._work}/bin:{os.environ['PATH']}",
                "FSWATCH_SOCKET": str(self._daemon.socket),
                "ID": self.incident,
                "TZ": os.environ["TZ"],
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def steps(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Commands and the lines that they must print; a file is a step of its own."""
    blocks = _BLOCK.findall(text)
    for (kind, content), (after, printed) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind in {"toml", "sh"}:
            yield kind, content, printed.splitlines() if after == "text" else []


def at_night() -> str:
    """A time zone in which it is between 1 and 2 o'clock now (POSIX counts to the west)."""
    ahead = (1 - time.gmtime().tm_hour) % 24
    return f"NIGHT{24 - ahead if ahead > 12 else -ahead}"


def repaired(daemon) -> dict | None:
    """The incident of now, not one of the week that is made up, when its repair is done."""
    found = [one for one in daemon.incidents("ve0") if not one["id"].startswith(recorded.DAY)]
    return found[0] if found and found[0]["state"] in {"verifying", "closed"} else None


def test_the_walk_through_does_what_it_says(daemon, make_ve, work, monkeypatch) -> None:
    monkeypatch.setenv("TZ", at_night())
    shipped = files.embedded_rules()
    rules, _ = files.load([shipped])
    state = work / "state"
    state.mkdir()
    recorded.fill(state / "fswatchd.db", rules, events=1200, incidents=120, ves=6)
    daemon.configure(mode="auto")
    subprocess.run(["cp", "-r", f"{shipped}/.", str(work / "rules.d")], check=True)
    ve = make_ve("ve0", labels={"tier": "gold"})
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known("ve0")
    admin = Admin(daemon, work)
    text = (PROJECT / "docs" / "walkthrough-rules.md").read_text(encoding="utf-8")
    for kind, content, printed in steps(text):
        if kind == "toml":
            (work / "try" / "10-ext4.toml").write_text(content)
            continue
        if "$ID" in content:
            ve.damage_directory()
            admin.incident = wait_until(lambda: repaired(daemon), 90, daemon.log())["id"]
        said = admin.types(content)
        for line in map(admin.here, printed):
            assert line in said, f"{content}\n{line!r} is not in\n{said}"
        if "replay" in content:
            # The same record gives the same bytes; the machine adds faults of its own to it.
            wait_until(lambda content=content: admin.types(content) == admin.types(content), 60)
        if content.startswith("cp "):
            wait_until(lambda: "gold" in admin.types("fswatch rules list"), 60)


def test_every_command_of_the_walk_through_has_its_output(request: pytest.FixtureRequest) -> None:
    del request
    text = (PROJECT / "docs" / "walkthrough-rules.md").read_text(encoding="utf-8")
    silent = [content for kind, content, printed in steps(text) if kind == "sh" and not printed]
    assert [command.split()[0] for command in silent] == ["cp"]
