"""What never reached the disk is found by content, whatever the rest of the inode says."""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.helpers import changed, salvage
from fswatchd.kernel import fs, pagecache, syscalls
from fswatchd.repair import salvage as repair_salvage
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings
from tests.system.conftest import make_host

KIB, MIB = 1 << 10, 1 << 20
RNG = random.Random(20261124)


@dataclass
class Volume:
    """A mounted ext4 image, what was found in it, and the clone once its journal was aborted."""

    image: Path
    root: Path

    @property
    def clone(self) -> Path:
        return self.image.with_suffix(".clone")

    def abort(self) -> None:
        """The kernel stops writes, whatever is still in memory; the clone is repaired."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fs.abort(fd)
        finally:
            os.close(fd)
        subprocess.run(["cp", "--reflink=always", self.image, self.clone], check=True)
        done = subprocess.run(["e2fsck", "-fy", self.clone], capture_output=True, check=False)
        assert done.returncode in {0, 1}, done.stdout

    def salvage(
        self, *, walk: bool = False, **request: Any
    ) -> tuple[dict[str, str], dict[str, bytes], tuple[int, bool]]:
        """What became of which path, the copies by the names they had; how many were not looked
        at, and whether there were more."""
        target, told = self.image.with_suffix(".salvaged"), self.image.with_suffix(".told")
        asked = {"limit": 1000, "until": time.time(), "before_s": 3600.0, "within_s": 60.0}
        asked |= {"target": str(target), "max_bytes": 64 * MIB, "namespaces": []}
        devno = Devno.of(os.stat(self.root).st_dev)
        asked |= {"devno": list(devno)} | request
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        mount = syscalls.open_tree_clone(root)
        os.close(root)
        try:
            with (
                self.clone.open("rb") as clone,
                open(self.device, "rb") as device,
                told.open("w+") as file,
            ):
                fds = device.fileno(), clone.fileno()
                found = changed.walked(mount, asked)[0] if walk else changed.held(fds[0], asked)
                chosen, cut = changed.in_all(found, *fds, asked)
                compared = salvage.compare(mount, fds[1], chosen, asked)
                salvage.copy_unsaved(mount, compared, salvage.Told(file.fileno()), asked)
                outcomes = dict(json.loads(line) for line in told.read_text().splitlines())
        finally:
            os.close(mount)
        copies = {copy.name.split("-", 1)[1]: copy.read_bytes() for copy in target.glob("*")}
        return outcomes, copies, (compared.unseen, cut)

    @property
    def device(self) -> str:
        """What is mounted."""
        argv = ["findmnt", "-no", "SOURCE", str(self.root)]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def volume(work: Path) -> Iterator[Volume]:
    """It commits when it is told to, and writes nothing back by itself meanwhile."""
    image, root = make_host(work) / "ve101.img", work / "root"
    with image.open("xb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    root.mkdir()
    subprocess.run(["mount", "-o", "loop,commit=300", image, root], check=True)
    yield Volume(image, root)
    subprocess.run(["umount", root], check=True)


def synced(path: Path, data: bytes) -> bytes:
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file)
    return data


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def changed_after(path: Path, other: Path) -> None:
    """By the clock of the filesystem, which may be coarse."""
    put(path, 0, b"2")
    while path.stat().st_ctime <= other.stat().st_ctime:
        put(path, 0, b"2")


@pytest.fixture(params=["told by the kernel", "before Linux 6.5"])
def _in_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "before Linux 6.5":
        monkeypatch.setattr(pagecache, "pages", lambda *_: None)


@pytest.mark.usefixtures("_in_memory")
@pytest.mark.parametrize("way", ["by inodes", "by names"])
def test_what_is_only_in_memory_is_copied_and_nothing_else(volume: Volume, way: str) -> None:
    root, expected = volume.root, {}
    (root / "d").mkdir()
    for number in range(20):
        synced(root / "d" / f"saved-{number}", RNG.randbytes(number * 5000))
    large = bytearray(synced(root / "overwritten", RNG.randbytes(9 * MIB)))
    synced(root / "grown", b"1" * 8192)
    synced(root / "reserved", b"1")
    with (root / "reserved").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, MIB)
        os.fsync(file)
    os.sync()
    large[5 * MIB : 5 * MIB + 3] = b"new"
    put(root / "overwritten", 5 * MIB, b"new")
    put(root / "grown", 8192, b"2" * 100)
    put(root / "reserved", 500_000, b"within")
    (root / "d" / "unsynced").write_bytes(b"new one")
    (root / "hole").write_bytes(b"")
    os.truncate(root / "hole", 3 * MIB)
    expected["overwritten"] = bytes(large)
    expected["grown"] = b"1" * 8192 + b"2" * 100
    expected["reserved"] = (root / "reserved").read_bytes()
    expected["unsynced"] = b"new one"
    expected["hole"] = bytes(3 * MIB)
    volume.abort()
    outcomes, copies, answer = volume.salvage(walk=way == "by names")
    assert copies == expected
    assert set(outcomes.values()) == {"copied"}
    assert "d/unsynced" in outcomes
    assert answer == (0, False)


def test_what_is_too_large_to_be_copied_is_named_only_where_it_differs(volume: Volume) -> None:
    root = volume.root
    synced(root / "one", RNG.randbytes(20 * MIB))
    synced(root / "other", RNG.randbytes(20 * MIB))
    os.sync()
    put(root / "one", 7 * MIB, b"new")
    (root / "small").write_bytes(b"new")
    volume.abort()
    outcomes, copies, _ = volume.salvage(max_bytes=MIB)
    assert copies == {"small": b"new"}
    assert outcomes.keys() == {"one", "small"}
    assert outcomes["one"].startswith("lost: ")
    outcomes, _, _ = volume.salvage(max_bytes=0, target=str(volume.image.with_suffix(".none")))
    assert all(outcome.startswith("lost: ") for outcome in outcomes.values())
    assert not volume.image.with_suffix(".none").exists()


def test_what_lies_in_the_same_blocks_and_not_in_memory_is_not_read(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(volume.root / "large", RNG.randbytes(64 * MIB))
    os.sync()
    with (volume.root / "large").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    put(volume.root / "large", 33 * MIB, b"new")
    volume.abort()
    pread, read = os.pread, []

    def counted(fd: int, length: int, at: int) -> bytes:
        read.append(length)
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", counted)
    outcomes, _, _ = volume.salvage(max_bytes=0)
    assert list(outcomes) == ["large"]
    assert sum(read) < 8 * MIB


def test_without_time_it_says_how_many_were_not_looked_at(volume: Volume) -> None:
    for number in range(5):
        synced(volume.root / f"file-{number}", b"1")
    volume.abort()
    outcomes, copies, answer = volume.salvage(within_s=0.0)
    assert (outcomes, copies) == ({}, {})
    assert answer == (5, False)
    assert "5 files were not looked at" in repair_salvage.Salvaged(unseen=5).sentence(volume.image)


def test_of_more_than_it_looks_at_the_newest_are_looked_at(volume: Volume) -> None:
    for number in range(6):
        synced(volume.root / f"file-{number}", b"1")
    os.sync()
    changed_after(volume.root / "file-3", volume.root / "file-5")
    volume.abort()
    _, copies, answer = volume.salvage(limit=1)
    assert copies == {"file-3": b"2"}
    assert answer == (0, True)


def test_what_changed_long_before_is_not_looked_at(volume: Volume) -> None:
    synced(volume.root / "old", b"1")
    (volume.root / "new").write_bytes(b"1")
    changed_after(volume.root / "new", volume.root / "old")
    volume.abort()
    _, _, answer = volume.salvage(before_s=0.0, within_s=0.0)
    assert answer == (1, False)


def test_however_long_ago_writes_were_stopped_what_was_lost_then_is_found(volume: Volume) -> None:
    """Where no daemon ran then, the incident is of today."""
    (volume.root / "unsynced").write_bytes(b"1")
    volume.abort()
    outcomes, _, _ = volume.salvage(until=time.time() + 86400, before_s=60.0)
    assert outcomes == {"unsynced": "copied"}


def test_a_file_that_the_check_has_freed_is_not_taken_for_the_same(volume: Volume) -> None:
    """Its inode keeps its size and its blocks: written without a name, and given one too late."""
    root = os.open(volume.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=root)
        os.write(fd, b"1" * 8192)
        os.fsync(fd)
        for number in range(8):
            synced(volume.root / f"after-{number}", b"2")
        os.sync()
        os.link(f"/proc/self/fd/{fd}", "linked", dst_dir_fd=root, follow_symlinks=True)
        os.close(fd)
    finally:
        os.close(root)
    volume.abort()
    outcomes, copies, _ = volume.salvage()
    assert (outcomes, copies) == ({"linked": "copied"}, {"linked": b"1" * 8192})


def test_what_is_stored_through_a_mapping_after_the_abort_is_found(volume: Volume) -> None:
    """The kernel takes it, and no inode on the device tells of it."""
    path = volume.root / "database"
    synced(path, b"1" * 8192)
    others = [synced(volume.root / f"other-{n}", b"2") for n in range(5)]
    assert others
    os.sync()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as stored:
        volume.abort()
        stored[5000:5003] = b"new"
        file.close()
        namespace = os.stat("/proc/self/ns/mnt").st_ino
        outcomes, copies, _ = volume.salvage(namespaces=[namespace], before_s=-3600.0)
    assert outcomes == {"database": "copied"}
    assert copies["database"][5000:5003] == b"new"


def test_what_was_deleted_and_is_still_in_the_clone_is_nothing(volume: Volume) -> None:
    synced(volume.root / "deleted", b"1" * 5000)
    synced(volume.root / "kept", b"1")
    os.sync()
    (volume.root / "deleted").unlink()
    volume.abort()
    outcomes, copies, _ = volume.salvage()
    assert (outcomes, copies) == ({}, {})


def test_what_another_filesystem_has_is_not_looked_at(volume: Volume) -> None:
    """Which a VE may have mounted there, and which may be copied with the mount."""
    (volume.root / "own").write_bytes(b"1")
    place = volume.root / "other"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "other", place], check=True)
    root = os.open(volume.root, os.O_PATH | os.O_DIRECTORY)
    try:
        (place / "secret").write_bytes(b"1")
        found, unreadable = changed.walked(root, {"limit": 10})
        assert [one.path for one in found] == ["own"]
        assert unreadable == 0
        inode = (place / "secret").stat().st_ino
        with pytest.raises(OSError, match="cross-device"):
            changed.open_file(root, changed.Changed(0.0, inode, 0, "other/secret"))
    finally:
        os.close(root)
        subprocess.run(["umount", place], check=True)


def test_copies_of_a_run_that_was_cut_off_stay_as_they_are(volume: Volume) -> None:
    (volume.root / "unsynced").write_bytes(b"2")
    volume.abort()
    target = volume.image.with_suffix(".salvaged")
    target.mkdir()
    (target / "00000-unsynced").write_bytes(b"1")
    outcomes, _, _ = volume.salvage()
    assert outcomes == {"unsynced": "copied"}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        "00000-unsynced": b"1",
        "00001-unsynced": b"2",
    }


class Context:
    """Of an incident; `held` says whether a mount of the filesystem is open."""

    def __init__(self, volume: Volume) -> None:
        self.incident = SimpleNamespace(incident_id="20261123-abcde", opened_ns=time.time_ns())
        self.settings = ActionSettings(reserve_bytes=0, reserve_share=0.0)
        self.inventory = self
        self.held = False
        self._root = volume.root

    @asynccontextmanager
    async def opened(self, _: object) -> AsyncIterator[int]:
        self.held = True
        mount = os.open(self._root, os.O_PATH | os.O_DIRECTORY)
        try:
            yield mount
        finally:
            os.close(mount)
            self.held = False


def superblock_of(volume: Volume, *options: str) -> Any:
    return SimpleNamespace(
        device=os.path.basename(volume.device),
        devno=Devno.of(os.stat(volume.device).st_rdev),
        options=options,
        mounts=(),
    )


@pytest.mark.parametrize("options", [(), ("lazytime",)])
async def test_the_filesystem_is_held_only_while_it_is_read(
    volume: Volume, options: tuple[str, ...]
) -> None:
    """Its VE may be stopped, and started again, while the clone is being repaired."""
    synced(volume.root / "saved", b"1")
    os.sync()
    (volume.root / "unsynced").write_bytes(b"2")
    superblock = superblock_of(volume, *options)
    context: Any = Context(volume)
    volume.abort()
    made, image = ImageFile.at(str(volume.clone)), ImageFile.at(str(volume.image))
    async with repair_salvage.Search(context, superblock) as search:
        assert not context.held
        search.compare(made)
        text = await search.copy(image, MIB)
        assert not context.held
    target = Path(f"{image.path}.salvaged-20261123-abcde")
    assert text.startswith(f"1 files never reached the disk and were copied to {target}: ")
    assert [path.read_bytes() for path in target.iterdir()] == [b"2"]


async def test_a_device_that_is_another_one_by_now_is_not_read(volume: Volume) -> None:
    (volume.root / "unsynced").write_bytes(b"2")
    superblock: Any = SimpleNamespace(
        device=os.path.basename(volume.device), devno=Devno(7, 4095), options=(), mounts=()
    )
    context: Any = Context(volume)
    volume.abort()
    made, image = ImageFile.at(str(volume.clone)), ImageFile.at(str(volume.image))
    async with repair_salvage.Search(context, superblock) as search:
        search.compare(made)
        text = await search.copy(image, MIB)
    assert "could not be looked for" in text
    assert "is another device by now" in text


@pytest.mark.parametrize("times", [1, 2])
async def test_what_a_later_run_of_the_repair_drops_is_saved_too(
    volume: Volume, times: int
) -> None:
    """The clone is compared beside its proof; where that leads to another run it is once more."""
    synced(volume.root / "dropped", b"1")
    os.sync()
    (volume.root / "unsynced").write_bytes(b"2")
    context: Any = Context(volume)
    superblock = superblock_of(volume)
    volume.abort()
    made, image = ImageFile.at(str(volume.clone)), ImageFile.at(str(volume.image))
    async with repair_salvage.Search(context, superblock) as search:
        search.compare(made)
        if times == 2:
            argv = ["debugfs", "-w", "-R", "rm dropped", str(volume.clone)]
            subprocess.run(argv, check=True, capture_output=True)
            search.compare(made)
        await search.copy(image, MIB)
    target = Path(f"{image.path}.salvaged-20261123-abcde")
    wanted = [b"2"] if times == 1 else [b"1", b"2"]
    assert sorted(path.read_bytes() for path in target.iterdir()) == wanted


async def test_nothing_that_was_not_compared_is_said_to_be_saved(volume: Volume) -> None:
    context: Any = Context(volume)
    volume.abort()
    async with repair_salvage.Search(context, superblock_of(volume)) as search:
        text = await search.copy(ImageFile.at(str(volume.image)), MIB)
    assert text == "files that never reached the disk could not be looked for: nothing was compared"
