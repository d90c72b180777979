"""What only its platform's own driver can open is never given to e2fsck, mounted or not."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.incidents import Filesystem, Incident
from fswatchd.inventory.model import (
    Backing,
    NamespaceKey,
    NamespaceMount,
    Superblock,
    Ve,
    VeId,
    Volume,
)
from fswatchd.inventory.view import NodeView, describe
from fswatchd.kernel.mounts import Mount
from fswatchd.repair import scope
from fswatchd.steps import StepEnded
from tests.unit.builders import incident

NODE = NamespaceKey(1)
# Any device node will do: it is only asked for its number.
DEVICE = "/dev/null"
NUMBER = Devno.of(os.stat(DEVICE).st_rdev)
MOUNTED = Superblock(
    devno=NUMBER,
    fstype="ext4",
    device="null",
    disk_sequence=1,
    backing=Backing(kind="device"),
    mounts=(
        NamespaceMount(
            namespace=NODE,
            mount=Mount(
                mount_id=1,
                devno=NUMBER,
                fstype="ext4",
                root="/",
                point="/vz/root/101",
                source=DEVICE,
                superblock_options=(),
                superblock_readonly=False,
                readonly=False,
            ),
        ),
    ),
)


class _Inventory:
    def __init__(self, volume: Volume, *superblocks: Superblock) -> None:
        ve = Ve(
            ve_id=VeId("openvz:101"),
            platform="openvz",
            native_id="101",
            name="101",
            state=VeState.STOPPED,
            volumes=(volume,),
            node_mounts=True,
        )
        self.view = NodeView(
            superblocks={one.devno: one for one in superblocks},
            ves={ve.ve_id: ve},
            owners={NODE: "the node"},
            node_namespace=NODE,
            device_owners={NUMBER: ve.ve_id},
        )

    async def refresh(self) -> None: ...


def context(found: Incident, inventory: _Inventory) -> Any:
    return SimpleNamespace(incident=found, inventory=inventory)


def about(filesystem: Filesystem) -> Incident:
    return incident(filesystem=filesystem, ves=("openvz:101",))


async def test_a_mounted_ploop_is_refused_before_anything_is_stopped() -> None:
    volume = Volume(image="/vz/private/101/root.hdd/root.hdd", device=DEVICE, format="ploop")
    asked = context(about(describe(MOUNTED)), _Inventory(volume, MOUNTED))
    with pytest.raises(StepEnded, match="in the format ploop"):
        await scope.resolve(asked)


async def test_a_device_of_its_own_is_not() -> None:
    asked = context(about(describe(MOUNTED)), _Inventory(Volume(device=DEVICE), MOUNTED))
    assert (await scope.resolve(asked)).device == "/dev/null"


@pytest.mark.parametrize("kind", ["cow", "raw"])
async def test_an_image_that_is_not_mounted(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    image.touch()
    stopped = Filesystem(devno=None, device=None, fstype="ext4", image=str(image))
    asked = context(about(stopped), _Inventory(Volume(image=str(image), format=kind)))
    if kind == "raw":
        assert (await scope.resolve(asked)).image is not None
    else:
        with pytest.raises(StepEnded, match="in the format cow"):
            await scope.resolve(asked)
