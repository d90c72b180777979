from __future__ import annotations

from dataclasses import replace

import pytest

from fswatchd.devno import Devno
from fswatchd.errors import UnknownTargetError
from fswatchd.events import VeState
from fswatchd.inventory.lookup import find_superblocks, find_ve
from fswatchd.inventory.model import (
    Backing,
    BlockDevice,
    NamespaceKey,
    NamespaceMount,
    Superblock,
    Ve,
    VeId,
)
from fswatchd.inventory.view import NodeView
from fswatchd.kernel.mounts import Mount

NODE, INSIDE = NamespaceKey(1), NamespaceKey(2)


def ve(platform: str, name: str, **more) -> Ve:
    return Ve(
        ve_id=VeId(f"{platform}:{name}"),
        platform=platform,
        native_id=name,
        name=name,
        state=VeState.RUNNING,
        **more,
    )


def superblock(minor: int, *places: tuple[NamespaceKey, str]) -> Superblock:
    mounts = [
        NamespaceMount(
            namespace=namespace,
            mount=Mount(
                mount_id=number,
                devno=Devno(7, minor),
                fstype="ext4",
                root="/",
                point=point,
                source=f"/dev/loop{minor}",
                superblock_options=(),
                superblock_readonly=False,
                readonly=False,
            ),
        )
        for number, (namespace, point) in enumerate(places)
    ]
    return Superblock(
        devno=Devno(7, minor),
        fstype="ext4",
        device=f"loop{minor}",
        disk_sequence=42,
        mounts=tuple(mounts),
        backing=Backing(kind="loop", image_devno=Devno(8, 1), image_inode=minor),
    )


def view(*ves: Ve, superblocks: tuple[Superblock, ...] = (), **more) -> NodeView:
    return NodeView(
        ves={one.ve_id: one for one in ves},
        superblocks={one.devno: one for one in superblocks},
        node_namespace=NODE,
        **more,
    )


class TestNames:
    BOTH = view(ve("lxc", "ve101"), ve("openvz", "102"))

    @pytest.mark.parametrize("text", ["ve101", "101", "lxc:ve101", "lxc:101"])
    def test_all_forms_name_one_ve(self, text: str) -> None:
        assert find_ve(self.BOTH, text).ve_id == "lxc:ve101"

    @pytest.mark.parametrize("text", ["102", "ve102", "openvz:102", "openvz:ve102"])
    def test_also_the_other_way_round(self, text: str) -> None:
        assert find_ve(self.BOTH, text).ve_id == "openvz:102"

    @pytest.mark.parametrize("text", ["ve101", "101"])
    def test_ambiguity_lists_the_candidates(self, text: str) -> None:
        two = view(ve("lxc", "ve101"), ve("openvz", "101"))
        with pytest.raises(UnknownTargetError, match="lxc:ve101, openvz:101"):
            find_ve(two, text)
        assert find_ve(two, "openvz:101").platform == "openvz"

    def test_the_unknown_gets_near_names(self) -> None:
        with pytest.raises(UnknownTargetError) as caught:
            find_ve(self.BOTH, "ve110")
        assert "ve101" in caught.value.hint

    @pytest.mark.parametrize("text", ["", "lxc:", ":", "ve", "lxc:102", "*"])
    def test_what_names_nothing(self, text: str) -> None:
        with pytest.raises(UnknownTargetError):
            find_ve(self.BOTH, text)


class TestUsers:
    def test_a_private_mount_belongs_to_its_ve(self) -> None:
        one = superblock(1, (INSIDE, "/"))
        seen = view(ve("lxc", "a"), superblocks=(one,), owners={INSIDE: "lxc:a", NODE: "the node"})
        assert seen.users[one.devno].ves == ("lxc:a",)
        assert seen.users[one.devno].foreign == ()
        assert seen.superblocks_of(VeId("lxc:a")) == [one]

    def test_a_mount_on_the_node_is_a_foreign_user(self) -> None:
        one = superblock(1, (INSIDE, "/"), (NODE, "/mnt/look"))
        seen = view(ve("lxc", "a"), superblocks=(one,), owners={INSIDE: "lxc:a", NODE: "the node"})
        assert seen.users[one.devno].foreign == ("the node",)

    def test_unless_the_platform_itself_mounts_the_ves_volume_there(self) -> None:
        one = superblock(1, (NODE, "/vz/root/a"))
        owner = ve("declared", "a", node_mounts=True)
        seen = view(
            owner,
            superblocks=(one,),
            owners={NODE: "the node"},
            image_owners={(Devno(8, 1), 1): owner.ve_id},
        )
        assert seen.users[one.devno].ves == ("declared:a",)
        assert seen.users[one.devno].foreign == ()

    def test_a_namespace_nobody_is_known_to_own_is_a_foreign_user(self) -> None:
        one = superblock(1, (NamespaceKey(99), "/"))
        seen = view(superblocks=(one,), owners={NODE: "the node"})
        assert seen.users[one.devno].foreign


