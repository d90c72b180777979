"""A clone that tools have worked on becomes one of what the image is now, and of nothing else."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.kernel import extents, fs
from fswatchd.repair import clone
from fswatchd.repair.images import Images
from fswatchd.repair.kept_preview import KeptPreview
from fswatchd.repair.progress import OnProgress
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings, refuse
from tests.system.conftest import make_host

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture(params=["xfs", "btrfs"])
def image(work: Path, request: pytest.FixtureRequest) -> ImageFile:
    path = make_host(work, request.param) / "ve101.img"
    path.write_bytes(os.urandom(SIZE))
    subprocess.run(["fallocate", "-p", "-o", "4MiB", "-l", "4MiB", path], check=True)
    return ImageFile.at(str(path))


@pytest.fixture
def earlier(image: ImageFile) -> ImageFile:
    """A clone of the image as it was."""
    return asyncio.run(clone.share(image, f"{image.path}.fswatchd-preview-1")).file


def path_of(image: ImageFile) -> str:
    return clone.clone_path(image, "1", "clone")


def bytes_of(path: str) -> bytes:
    return Path(path).read_bytes()


def scribble(path: str, rng: random.Random, *, times: int) -> None:
    """Write and punch holes, wherever; a part of it is only in memory afterwards."""
    with open(path, "r+b", buffering=0) as file:
        for _ in range(times):
            at, length = rng.randrange(SIZE - 70_000), rng.randrange(1, 70_000)
            what = rng.choice(["write", "write", "punch", "reserve"])
            if what == "write":
                file.seek(at)
                file.write(rng.randbytes(length))
                if rng.random() < 0.3:
                    os.fsync(file)
            else:
                option = ["-p"] if what == "punch" else []
                argv = ["fallocate", *option, "-o", str(at), "-l", str(length), path]
                subprocess.run(argv, check=True)


def cached(path: str) -> int:
    """Bytes of it that are in memory."""
    argv = ["fincore", "--bytes", "--noheadings", "--output", "RES", path]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


async def test_it_is_the_image_whatever_was_written_to_either(
    image: ImageFile, earlier: ImageFile
) -> None:
    rng = random.Random(20261122)
    for number in range(12):
        scribble(image.path, rng, times=rng.randrange(12))
        scribble(earlier.path, rng, times=rng.randrange(12))
        os.chown(image.path, 1000 + number, 1000)
        path = f"{path_of(image)}-{number}"
        before = bytes_of(image.path)
        made = await clone.renew(image, earlier, path)
        assert bytes_of(path) == before == bytes_of(image.path)
        assert os.stat(path).st_uid == 1000 + number
        assert (made.file.path, made.file.inode) == (path, earlier.inode)
        assert not os.path.exists(earlier.path)
        # Its content is its own: what is written to one of them is not in the other.
        scribble(path, rng, times=1)
        assert bytes_of(image.path) == before
        earlier = made.file


async def test_what_was_read_of_it_stays_in_memory(image: ImageFile, earlier: ImageFile) -> None:
    """The reason for it all: another clone would be read again from the disk."""
    with open(image.path, "r+b") as file:
        file.write(b"x" * 4096)
    subprocess.run(["sync", earlier.path], check=True)
    with open(earlier.path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert cached(earlier.path) == 0
        file.read()
    assert cached(earlier.path) >= SIZE
    made = await clone.renew(image, earlier, path_of(image))
    assert cached(made.file.path) >= SIZE - MIB
    assert bytes_of(made.file.path) == bytes_of(image.path)


async def refused(image: ImageFile, earlier: ImageFile, match: str) -> None:
    """It raises, and neither leaves a clone behind nor has touched the image."""
    before = bytes_of(image.path)
    with pytest.raises(OSError, match=match):
        await clone.renew(image, earlier, path_of(image))
    assert not os.path.exists(path_of(image))
    assert not earlier.is_at(earlier.path)
    assert bytes_of(image.path) == before


async def test_what_a_tool_may_still_write_to_is_no_clone(
    image: ImageFile, earlier: ImageFile
) -> None:
    with open(earlier.path, "r+b"):
        await refused(image, earlier, "may still write")


async def test_an_image_of_another_size_is_cloned_anew(
    image: ImageFile, earlier: ImageFile
) -> None:
    os.truncate(image.path, SIZE + MIB)
    await refused(image, earlier, "another size")


async def test_what_does_not_become_the_same_is_no_clone(
    image: ImageFile, earlier: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(image.path, "r+b") as file:
        file.write(b"x")
    monkeypatch.setattr(fs, "reflink_range", lambda *_: None)
    await refused(image, earlier, "does not become the same")


async def test_what_differs_all_over_is_cloned_anew(
    image: ImageFile, earlier: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers wait meanwhile."""
    monkeypatch.setattr(clone, "_MOST_RANGES", 3)
    with open(image.path, "r+b") as file:
        for number in range(4):
            os.pwrite(file.fileno(), b"x", number * MIB)
    await refused(image, earlier, "too much of it differs")


