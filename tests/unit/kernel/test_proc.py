from __future__ import annotations

import pytest

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
    assert read_virtuozzo_ve(status) == wanted
