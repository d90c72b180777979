"""What an LXC container's configuration says without the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.inventory.model import Volume
from fswatchd.platforms.lxc import configured_labels, configured_volumes


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
    ("source", "wanted"),
    [
        ("/dev/vg/a", Volume(device="/dev/vg/a")),
        ("lvm:/dev/vg/a", Volume(device="/dev/vg/a")),  # as lxc-create -B lvm writes it
        ("{}/a/rootdev", Volume(image="{}/a/rootdev")),
        ("loop:{}/a/rootdev", Volume(image="{}/a/rootdev")),
        ("dir:{}/a", None),
        ("btrfs:{}/a", None),
        ("zfs:tank/a", None),
        ("overlay:{0}/a/rootdev:{0}/a/delta0", None),
        ("overlayfs:{0}/a/rootdev:{0}/a/delta0", None),
        ("nbd:{}/a/rootdev", None),
    ],
)
def test_the_volume_of_each_kind_of_storage(
    tmp_path: Path, source: str, wanted: Volume | None
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rootdev").touch()
    (tmp_path / "a" / "config").write_text(f"lxc.rootfs.path = {source.format(tmp_path)}\n")
    volumes = configured_volumes(str(tmp_path), "a")
    if wanted is not None and wanted.image:
        wanted = Volume(image=wanted.image.format(tmp_path))
    assert volumes == (() if wanted is None else (wanted,))
