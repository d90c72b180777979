from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd.kernel import proc, pseudofile
from fswatchd.kernel.proc import read_virtuozzo_ve

# The lines around them, and their form, as fs/proc/array.c of vzkernel (OpenVZ/vzkernel) and of
# the kernel of OpenVZ 6 (2.6.32-042stab) print them.
VIRTUOZZO_7 = (
    "Name:\tsystemd\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4711\nNgid:\t0\nPid:\t4711\n"
    "PPid:\t4700\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t\n"
    "envID:\t043ec956-6fea-4c45-911c-18991d6ffa93\nVPid:\t1\nVmPeak:\t  191380 kB\n"
)
OPENVZ_6 = (
    "Name:\tinit\nState:\tS (sleeping)\nTgid:\t915\nPid:\t915\nPPid:\t1\nTracerPid:\t0\n"
    "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nUtrace:\t0\nFDSize:\t64\nGroups:\t\n"
    "envID:\t101\nVPid:\t1\nStopState:\t0\nVmPeak:\t   19292 kB\n"
)


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        (VIRTUOZZO_7, ("043ec956-6fea-4c45-911c-18991d6ffa93", 1)),
        (OPENVZ_6, ("101", 1)),
        (OPENVZ_6.replace("envID:\t101", "envID:\t0"), ("0", 1)),
        # A command's name has its newlines escaped, so that it makes no line of its own.
        (OPENVZ_6.replace("init\n", "x\\nenvID:\t102\n"), ("101", 1)),
        ("Name:\tinit\nPid:\t1\nNSpid:\t915\t1\n", None),
        ("envID:\t101\n", None),
        ("", None),
    ],
)
def test_which_container_a_process_is_in(status: str, wanted: tuple[str, int] | None) -> None:
    assert read_virtuozzo_ve(status.split("\n")) == wanted


@pytest.fixture
def comm() -> Iterator[Path]:
    """The command name of this process, given back afterwards."""
    path = Path("/proc/self/comm")
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c"])
def test_a_command_name_makes_no_line_of_its_own(comm: Path, end: str) -> None:
    """Else everybody's process could be root's, and in the container that it likes."""
    comm.write_bytes(f"x{end}Uid:\t7".encode())
    assert proc.user(os.getpid()) == os.getuid()
    assert proc.command_name(os.getpid()) == f"x{end}Uid:\t7"
    comm.write_bytes(f"x{end}envID:\t1".encode())
    assert proc.virtuozzo_ve(os.getpid()) is None


# A kernel lets the name of a cgroup have everything but a newline and a slash.
NAME = b"a\rb\x0bc\x0cd\x1ce\xc2\x85f\xe2\x80\xa8g\xff:1"


def test_a_cgroup_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"5:freezer:/" + NAME + b"\n1:name=systemd:/user\nnothing\n0::/" + NAME + b"\n"
    monkeypatch.setattr(pseudofile, "read", lambda *_: text)
    path = f"/{os.fsdecode(NAME)}"
    assert proc.cgroups(1) == {"freezer": path, "name=systemd": "/user", "": path}