class TestTargets:
    def test_a_ve_gives_only_what_nobody_else_uses(self) -> None:
        own = superblock(1, (INSIDE, "/"))
        shared = superblock(2, (INSIDE, "/lib"), (NODE, "/"))
        seen = view(
            ve("lxc", "a"),
            superblocks=(own, shared),
            owners={INSIDE: "lxc:a", NODE: "the node"},
        )
        assert find_superblocks(seen, "a")[1] == [own]

    @pytest.mark.parametrize("text", ["/dev/loop1", "loop1", "7:1", "/vz/a", "/vz/a/"])
    def test_devices_and_mount_points(self, text: str) -> None:
        one = superblock(1, (NODE, "/vz/a"))
        seen = view(superblocks=(one,), owners={NODE: "the node"})
        assert find_superblocks(seen, text) == (None, [one])

    def test_a_ve_with_the_name_of_a_device_is_not_guessed(self) -> None:
        one = superblock(1, (INSIDE, "/"))
        seen = view(ve("lxc", "loop1"), superblocks=(one,), owners={INSIDE: "lxc:a"})
        with pytest.raises(UnknownTargetError, match="lxc:loop1, /dev/loop1") as caught:
            find_superblocks(seen, "loop1")
        assert caught.value.code == "FSW-UNKNOWN-AMBIGUOUS"
        assert find_superblocks(seen, "/dev/loop1") == (None, [one])

    @pytest.mark.parametrize("text", ["/dev/loop9", "loop9", "7:9", "/vz/b"])
    def test_what_is_not_mounted(self, text: str) -> None:
        one = superblock(1, (NODE, "/vz/a"))
        with pytest.raises(UnknownTargetError):
            find_superblocks(view(superblocks=(one,), owners={NODE: "x"}), text)

    def test_a_path_inside_a_ve_is_no_target(self) -> None:
        one = superblock(1, (INSIDE, "/data"))
        seen = view(ve("lxc", "a"), superblocks=(one,), owners={INSIDE: "lxc:a"})
        with pytest.raises(UnknownTargetError):
            find_superblocks(seen, "/data")


class TestIdentified:
    """What the mount helper has told of a filesystem changes only what is known of that."""

    HOST, ABOVE = superblock(0, (NODE, "/vz")), superblock(3, (INSIDE, "/"))

    def seen(self) -> NodeView:
        above = BlockDevice(
            devno=self.ABOVE.devno,
            name="loop3",
            kind="loop",
            backing=Backing(kind="loop", image_devno=self.HOST.devno, image_inode=7),
        )
        return view(
            ve("lxc", "ve101"),
            superblocks=(self.HOST, self.ABOVE),
            owners={INSIDE: "lxc:ve101"},
            devices={above.devno: above},
        )

    def test_a_uuid_leaves_who_depends_on_it_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.seen()
        before.work_out_dependents()
        monkeypatch.setattr(NodeView, "work_out_dependents", lambda _: pytest.fail("not again"))
        after = before.identified(replace(self.ABOVE, uuid="new"), {})
        assert after.describe(after.superblocks[self.ABOVE.devno]).uuid == "new"
        assert before.describe(self.ABOVE).uuid is None
        assert after.affected(self.HOST.devno) == ("lxc:ve101",)

    def test_members_change_what_it_rests_on(self) -> None:
        before = self.seen()
        assert before.affected(Devno(8, 1)) == ()
        disk = BlockDevice(devno=Devno(8, 1), name="sda1", kind="partition")
        after = before.identified(replace(self.HOST, members=(disk.devno,)), {disk.devno: disk})
        assert after.affected(disk.devno) == ("lxc:ve101",)
