"""Thin pools beneath a filesystem, by what dmsetup says."""

from __future__ import annotations

from typing import Any

import pytest

from fswatchd import process
from fswatchd.cause import Layer, blame
from fswatchd.devno import Devno
from fswatchd.engine.substrate import Substrate
from fswatchd.inventory.model import BlockDevice
from fswatchd.kernel import block

POOL = BlockDevice(devno=Devno(253, 3), name="dm-3", kind="dm")
LAYER = Layer(kind="device", name="/dev/dm-3")
OPTIONS = "discard_passdown queue_if_no_space"


class Dmsetup:
    """Answers as dmsetup does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, output: str, *, uuid: str) -> None:
        self.output, self.code, self.timed_out = output, 0, False
        self.asked: list[tuple[str, ...]] = []
        monkeypatch.setattr(process, "run", self.run)
        monkeypatch.setattr(block, "attribute", lambda *_: uuid)

    async def run(self, argv: tuple[str, ...], **_: Any) -> process.Completed:
        self.asked.append(argv)
        return process.Completed(
            argv=argv,
            returncode=self.code,
            output=self.output,
            duration_s=0.0,
            timed_out=self.timed_out,
        )


def looked() -> Substrate:
    nothing: Any = None
    return Substrate(nothing, nothing, nothing)


async def test_a_pool_without_room_is_to_blame_for_want_of_space(monkeypatch) -> None:
    status = f"0 409600 thin-pool 1 12/1024 3199/3200 - rw {OPTIONS} - 256\n"
    dmsetup = Dmsetup(monkeypatch, status, uuid="LVM-abc-tpool")
    looks = looked()
    cause = blame([await looks._as_pool(POOL, LAYER)])
    assert cause is not None
    assert (cause.kind, cause.name) == ("space", "/dev/dm-3")
    assert dmsetup.asked == [("dmsetup", "status", "--noflush", "-j", "253", "-m", "3")]
    await looks._as_pool(POOL, LAYER)
    assert len(dmsetup.asked) == 1


async def test_a_pool_that_has_failed_is_to_blame_itself(monkeypatch) -> None:
    Dmsetup(monkeypatch, "0 409600 thin-pool Fail\n", uuid="")
    cause = blame([await looked()._as_pool(POOL, LAYER)])
    assert cause is not None
    assert cause.kind == "device"


@pytest.mark.parametrize(
    ("output", "code"), [(f"0 8 thin-pool 1 12/1024 10/3200 - rw {OPTIONS}", 0), ("", 1), ("x", 0)]
)
async def test_a_pool_with_room_and_no_answer_blame_nothing(
    monkeypatch, output: str, code: int
) -> None:
    dmsetup = Dmsetup(monkeypatch, output, uuid="LVM-abc-tpool")
    dmsetup.code = code
    assert blame([await looked()._as_pool(POOL, LAYER)]) is None


@pytest.mark.parametrize("uuid", ["LVM-abc", "CRYPT-LUKS2-x", "mpath-3600"])
async def test_what_can_be_no_pool_is_not_asked_about(monkeypatch, uuid: str) -> None:
    dmsetup = Dmsetup(monkeypatch, "", uuid=uuid)
    assert await looked()._as_pool(POOL, LAYER) == LAYER
    assert dmsetup.asked == []
