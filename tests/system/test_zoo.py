"""The damage zoo: never worse than the tool alone, and the preview is what the repair then does.

The fast selection has one damage for each part of a filesystem; `make test-long` takes all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fswatchd.kernel import loop
from fswatchd.kernel.syscalls import mount_detached
from tests.system.conftest import MEMORY
from tests.zoo import btrfs, ext4, ladder, xfs
from tests.zoo.damage import Damage, manifest, overwrite, populate, run

ALL = [(zoo, damage) for zoo in (ext4, xfs, btrfs) for damage in zoo.DAMAGES]
QUICK = [(zoo, damage) for zoo, damage in ALL if damage.quick]
DIFFERENT_KINDS = 60


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    parent = MEMORY / f"fswatchd-test-zoo-{tmp_path_factory.getbasetemp().name}"
    shutil.rmtree(parent, ignore_errors=True)
    found = {}
    for zoo in (ext4, xfs, btrfs):
        (parent / zoo.FSTYPE).mkdir(parents=True)
        found[zoo.FSTYPE] = zoo.base(parent / zoo.FSTYPE)
    yield found
    shutil.rmtree(parent)


def cases(found: list[tuple[ModuleType, Damage]]) -> list[object]:
    return [pytest.param(z, d, id=f"{z.FSTYPE}-{d.name}") for z, d in found]


@pytest.mark.parametrize(("zoo", "damage"), cases(QUICK))
async def test_a_damage_is_repaired_as_previewed_and_never_worse_than_by_the_tool_alone(
    bases: dict[str, Path], zoo: ModuleType, damage: Damage
) -> None:
    await compare(bases[zoo.FSTYPE], zoo, damage)


@pytest.mark.long
async def test_every_damage_of_the_zoo(bases: dict[str, Path]) -> None:
    kinds: dict[frozenset[str], str] = {}
    failed = []
    for zoo, damage in ALL:
        name = f"{zoo.FSTYPE}-{damage.name}"
        try:
            result = await compare(bases[zoo.FSTYPE], zoo, damage)
        except AssertionError as error:
            failed.append(f"{name}: {error}")
            continue
        if result.problems:
            kinds.setdefault(result.problems, name)
    assert not failed, "\n".join(failed)
    assert len(kinds) >= DIFFERENT_KINDS


@pytest.mark.parametrize("zoo", [ext4, xfs, btrfs], ids=lambda zoo: zoo.FSTYPE)
async def test_a_healthy_filesystem_is_left_as_it_is(
    bases: dict[str, Path], zoo: ModuleType
) -> None:
    work = bases[zoo.FSTYPE].parent
    result = await ladder.through_ladder(zoo, bases[zoo.FSTYPE], work)
    assert result.ending == "clean"
    assert len(result.files) > 400


async def test_descriptors_that_are_gone_do_not_take_the_files_with_them(work: Path) -> None:
    """Beside a journal to replay, e2fsck's own way to do only that destroys everything."""
    image, tree = work / "live.img", work / "tree"
    populate(tree)
    with image.open("xb") as file:
        file.truncate(48 << 20)
    run("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", str(tree), str(image))
    fd = os.open(image, os.O_RDWR)
    device, held = loop.attach(fd, autoclear=True)
    os.close(fd)
    mount = mount_detached("ext4", {"source": device})
    for number in range(20):
        new = os.open(f"new{number}", os.O_WRONLY | os.O_CREAT, dir_fd=mount)
        os.write(new, b"%d" % number * 500)
        os.fsync(new)
        os.close(new)
    live = ladder.clone(image, work / "copy.img")
    os.close(mount)
    os.close(held)
    overwrite(live, 2048, bytes(1024))
    result = await ladder.through_ladder(ext4, live, work)
    assert result.ending == "cured", result
    expected = set(manifest(tree).values())
    assert expected <= set(result.files.values())
    assert sum(name.startswith("new") for name in result.files) == 20


async def compare(base: Path, zoo: ModuleType, damage: Damage) -> ladder.Result:
    """Run one damage through everything; returns what the ladder did."""
    work = base.parent
    image = ladder.clone(base, work / "damaged.img")
    try:
        damage.harm(image)
        harmed = subprocess.run([*zoo.CHECK, str(image)], capture_output=True, check=False)
        preview = await ladder.through_ladder(zoo, image, work)
        done = await ladder.through_ladder(zoo, image, work)
        alone = ladder.alone(zoo, image, work)
    finally:
        image.unlink()
    assert (preview.ending, preview.found, preview.did) == (done.ending, done.found, done.did)
    assert preview.files == done.files, "the repair has done something else than the preview"
    if harmed.returncode:
        assert done.ending != "clean" or damage.part == "dup", "the damage was overlooked"
    if alone.ending == "cured":
        assert done.ending != "refused", f"the tool alone cures it, we do not: {done.found}"
        lost = set(alone.files.values()) - set(done.files.values())
        assert not lost, f"{len(lost)} contents are lost that the tool alone keeps"
        same = {path for path, content in alone.files.items() if done.files.get(path) == content}
        assert same == set(alone.files), "names are lost that the tool alone keeps"
    return done
