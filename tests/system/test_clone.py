"""A clone is the image in everything but its name: it takes the image's place."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest

from fswatchd.kernel import fs
from fswatchd.repair import clone, swap
from fswatchd.repair.volume import ImageFile

# struct posix_acl_xattr_header and its entries: rwx for the owner, r for one more user.
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000000ffffffff 10000400ffffffff 20000000ffffffff"
)
ATTRIBUTES = {
    "security.selinux": b"system_u:object_r:container_file_t:s0:c1,c2\0",
    "system.posix_acl_access": ACL,
    "trusted.fswatchd-test": b"trusted",
    "user.fswatchd-test": b"user",
}


@pytest.fixture
def image(host: Path) -> ImageFile:
    path = host / "ve101.img"
    path.write_bytes(os.urandom(1 << 20))
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    for name, value in ATTRIBUTES.items():
        os.setxattr(path, name, value)
    return ImageFile.at(str(path))


def looks(path: str) -> tuple[int, int, int, dict[str, bytes]]:
    status = os.stat(path)
    kept = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), kept


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copied"])
async def test_owner_mode_attributes_and_label_are_kept(image: ImageFile, *, shared: bool) -> None:
    before, content = looks(image.path), Path(image.path).read_bytes()
    path = clone.clone_path(image, "x1", "clone")
    made = await (clone.share if shared else clone.copy)(image, path)
    assert looks(path) == before
    assert ATTRIBUTES.items() <= before[3].items()
    swap.exchange(image, made.file)
    assert looks(image.path) == before
    assert looks(path) == before
    assert Path(image.path).read_bytes() == content
    assert made.file.is_at(image.path)


async def test_what_cannot_be_kept_makes_no_clone(
    image: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the VE would be started on an image that its label keeps it from."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setxattr", refused)
    path = clone.clone_path(image, "x1", "clone")
    with pytest.raises(OSError, match="cannot keep"):
        await clone.share(image, path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
async def test_a_clone_that_is_given_up_is_not_left_behind(
    image: ImageFile, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The thread that makes it does not end when nobody waits for it any more."""
    path = f"{image.path}.fswatchd-preview-x"
    begun, goes_on = threading.Event(), threading.Event()
    reflink = fs.reflink

    def slow(source: int, target: int) -> None:
        begun.set()
        assert goes_on.wait(10)
        reflink(source, target)

    monkeypatch.setattr(fs, "reflink", slow)
    sharing = asyncio.create_task(clone.share(image, path))
    await asyncio.to_thread(begun.wait)
    assert os.path.exists(path)
    for _ in range(times):
        sharing.cancel()
        await asyncio.sleep(0)
    assert not sharing.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await sharing
    assert not os.path.exists(path)
