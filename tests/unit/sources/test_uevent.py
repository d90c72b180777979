"""Which uevents are faults, of what, and which only look like it.

The properties are those that the kernel's own senders give (see `uevent_meaning`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.devno import Devno
from fswatchd.events import EventClass, FsEvent, Severity
from fswatchd.inventory.model import Superblock
from fswatchd.sources.uevent import UeventSource
from fswatchd.sources.uevent_meaning import SUBSYSTEMS, Uevent, meaning
from tests.collected import Collected
from tests.unit.inventory.test_lookup import NODE, superblock

LOOP3 = Devno(7, 3)
UUID = "11111111-2222-3333-4444-555555555555"


SDB = "/devices/pci0000:00/0000:00:05.0/ata1/host0/target0:0:0/0:0:0:0/block/sdb"


class Node:
    """A source, what is mounted, and a tree laid out as sysfs is."""

    def __init__(self, sysfs: Path) -> None:
        self.sysfs = sysfs
        self.sink = Collected()
        self.looks: list[int] = []
        self.checked: list[Devno] = []
        self.mounted: dict[Devno, Superblock] = {}
        self.source = UeventSource(
            self.sink, self._find, lambda: self.looks.append(1), self.checked.append, sysfs
        )

    def _find(self, devno: Devno) -> Superblock | None:
        found = (s for s in self.mounted.values() if devno in (s.devno, *s.members))
        return next(found, None)

    def mount(self, minor: int = 3, major: int = 7, **more: object) -> Superblock:
        found = replace(superblock(minor, (NODE, "/mnt")), devno=Devno(major, minor), **more)
        self.mounted[found.devno] = found
        return found

    def device(self, name: str, devno: Devno, below: str = "", **files: object) -> Path:
        path = self.sysfs / "devices" / below / name
        path.mkdir(parents=True, exist_ok=True)
        for link in (self.sysfs / "dev/block" / str(devno), self.sysfs / "class/block" / name):
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path)
        for file, text in {"dev": devno, **files}.items():
            (path / file).write_text(f"{text}\n")
        return path

    def hold(self, lower: Path, upper: Path) -> None:
        (lower / "holders").mkdir(exist_ok=True)
        (lower / "holders" / upper.name).symlink_to(upper)

    def handle(
        self, action: str = "change", subsystem: str = "block", path: str = "", **words: str
    ) -> list[FsEvent]:
        if subsystem == "block":
            words = {"MAJOR": "7", "MINOR": "3", **words}
        path = path or "/devices/virtual/block/loop3"
        self.source.handle(Uevent(action=action, subsystem=subsystem, path=path, properties=words))
        return self.sink.events


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class TestBlock:
    def test_a_mounted_disk_that_becomes_read_only(self, node) -> None:
        node.mount()
        (found,) = node.handle(DISK_RO="1")
        assert (found.klass, found.device, found.confirms) == (EventClass.READONLY, "loop3", True)
        assert node.looks == [1]

    def test_a_disk_that_becomes_read_only_beneath_its_partition(self, node) -> None:
        disk = node.device("sda", Devno(8, 0))
        node.device("sda1", Devno(8, 1), below=f"{disk.name}", partition=1)
        node.mount(1, 8)
        (found,) = node.handle(DISK_RO="1", MAJOR="8", MINOR="0")
        assert found.devno == Devno(8, 1)

    def test_a_mounted_disk_that_goes_away(self, node) -> None:
        node.mount(16, 8)
        (found,) = node.handle(action="remove", path=SDB, MAJOR="8", MINOR="16")
        assert found.klass is EventClass.DEVICE_LOST

    @pytest.mark.parametrize("name", ["loop3", "dm-3"])
    def test_what_the_kernel_removes_only_when_nobody_uses_it_was_unmounted_before(
        self, node, name: str
    ) -> None:
        """A VE that stops takes its loop device along: who sees it mounted has not looked since."""
        node.mount()
        assert node.handle(action="remove", path=f"/devices/virtual/block/{name}") == []
        assert node.looks == [1]

    def test_one_of_several_devices_that_goes_away_leaves_it_degraded(self, node) -> None:
        node.mount(39, 0, members=(Devno(8, 16), Devno(7, 4)))
        (found,) = node.handle(action="remove", path=SDB, MAJOR="8", MINOR="16")
        assert (found.klass, found.devno) == (EventClass.DEGRADED, Devno(0, 39))

    def test_the_only_device_of_a_btrfs_that_goes_away(self, node) -> None:
        node.mount(39, 0, members=(Devno(8, 16),))
        (found,) = node.handle(action="remove", path=SDB, MAJOR="8", MINOR="16")
        assert found.klass is EventClass.DEVICE_LOST

    def test_a_device_that_shrinks_is_suspected(self, node) -> None:
        node.device("loop3", LOOP3, size=2048)
        node.source.watch(node.mount())
        node.device("loop3", LOOP3, size=1024)
        (found,) = node.handle(RESIZE="1")
        assert (found.klass, found.confirms) == (EventClass.IO_ERROR, False)

    def test_a_device_that_grows_is_no_fault(self, node) -> None:
        node.device("loop3", LOOP3, size=2048)
        node.source.watch(node.mount())
        node.device("loop3", LOOP3, size=4096)
        assert node.handle(RESIZE="1") == []

    @pytest.mark.parametrize(
        "event",
        [
            {"DISK_RO": "0"},
            {"DISK_MEDIA_CHANGE": "1"},
            {"RESIZE": "1"},
            {"action": "add"},
            {"DM_ACTION": "PATH_SOMETHING"},
        ],
    )
    def test_what_is_no_fault_is_only_a_reason_to_look_again(self, node, event: dict) -> None:
        node.mount()
        assert node.handle(**event) == []
        assert node.looks == [1]

    @pytest.mark.parametrize("event", [{"DISK_RO": "1"}, {"action": "remove"}])
    def test_nothing_is_mounted_from_it(self, node, event: dict) -> None:
        assert node.handle(**event) == []
        assert node.looks == [1]

    def test_a_disk_that_is_read_only_beneath_what_is_mounted_so(self, node) -> None:
        found = node.mount()
        place = found.mounts[0]
        readonly = replace(place, mount=replace(place.mount, superblock_readonly=True))
        node.mounted[LOOP3] = replace(found, mounts=(readonly,))
        assert node.handle(DISK_RO="1") == []

    @pytest.mark.parametrize("action", ["remove", "change", "offline"])
    def test_what_somebody_asked_the_kernel_to_repeat_is_no_fault(self, node, action) -> None:
        """udevadm trigger, or a write to the device's uevent file."""
        node.mount()
        assert node.handle(action=action, SYNTH_UUID="0", DISK_RO="1") == []
        assert node.looks == [1]

    def test_an_event_without_numbers_breaks_nothing(self, node) -> None:
        assert node.handle(MAJOR="x", DISK_RO="1") == []