async def test_where_places_cannot_be_compared_it_is_cloned_anew(
    image: ImageFile, earlier: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "tells", lambda _: False)
    await refused(image, earlier, "does not tell")


async def test_what_has_its_name_by_now_is_left_alone(image: ImageFile, earlier: ImageFile) -> None:
    """And what has the name that it was to get."""
    os.rename(earlier.path, f"{earlier.path}-away")
    Path(earlier.path).write_text("somebody else's")
    with pytest.raises(OSError, match="another file"):
        await clone.renew(image, earlier, path_of(image))
    assert Path(earlier.path).read_text() == "somebody else's"
    os.rename(f"{earlier.path}-away", earlier.path)
    Path(path_of(image)).write_text("somebody else's")
    with pytest.raises(OSError, match="exists"):
        await clone.renew(image, earlier, path_of(image))
    assert Path(path_of(image)).read_text() == "somebody else's"


async def test_another_image_at_the_images_name_is_not_cloned(
    image: ImageFile, earlier: ImageFile
) -> None:
    await refused(replace(image, inode=image.inode + 1, birth_ns=None), earlier, "another file")


async def test_one_that_is_given_up_is_not_left_behind(
    image: ImageFile, earlier: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(image.path, "r+b") as file:
        file.write(b"x")
    begun, goes_on = threading.Event(), threading.Event()
    reflink = fs.reflink_range

    def slow(*arguments: int) -> None:
        begun.set()
        assert goes_on.wait(10)
        reflink(*arguments)

    monkeypatch.setattr(fs, "reflink_range", slow)
    renewing = asyncio.create_task(clone.renew(image, earlier, path_of(image)))
    assert await asyncio.to_thread(begun.wait, 10)
    renewing.cancel()
    asyncio.get_running_loop().call_later(0.05, goes_on.set)
    with pytest.raises(asyncio.CancelledError):
        await renewing
    assert not os.path.exists(path_of(image))
    assert not os.path.exists(earlier.path)


async def test_a_compressed_image_is_cloned_anew(work: Path) -> None:
    host = make_host(work, "btrfs")
    subprocess.run(["mount", "-o", "remount,compress-force=zstd", host], check=True)
    path = host / "ve101.img"
    path.write_bytes(b"compressible" * (SIZE // 12))
    image = ImageFile.at(str(path))
    earlier = (await clone.share(image, f"{path}.fswatchd-preview-1")).file
    await refused(image, earlier, "lie nowhere")


@pytest.fixture
def settings() -> ActionSettings:
    return ActionSettings(reserve_share=0.0, reserve_bytes=0)


def no_copy() -> OnProgress:
    raise AssertionError("it is shared")


@pytest.mark.parametrize("fits", [True, False])
async def test_whatever_becomes_of_the_earlier_one_there_is_a_clone(
    image: ImageFile, earlier: ImageFile, settings: ActionSettings, *, fits: bool
) -> None:
    if not fits:
        os.truncate(image.path, SIZE + MIB)
    made = await Images(image, settings).make(path_of(image), no_copy, earlier)
    assert earlier.is_at(made.path) is fits
    assert bytes_of(made.path) == bytes_of(image.path)
    assert not os.path.exists(earlier.path)


async def test_where_room_is_short_the_earlier_one_goes_first(
    image: ImageFile, earlier: ImageFile, monkeypatch: pytest.MonkeyPatch, settings: ActionSettings
) -> None:
    """What it holds may be what is missing."""

    async def check_room(*_: object, **__: object) -> None:
        if os.path.exists(earlier.path):
            raise refuse("no room", "it holds all there is")

    monkeypatch.setattr(clone, "check_room", check_room)
    made = await Images(image, settings).make(path_of(image), no_copy, earlier)
    assert not earlier.is_at(made.path)


async def test_one_that_is_kept_is_given_up_once_the_reserve_is_touched(
    image: ImageFile, earlier: ImageFile, settings: ActionSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lies_in = Images(image, settings)
    kept = KeptPreview(earlier, lies_in)
    assert await kept.take() == earlier
    await kept.drop()
    assert os.path.exists(earlier.path)  # it was taken
    gone = asyncio.Event()
    discard = lies_in.discard

    async def discarded(made: ImageFile) -> None:
        await discard(made)
        gone.set()

    asked: list[None] = []

    async def no_room() -> int:
        asked.append(None)
        if len(asked) == 1:
            raise TimeoutError("it does not answer")  # once is no reason to look no more
        return -1

    monkeypatch.setattr(lies_in, "discard", discarded)
    monkeypatch.setattr(lies_in, "room", no_room)
    kept = KeptPreview(earlier, lies_in)
    async with asyncio.timeout(10):
        await gone.wait()
    assert not os.path.exists(earlier.path)
    assert await kept.take() is None
