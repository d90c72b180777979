"""Files that e2fsck has numbered get their names back, from wherever they are still known."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.kernel import openfiles, proc
from fswatchd.repair import cure, e2fsck, names_back, tools
from fswatchd.rules.model import FsckStep

FILES = 60


def run(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    return done.stdout


class Damaged:
    """An image with a directory whose blocks are overwritten, and what it was before."""

    def __init__(self, work: Path, *mkfs: str) -> None:
        self.image, self.clone = work / "ve101.img", work / "clone.img"
        self.point = work / "point"
        with self.image.open("xb") as file:
            file.truncate(128 << 20)
        run("mke2fs", "-q", "-t", "ext4", *mkfs, self.image)
        self.point.mkdir()
        run("mount", "-o", "loop", self.image, self.point)
        victim = self.point / "victim"
        (victim / "sub").mkdir(parents=True)
        for number in range(FILES):
            (victim / f"file {number:02d}").write_text(f"content {number}")
        (victim / "sub" / "inner").write_text("inner")
        self.inodes = {path.name: path.stat().st_ino for path in victim.iterdir()}
        self.directory = victim.stat().st_ino
        run("umount", self.point)

    def harm(self) -> None:
        size = int(run("dumpe2fs", "-h", self.image).split("Block size:")[1].split()[0])
        with self.image.open("r+b") as file:
            for block in run("debugfs", "-R", f"blocks <{self.directory}>", self.image).split():
                file.seek(int(block) * size)
                file.write(os.urandom(size))
        shutil.copy(self.image, self.clone)

    async def repair(
        self, open_files: dict[int, str] | None = None, device: str | None = None
    ) -> names_back.NamesBack:
        """With `device` of a clone that is a block device, as a logical volume is."""
        clone = device or str(self.clone)
        repaired = await e2fsck.repair(clone, 60)
        assert repaired.fixed, repaired.output
        await e2fsck.repair(clone, 60)
        before = Path(clone).read_bytes()
        found = await names_back.find(
            clone,
            repaired.output,
            image=str(self.image),
            open_files=open_files or {},
        )
        assert Path(clone).read_bytes() == before, "to look for names changes nothing"
        names = await names_back.give(clone, found)
        assert names.wrote is (Path(clone).read_bytes() != before)
        await e2fsck.repair(clone, 60)
        assert (await e2fsck.check(clone, 60)).clean
        return names

    def content(self) -> dict[str, str]:
        run("mount", "-o", "loop,ro", self.clone, self.point)
        try:
            return {
                str(path.relative_to(self.point)): path.read_text()
                for path in self.point.rglob("*")
                if path.is_file()
            }
        finally:
            run("umount", self.point)


@pytest.mark.parametrize("block", ["1024", "4096"], ids=["index of many blocks", "one block"])
async def test_from_the_journal(work, block: str) -> None:
    damaged = Damaged(work, "-b", block)
    damaged.harm()
    names = await damaged.repair()
    assert names.unnamed == ()
    assert len(names.named) == FILES + 1
    assert {source for _, source in names.named.values()} == {"the journal"}
    content = damaged.content()
    for number in range(FILES):
        assert content[f"victim/file {number:02d}"] == f"content {number}"
    assert content["victim/sub/inner"] == "inner"


async def test_in_a_clone_that_is_a_block_device(work) -> None:
    damaged = Damaged(work)
    damaged.harm()
    device = run("losetup", "--find", "--show", damaged.clone).strip()
    try:
        names = await damaged.repair(device=device)
    finally:
        run("losetup", "--detach", device)
    assert names.problem == ""
    assert len(names.named) == FILES + 1
    content = damaged.content()
    assert content["victim/file 08"] == "content 8"


async def test_where_lost_and_found_cannot_be_read_all_that_went_there_counts(
    work, monkeypatch
) -> None:
    """A rule that permits no lost files is not satisfied by a program that has failed."""

    async def fails(*_: object, **__: object) -> bytes:
        raise OSError("debugfs: killed")

    damaged = Damaged(work)
    damaged.harm()
    monkeypatch.setattr(names_back._Clone, "debugfs", fails)
    ext4 = tools.of("ext4")
    assert ext4 is not None
    done = await cure.cure(
        ext4,
        str(damaged.clone),
        image=str(damaged.image),
        timeout_s=60,
        open_files={},
        begin=lambda _: lambda _: None,
    )
    assert done.proof.clean
    assert done.lost_files == FILES + 1
    assert "names were not looked for to the end: debugfs: killed" in done.summary()
    step = FsckStep(do="fsck", max_lost_files=FILES)
    assert "files would be lost" in (cure.beyond(step, done, None) or "")


async def test_from_a_snapshot_but_not_where_the_inode_is_another_file(work) -> None:
    damaged = Damaged(work, "-O", "^has_journal")
    shutil.copy(damaged.image, f"{damaged.image}.snapshot-20261121-abcde")
    other = damaged.inodes["file 07"]
    run("debugfs", "-w", "-R", f"sif <{other}> generation 12345", damaged.image)
    damaged.harm()
    names = await damaged.repair()
    assert names.unnamed == (other,)
    assert names.size_bytes == len("content 7")
    assert {source for _, source in names.named.values()} == {"a snapshot"}
    assert damaged.content()["victim/file 08"] == "content 8"


async def test_from_what_is_open_and_what_nobody_knows_is_listed(work) -> None:
    damaged = Damaged(work, "-O", "^has_journal")
    damaged.harm()
    known = damaged.inodes["file 03"]
    names = await damaged.repair({known: "/victim/file 03"})
    assert names.named[known] == ("/victim/file 03", "what processes hold open")
    assert len(names.unnamed) == FILES
    assert f"{FILES} stay in lost+found" in names.summary()
    assert damaged.content()["victim/file 03"] == "content 3"


async def test_where_nobody_knows_a_name_nothing_is_written(work) -> None:
    """So that the proof from before still holds, and the VE does not wait for another one."""
    damaged = Damaged(work, "-O", "^has_journal")
    damaged.harm()
    names = await damaged.repair()
    assert not names.wrote
    assert len(names.unnamed) == FILES + 1


def test_what_a_process_holds_open_is_known_without_asking_the_filesystem(work) -> None:
    path = work / "held"
    with path.open("w") as file:
        status = os.fstat(file.fileno())
        namespace = proc.own_mount_namespace()
        found = list(openfiles.held(Devno.of(status.st_dev), {namespace}))
        mine = next(one for one in found if (one.pid, one.fd) == (os.getpid(), file.fileno()))
    assert mine.path == str(path)
    assert mine.inside is not None
    assert mine.inside.endswith("/held")
    assert mine.inode in {status.st_ino, None}
    assert not mine.deleted