class TestStacked:
    @pytest.fixture
    def mapped(self, node) -> Superblock:
        """A filesystem on dm-1 (a logical volume) on dm-0 (a multipath device)."""
        lower = node.device("dm-0", Devno(253, 0))
        node.hold(lower, node.device("dm-1", Devno(253, 1)))
        return node.mount(1, 253)

    def paths(self, node: Node, action: str, left: str) -> list[FsEvent]:
        return node.handle(
            DM_TARGET="multipath",
            DM_ACTION=action,
            DM_PATH="8:16",
            DM_NR_VALID_PATHS=left,
            DM_NAME="mpatha",
            MAJOR="253",
            MINOR="0",
        )

    @pytest.mark.parametrize(
        ("action", "left", "klass"),
        [
            ("PATH_FAILED", "1", "degraded"),
            ("PATH_FAILED", "0", "device_lost"),
            ("PATH_REINSTATED", "1", "recovered"),
        ],
    )
    def test_paths(self, node, mapped, action, left, klass) -> None:
        (found,) = self.paths(node, action, left)
        assert (found.klass, found.devno) == (EventClass(klass), mapped.devno)
        assert "mpatha" in found.detail

    def test_verity(self, node, mapped) -> None:
        (found,) = node.handle(DM_VERITY_ERR_BLOCK_NR="0,1234", MAJOR="253", MINOR="0")
        assert (found.klass, found.devno) == (EventClass.CORRUPTION, mapped.devno)
        assert "data block 1234" in found.detail

    def test_a_change_of_an_array_is_a_reason_to_read_its_state(self, node) -> None:
        lower = node.device("md0", Devno(9, 0))
        node.hold(lower, node.device("dm-1", Devno(253, 1)))
        found = node.mount(1, 253)
        assert node.handle(path="/devices/virtual/block/md0", MAJOR="9", MINOR="0") == []
        assert node.checked == [found.devno]


