"""What an LXC container's configuration says without the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms.lxc import LxcPlatform, configured_labels
from tests.unit.platforms.server import Server


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# fswatch: approve\n", {"fswatch": "approve"}),
        ("  #fswatch = auto\nlxc.uts.name = a\n", {"fswatch": "auto"}),
        ("# fswatch: auto\n# fswatch: observe\n", {"fswatch": "observe"}),
        ("# fswatch: sometimes\n", {"fswatch": "observe"}),
        ("# fswatchful: auto\nlxc.uts.name = fswatch: auto\n", {}),
    ],
)
def test_a_comment_says_what_the_owner_wishes(
    tmp_path: Path, text: str, wanted: dict[str, str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(text)
    assert configured_labels(str(tmp_path), "a") == wanted


def test_without_a_configuration_nobody_knows_what_he_wishes(tmp_path: Path) -> None:
    assert configured_labels(str(tmp_path), "a") is None


@pytest.mark.parametrize(
    ("rootfs", "image", "device"),
    [
        ("/dev/vg/ve101", None, "/dev/vg/ve101"),
        ("lvm:/dev/vg/a", None, "/dev/vg/a"),  # as lxc-create -B lvm writes it
        ("dir:{}", None, None),
        ("btrfs:{}", None, None),
        ("zfs:tank/a", None, None),
        ("overlay:{0}/image:{0}/delta0", None, None),
        ("overlayfs:{0}/image:{0}/delta0", None, None),
        ("nbd:{}/image", None, None),
        ("{}/image", "{}/image", None),
        ("loop:{}/image", "{}/image", None),
        ("{}", None, None),
        ("loop:{}/no", None, None),
    ],
)
async def test_where_its_root_filesystem_is(
    tmp_path: Path, rootfs: str, image: str | None, device: str | None
) -> None:
    (tmp_path / "image").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(f"lxc.rootfs.path = {rootfs.format(tmp_path)}\n")
    (ve,) = await LxcPlatform(str(tmp_path)).list_ves()
    wanted = Volume(image=image.format(tmp_path) if image else None, device=device)
    assert list(ve.volumes) == ([wanted] if image or device else [])


@pytest.mark.parametrize(("rootfs", "volumes"), [("loop:/mnt/nfs/a", 1), ("/mnt/nfs/a", 0)])
async def test_a_root_filesystem_on_a_lost_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rootfs: str, volumes: int
) -> None:
    """The container is listed, and what its configuration says by itself is believed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(f"lxc.rootfs.path = {rootfs}\n")
    platform = LxcPlatform(str(tmp_path))
    with Server(monkeypatch) as server:
        server.is_lost = True
        monkeypatch.setattr(platform, "_kinds", server.kinds())
        with pytest.raises(PlatformError, match="/mnt/nfs/a does not answer") as problem:
            await platform.list_ves()
        (ve,) = problem.value.partial
        assert ve.name == "a"
        assert list(ve.volumes) == [Volume(image="/mnt/nfs/a")] * volumes
