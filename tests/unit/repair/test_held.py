"""An image is written and exchanged only while nothing else uses it, however it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import lease, loop
from fswatchd.repair import offline, scope, swap
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import Next, StepEnded
from tests.unit.repair.test_offline import TARGET


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"the volume")
    if lease.has_writer(str(path)) is None:
        pytest.skip(f"{tmp_path} is on a filesystem without leases")
    return ImageFile.at(str(path))


@pytest.fixture
def clone(tmp_path: Path) -> ImageFile:
    path = tmp_path / "ve101.raw.clone"
    path.write_bytes(b"the clone")
    return ImageFile.at(str(path))


@contextmanager
def opened(path: str, flags: int) -> Iterator[None]:
    fd = os.open(path, flags)
    try:
        yield
    finally:
        os.close(fd)


def test_who_writes_to_a_file_is_seen_and_who_reads_it_is_not(image: ImageFile) -> None:
    """No loop device, no mount: as a network block device, a virtual machine or an fsck has it."""
    assert lease.has_writer(image.path) is False
    with opened(image.path, os.O_RDONLY):
        assert lease.has_writer(image.path) is False
    with opened(image.path, os.O_RDWR):
        assert lease.has_writer(image.path) is True
    assert lease.has_writer(image.path) is False


def test_by_another_name_it_is_the_same_file(image: ImageFile, tmp_path: Path) -> None:
    link = tmp_path / "other-name"
    os.link(image.path, link)
    with opened(str(link), os.O_WRONLY):
        assert lease.has_writer(image.path) is True


def test_the_lease_is_given_back(image: ImageFile) -> None:
    """Else the next one who opens it would wait, and we would get a signal."""
    assert lease.has_writer(image.path) is False
    with opened(image.path, os.O_RDWR | os.O_NONBLOCK):
        pass


@pytest.mark.parametrize("who", ["image", "clone"])
def test_nothing_is_exchanged_while_somebody_writes_to_it(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, clone: ImageFile, who: str
) -> None:
    monkeypatch.setattr(swap, "_GOING_S", 0.0)
    path = {"image": image, "clone": clone}[who].path
    with opened(path, os.O_RDWR), pytest.raises(swap.SwapError, match="open for writing"):
        swap.exchange(image, clone)
    assert Path(image.path).read_bytes() == b"the volume"
    with opened(image.path, os.O_RDONLY):
        swap.exchange(image, clone)
    assert Path(image.path).read_bytes() == b"the clone"


def test_what_was_written_while_it_was_waited_for_is_not_put_aside(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, clone: ImageFile
) -> None:
    """Somebody has looked in once more, after the last look at what had changed."""
    stamp, real = image.stamp(), ImageFile.held_by

    def waits(file: ImageFile, patience_s: float = 0.0) -> str | None:
        Path(image.path).write_bytes(b"and acknowledged")
        return real(file, patience_s)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "held_by", waits)
        with pytest.raises(swap.StaleError):
            swap.exchange(image, clone, stamp)
    assert Path(image.path).read_bytes() == b"and acknowledged"
    swap.exchange(image, clone, image.stamp())
    assert Path(image.path).read_bytes() == b"the clone"


async def test_in_place_nothing_is_done_while_somebody_writes_to_it(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile
) -> None:
    monkeypatch.setattr(offline, "_GOING_S", 0.0)
    monkeypatch.setattr(loop, "attach", None)  # it must not come so far
    target = replace(TARGET, image=image)
    with opened(image.path, os.O_RDWR), pytest.raises(StepEnded, match="open for writing") as ended:
        await offline.Hold.take(target, "x1")
    assert ended.value.result.next is Next.OPERATOR
    assert os.listdir(image.directory) == [image.name]


def test_a_stopped_ve_whose_image_is_written_is_not_begun_with(image: ImageFile) -> None:
    scope._check_backing(None, image)
    with opened(image.path, os.O_RDWR), pytest.raises(StepEnded, match="open for writing"):
        scope._check_backing(None, image)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, TimeoutError])
def test_a_loop_device_that_cannot_be_asked_counts_as_attached(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile, error: type[OSError]
) -> None:
    """It has no node here, or hangs: that nothing is known of it does not say that it is free."""

    def status(_: str) -> loop.LoopStatus:
        raise error

    files = {"loop7": f"/elsewhere/{image.name}", "loop8": "/vz/another.raw", "loop9": None}
    monkeypatch.setattr(loop, "_status", status)
    monkeypatch.setattr(loop, "_names", lambda: list(files))
    monkeypatch.setattr(loop, "backing_file", files.get)
    assert image.loops() == ["/dev/loop7"]
    assert image.held_by() == f"{image.path} is attached to /dev/loop7"


def test_one_that_answers_is_believed(monkeypatch: pytest.MonkeyPatch, image: ImageFile) -> None:
    def status(device: str) -> loop.LoopStatus:
        inode = image.inode if device == "/dev/loop8" else 1
        return loop.LoopStatus(
            device=device, backing_devno=image.devno, backing_inode=inode, offset=0, flags=0
        )

    monkeypatch.setattr(loop, "_status", status)
    monkeypatch.setattr(loop, "_names", lambda: ["loop7", "loop8"])
    monkeypatch.setattr(loop, "backing_file", lambda _: f"/x/{image.name}")
    assert image.loops() == ["/dev/loop8"]
    assert loop.holders(Devno(0, 0), image.inode, image.name) == []


@pytest.mark.parametrize(
    ("mode", "trusted"), [(0o700, True), (0o755, True), (0o1777, True), (0o777, False)]
)
def test_where_others_can_exchange_a_file_no_clone_is_made(
    tmp_path: Path, mode: int, *, trusted: bool
) -> None:
    """They would put a link to another image where the clone is, and e2fsck would follow it."""
    directory = tmp_path / "others"
    below = directory / "below"
    below.mkdir(parents=True)
    path = below / "ve101.raw"
    path.write_bytes(b"the volume")
    directory.chmod(mode)
    if trusted:
        assert scope.image_file(str(path)).path == str(path)
    else:
        with pytest.raises(StepEnded, match=f"{directory} can be written by others"):
            scope.image_file(str(path))


def test_a_directory_of_another_user_is_nowhere_to_make_a_clone(
    monkeypatch: pytest.MonkeyPatch, image: ImageFile
) -> None:
    monkeypatch.setattr(scope.os, "geteuid", lambda: 12345)
    if os.geteuid() and os.stat(image.directory).st_uid:
        with pytest.raises(StepEnded, match="belongs to user"):
            scope.image_file(image.path)
    else:
        os.chown(image.directory, 1000, -1)
        with pytest.raises(StepEnded, match="belongs to user 1000"):
            scope.image_file(image.path)


@pytest.mark.parametrize("kind", ["hard link", "directory", "fifo"])
def test_what_is_no_file_with_one_name_is_not_taken(image: ImageFile, kind: str) -> None:
    path = f"{image.directory}/other"
    if kind == "hard link":
        os.link(image.path, path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        os.mkfifo(path)
    with pytest.raises(StepEnded, match=r"2 names|not a regular file"):
        scope.image_file(path)