class TestOtherSubsystems:
    @pytest.fixture
    def disk(self, node) -> str:
        """sda1 on a SCSI device; its path below /sys."""
        below = "host2/target2:0:0/2:0:0:0"
        disk = node.device("sda", Devno(8, 0), below=f"{below}/block")
        node.device("sda1", Devno(8, 1), below=f"{below}/block/{disk.name}", partition=1)
        node.mount(1, 8)
        return f"/devices/{below}"

    def test_a_thin_pool_that_is_nearly_full(self, node, disk) -> None:
        words = {"SDEV_UA": "THIN_PROVISIONING_SOFT_THRESHOLD_REACHED"}
        (found,) = node.handle(subsystem="scsi", path=disk, **words)
        assert (found.klass, found.severity) == (EventClass.SPACE, Severity.WARNING)
        assert found.devno == Devno(8, 1)

    @pytest.mark.parametrize(
        "attention",
        ["INQUIRY_DATA_HAS_CHANGED", "CAPACITY_DATA_HAS_CHANGED", "POWER_ON_RESET_OCCURRED", "new"],
    )
    def test_other_attentions_are_reasons_to_look_again(self, node, disk, attention) -> None:
        assert node.handle(subsystem="scsi", path=disk, SDEV_UA=attention) == []
        assert node.looks == [1]
        assert node.checked == [Devno(8, 1)]

    @pytest.mark.parametrize(
        ("event", "severity"),
        [
            ("0x000000", Severity.ERROR),
            ("0x020001", Severity.ERROR),
            ("0x020101", Severity.WARNING),
            ("0x020201", Severity.ERROR),
        ],
    )
    @pytest.mark.parametrize("namespace", ["nvme0n1", "nvme0c1n1"])
    def test_an_nvme_controller_that_is_unwell(self, node, event, severity, namespace) -> None:
        node.device("nvme0n1", Devno(259, 0), below="pci/nvme/nvme0")
        (node.sysfs / "devices/pci/nvme/nvme0" / namespace).mkdir(exist_ok=True)
        node.mount(0, 259)
        (found,) = node.handle(subsystem="nvme", path="/devices/pci/nvme/nvme0", NVME_AEN=event)
        assert (found.klass, found.severity) == (EventClass.DEGRADED, severity)

    @pytest.mark.parametrize("event", ["0x000102", "0x000007", "nonsense", ""])
    def test_what_an_nvme_controller_says_besides(self, node, event) -> None:
        node.device("nvme0n1", Devno(259, 0), below="pci/nvme/nvme0")
        node.mount(0, 259)
        assert node.handle(subsystem="nvme", path="/devices/pci/nvme/nvme0", NVME_AEN=event) == []

    @pytest.fixture
    def gfs2(self, node) -> Callable[..., list[FsEvent]]:
        directory = node.sysfs / "fs/gfs2/cluster:vm"
        directory.mkdir(parents=True)
        (directory / "id").write_text("253:1\n")
        node.mount(1, 253, fstype="gfs2")

        def handle(action: str, **words: str) -> list[FsEvent]:
            words = {"LOCKTABLE": "cluster:vm", "LOCKPROTO": "lock_dlm", **words}
            return node.handle(action, "gfs2", "/fs/gfs2/cluster:vm", **words)

        return handle

    def test_gfs2_that_withdraws(self, gfs2) -> None:
        (found,) = gfs2("offline", JOURNALID="0")
        assert (found.klass, found.confirms) == (EventClass.SHUTDOWN, True)
        assert "cluster:vm" in found.detail

    def test_gfs2_that_cannot_recover_a_journal(self, gfs2) -> None:
        (found,) = gfs2("change", JID="2", RECOVERY="Failed")
        assert found.klass is EventClass.DEGRADED

    @pytest.mark.parametrize(
        ("action", "words"),
        [
            ("add", {"RDONLY": "0", "SPECTATOR": "0"}),
            ("online", {"RDONLY": "0"}),
            ("change", {"FIRSTMOUNT": "Done"}),
            ("change", {"JID": "1", "RECOVERY": "Done"}),
            ("remove", {}),
        ],
    )
    def test_the_life_of_a_gfs2_mount_is_no_fault(self, gfs2, action, words) -> None:
        assert gfs2(action, **words) == []

    def test_others_are_not_ours(self, node) -> None:
        node.mount()
        assert node.handle(subsystem="net", DISK_RO="1") == []
        assert node.looks == []


