"""What the kernel says of thin pools (thin-provisioning.rst, drivers/md/dm-thin.c)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel.devmapper import ThinPool, thin_pool

OPTIONS = "discard_passdown queue_if_no_space"


@pytest.mark.parametrize(
    ("status", "lacks", "broken"),
    [
        (f"0 41943040 thin-pool 4 245/4096 160/163840 - rw {OPTIONS} - 1024 ", "", ""),
        # As dmsetup prints it for several devices, and before Linux 4.0.
        (f"vg-pool-tpool: 0 409600 thin-pool 1 12/1024 3199/3200 - rw {OPTIONS}", "data", ""),
        (f"0 409600 thin-pool 1 1020/1024 10/3200 - rw {OPTIONS} - 256", "metadata", ""),
        (
            "0 8 thin-pool 1 2/9 3/4 - out_of_data_space no_discard_passdown error_if_no_space - 1",
            "data",
            "",
        ),
        (f"0 8 thin-pool 1 2/9 1/4 - ro {OPTIONS} needs_check 1", "", "needs a check"),
        (f"0 8 thin-pool 1 2/9 1/4 77 ro {OPTIONS} - 1", "", ""),
        ("0 8 thin-pool Fail", "", "failed"),
        ("0 8 thin-pool Error", "", "failed"),
    ],
)
def test_room_and_faults_are_told_apart(status: str, lacks: str, broken: str) -> None:
    found = thin_pool(status)
    assert found is not None
    assert lacks in found.lacks
    assert bool(lacks) == bool(found.lacks)
    assert broken in found.broken
    assert bool(broken) == bool(found.broken)
    assert found.readonly is (" ro " in status)


@pytest.mark.parametrize(
    "status",
    [
        "",
        "0 8 linear",
        "0 8 thin 1024 7",
        "0 8 thin-pool 1",
        "0 8 thin-pool 1 a/b c/d - rw",
        "No device",
    ],
)
def test_what_is_no_pool_is_none(status: str) -> None:
    assert thin_pool(status) is None


@given(st.text())
def test_no_text_raises_anything(text: str) -> None:
    for status in (text, f"0 8 thin-pool {text}"):
        assert isinstance(thin_pool(status), ThinPool | None)
