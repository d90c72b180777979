from __future__ import annotations

from typing import Any

import pytest

from fswatchd import views
from fswatchd.cli.commands import _inside
from fswatchd.events import VeState
from fswatchd.inventory.model import GuestFilesystem
from fswatchd.platforms.guest_agent import read
from tests.unit.inventory.test_lookup import ve

# virsh qemu-agent-command DOMAIN '{"execute":"guest-get-fsinfo"}'; after GuestFilesystemInfo
# in QEMU's qga/qapi-schema.json, where the sizes may be missing.
ANSWER = {
    "return": [
        {
            "name": "vda1",
            "total-bytes": 20957446144,
            "mountpoint": "/",
            "disk": [{"bus-type": "virtio", "bus": 0, "unit": 0, "dev": "/dev/vda1", "target": 0}],
            "used-bytes": 3221225472,
            "type": "ext4",
        },
        {"name": "dm-0", "mountpoint": "/srv", "disk": [], "type": "xfs"},
    ]
}
ROOT = GuestFilesystem(
    device="vda1",
    fstype="ext4",
    mountpoint="/",
    total_bytes=20957446144,
    used_bytes=3221225472,
)


def test_what_an_agent_tells() -> None:
    assert read(ANSWER) == (ROOT, GuestFilesystem(device="dm-0", fstype="xfs", mountpoint="/srv"))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"return": {}},
        {"return": None},
        {"return": ["/", None, 7, {}, {"name": "vda1", "type": "ext4"}]},
        {"return": [{"name": ["a"], "type": {}, "mountpoint": 7}]},
    ],
)
def test_what_is_no_answer(answer: Any) -> None:
    assert read(answer) == ()


def test_a_guest_can_say_anything_and_does_no_harm() -> None:
    one = {"name": "x\x1b[2J", "type": "y\n", "mountpoint": "/" * 9999, "total-bytes": -1}
    found = read({"return": [one] * 9999})
    assert len(found) == 64
    assert (found[0].device, found[0].fstype) == ("x\\x1b[2J", "y\\x0a")
    assert (len(found[0].mountpoint), found[0].total_bytes) == (200, None)


def test_status_shows_it_apart_from_what_the_node_knows() -> None:
    document = views.ve(ve("libvirt", "web", guest_filesystems=(ROOT,)), VeState.RUNNING, [], [])
    assert document["filesystems"] == []
    assert document["guest_filesystems"] == [
        {
            "device": "vda1",
            "fstype": "ext4",
            "mountpoint": "/",
            "total_bytes": 20957446144,
            "used_bytes": 3221225472,
        }
    ]
    assert _inside(document) == "inside, as its agent says: / (ext4 on vda1)"
    assert _inside({"guest_filesystems": []}) is None