class TestVirtuozzo:
    """DEVPATH=/fs/ext4/<s_id>, FS_ACTION, FS_NAME, FS_TYPE, UUID in capitals."""

    def handle(self, node: Node, action: str, **words: str) -> list[FsEvent]:
        node.device("ploop12345p1", Devno(182, 1))
        properties = {"FS_TYPE": "ext4", "FS_NAME": "ploop12345p1", "FS_ACTION": action, **words}
        verb = {"MOUNT": "online", "UMOUNT": "offline"}.get(action, "change")
        return node.handle(verb, "ext4", "/fs/ext4/ploop12345p1", **properties)

    @pytest.mark.parametrize(("action", "klass"), [("ERROR", "corruption"), ("ABORT", "readonly")])
    def test_an_error_of_ext4(self, node, action, klass) -> None:
        node.mount(1, 182, uuid=UUID)
        (found,) = self.handle(node, action, UUID=UUID.upper())
        assert (found.klass, found.confirms) == (EventClass(klass), True)
        assert (found.devno, node.sink.losses) == (Devno(182, 1), [])

    def test_of_a_filesystem_nobody_has_seen_yet_it_is_a_suspicion(self, node) -> None:
        (found,) = self.handle(node, "ERROR")
        assert (found.device, found.confirms) == ("ploop12345p1", False)

    def test_of_a_filesystem_that_had_the_device_before_it_is_a_loss(self, node) -> None:
        node.mount(1, 182, uuid=UUID)
        assert self.handle(node, "ERROR", UUID=UUID.replace("1", "9")) == []
        assert len(node.sink.losses) == 1

    @pytest.mark.parametrize(
        ("action", "looks"),
        [("MOUNT", 1), ("UMOUNT", 1), ("REMOUNT", 1), ("FREEZE", 0), ("UNFREEZE", 0), ("NEW", 0)],
    )
    def test_what_else_it_tells(self, node, action, looks) -> None:
        node.mount(1, 182, uuid=UUID)
        assert self.handle(node, action) == []
        assert len(node.looks) == looks


WORDS = [
    "DISK_RO RESIZE SDEV_UA DM_ACTION DM_NR_VALID_PATHS DM_NAME DM_PATH DM_VERITY_ERR_BLOCK_NR",
    "NVME_AEN FS_ACTION FS_NAME FS_TYPE UUID LOCKTABLE RECOVERY JID SYNTH_UUID MAJOR MINOR",
]
KEYS = st.sampled_from(" ".join(WORDS).split())
VALUES = st.sampled_from(["1", "0", "PATH_FAILED", "ERROR", "Failed", "../..", "/", "."]) | st.text(
    st.characters(exclude_characters="\0"), max_size=20
)
UEVENTS = st.builds(
    Uevent,
    action=st.sampled_from(["add", "remove", "change", "offline"]),
    subsystem=st.sampled_from(sorted(SUBSYSTEMS)),
    path=st.sampled_from(["/devices/virtual/block/md0", "", "/", "/fs/ext4/x", "/../.."]),
    properties=st.dictionaries(KEYS, VALUES, max_size=6),
)


@given(UEVENTS)
def test_no_properties_raise_anything(event: Uevent) -> None:
    meaning(event)
    sink = Collected()
    source = UeventSource(sink, lambda _: superblock(3, (NODE, "/mnt")), lambda: None)
    source.handle(event)
    assert all(found.detail.isprintable() for found in sink.events)
