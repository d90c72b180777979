"""A real systemd as PID 1: a container of systemd-nspawn that has the node's own /usr.

Its /etc and /var are empty and in memory, its units the shipped ones of Debian.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system.conftest import PROJECT, wait_until

# There is no udev in it.
_NODES = "import os; [os.mknod(f'/dev/loop{n}', 0o60600, os.makedev(7, n)) for n in range(1024)]"


class Booted:
    """A container that has booted."""

    def __init__(self, leader: int) -> None:
        self._inside = ("nsenter", "--target", str(leader), "--all", "--")

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """By a process inside; output and errors in one text."""
        return subprocess.run(
            [*self._inside, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def serve(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """The same as a service of its systemd."""
        service = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--")
        return self.run((*service, *argv))


@contextmanager
def booted(work: Path) -> Iterator[Booted]:
    """Boot one, and end it. The project is in it, and `work` as its /var/tmp."""
    command = [
        "systemd-nspawn",
        "--quiet",
        "--directory=/",
        "--volatile=yes",
        "--overlay=/usr::/usr",
        f"--machine={work.name}",
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--boot",
        "--console=pipe",
        *(f"--bind-ro={path}" for path in dict.fromkeys((PROJECT, Path(sys.prefix).resolve()))),
        f"--bind={work}:/var/tmp",
        "--capability=all",
        *(f"--bind={path}" for path in ("/dev/loop-control", "/dev/kmsg")),
        "--bind-ro=/etc/ld.so.cache",
        "systemd.unit=basic.target",
    ]
    with (work / "console").open("wb") as console:
        nspawn = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            # Its units have filters of calls, the container none of its own.
            env={**os.environ, "SYSTEMD_SECCOMP": "0"},
        )
    try:
        yield wait_until(lambda: _when_up(nspawn, work), 60, "systemd to boot")
    finally:
        nspawn.terminate()
        nspawn.wait()


def _when_up(nspawn: subprocess.Popen[bytes], work: Path) -> Booted | None:
    assert nspawn.poll() is None, (work / "console").read_text()
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
    for one in map(Booted, map(int, children)):
        said = one.run(("systemctl", "is-system-running")).stdout.strip()
        if said in {"running", "degraded"}:
            made = one.run(("/usr/bin/python3", "-c", _NODES))
            assert made.returncode == 0, made.stdout
            return one
    return None
