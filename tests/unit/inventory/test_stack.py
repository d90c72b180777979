"""Many loop devices are asked together, and an answer is for the attachment that was asked."""

from __future__ import annotations

from errno import EIO, ENXIO

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.stack import StackReader
from fswatchd.kernel import block, loop

LOOPS = [Devno(loop.LOOP_MAJOR, number) for number in range(20)]


def status(number: int, inode: int) -> loop.LoopStatus:
    return loop.LoopStatus(
        device=f"/dev/loop{number}",
        backing_devno=Devno(8, 1),
        backing_inode=inode,
        offset=0,
        flags=0,
    )


class Kernel:
    """Twenty loop devices; `exchanged` gets another image after all were asked together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exchanged: int | None = None
        self.silent: set[int] = set()
        self.failure: OSError = TimeoutError()
        self.together: list[int] = []
        self.alone: list[int] = []
        monkeypatch.setattr(
            block, "name_of", lambda devno: f"loop{devno.minor}" if devno in LOOPS else None
        )
        monkeypatch.setattr(block, "kind_of", lambda _: "loop")
        monkeypatch.setattr(block, "lower_devices", lambda _: ())
        monkeypatch.setattr(block, "disk_sequence", self.sequence)
        monkeypatch.setattr(loop, "statuses", self.statuses)
        monkeypatch.setattr(loop, "status", self.status)

    def sequence(self, devno: Devno) -> int:
        return 200 if devno.minor == self.exchanged and self.together else 100

    def statuses(self, names: list[str]) -> list[loop.LoopStatus]:
        numbers = [int(name.removeprefix("loop")) for name in names]
        self.together += numbers
        return [status(n, 1000 + n) for n in numbers if n not in self.silent]

    def status(self, device: str, _patience_s: float) -> loop.LoopStatus:
        number = int(device.removeprefix("/dev/loop"))
        self.alone.append(number)
        if number in self.silent:
            raise self.failure
        return status(number, 2000 + number)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def read(reader: StackReader) -> dict[int, int | None]:
    found = reader.read(LOOPS, {})
    return {devno.minor: found[devno].backing.image_inode for devno in LOOPS}


def test_all_that_are_new_are_asked_together_and_once(kernel: Kernel) -> None:
    reader = StackReader()
    for _ in range(2):
        assert read(reader) == {number: 1000 + number for number in range(20)}
    assert (sorted(kernel.together), kernel.alone) == (list(range(20)), [])


def test_an_answer_from_before_another_image_was_attached_is_not_believed(kernel: Kernel) -> None:
    kernel.exchanged = 7
    found = read(StackReader())
    assert found.pop(7) == 2007
    assert found == {number: 1000 + number for number in range(20) if number != 7}
    assert kernel.alone == [7]


def test_one_that_does_not_answer_holds_up_no_other(kernel: Kernel) -> None:
    kernel.silent = {3}
    found = read(StackReader())
    assert found.pop(3) is None
    assert len(found) == 19
    assert None not in found.values()


@pytest.mark.parametrize(
    ("failure", "kept"),
    [(TimeoutError(), True), (OSError(EIO, "I/O error"), True), (OSError(ENXIO, "none"), False)],
)
def test_what_was_known_of_an_attachment_holds_while_its_host_fails(
    kernel: Kernel, failure: OSError, *, kept: bool
) -> None:
    """However often everything is read anew meanwhile."""
    reader = StackReader()
    read(reader)
    kernel.silent, kernel.failure = set(range(20)), failure
    for _ in range(3):
        reader.forget()
        assert read(reader)[3] == (1003 if kept else None)
