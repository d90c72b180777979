from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd import doctor
from fswatchd.config import ChannelTable, Config, DaemonTable, RepairTable
from fswatchd.doctor import filesystems, images, node, rules
from fswatchd.doctor.node import source as _source
from fswatchd.doctor.ves import examine as _ves
from fswatchd.events import SourceState, VeState
from fswatchd.inventory.model import Backing, BlockDevice, Commands, Ve, VeId, Volume
from fswatchd.inventory.view import NodeView, Users
from fswatchd.rules import files
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.sources import SourceStatus
from tests.unit.inventory.test_lookup import INSIDE, NODE, superblock


@pytest.mark.parametrize(
    ("name", "switch", "level"),
    [
        ("vzevent", "auto", "ok"),
        ("xfs_health", "auto", "ok"),
        ("vzevent", True, "warning"),
        ("quota", "auto", "warning"),
        ("kmsg", "auto", "critical"),
    ],
)
def test_a_source_that_cannot_work_matters_where_it_should(name, switch, level) -> None:
    status = SourceStatus(name=name, state=SourceState.UNAVAILABLE, detail="not here")
    found = _source(status, switch)
    assert (found.level, found.text) == (level, "unavailable: not here")


def inventory(*ves: Ve) -> Any:
    return SimpleNamespace(view=NodeView(ves={ve.ve_id: ve for ve in ves}), problems={})


@pytest.mark.parametrize(
    ("fstype", "options", "found"),
    [
        ("btrfs", ("rw", "fatal_errors=panic"), 1),
        ("vfat", ("rw", "errors=panic"), 1),
        ("f2fs", ("rw", "errors=continue"), 0),
        ("btrfs", ("rw", "ssd"), 0),
    ],
)
def test_an_option_that_takes_the_node_down_is_found_on_any_filesystem(
    fstype: str, options: tuple[str, ...], found: int
) -> None:
    plain = superblock(1, (NODE, "/srv"))
    (place,) = plain.mounts
    place = replace(place, mount=replace(place.mount, superblock_options=options))
    mounted = replace(plain, fstype=fstype, mounts=(place,))
    seen: Any = SimpleNamespace(
        view=SimpleNamespace(superblocks={mounted.devno: mounted}),
        scanner=SimpleNamespace(name="mountinfo"),
        unreached=list,
    )
    codes = [one.code for one in filesystems.examine(seen)]
    assert codes.count("FSW-DOCTOR-PANIC") == found


def ve(program: str, *volumes: Volume) -> Ve:
    return Ve(
        ve_id=VeId("openvz:101"),
        platform="openvz",
        native_id="101",
        name="web",
        state=VeState.RUNNING,
        volumes=volumes,
        commands=Commands(stop=(program, "stop", "101")),
    )


def test_volumes_that_only_their_platform_can_open_are_named_and_not_complained_about() -> None:
    found = _ves(
        inventory(ve("sh", Volume(image="/a", format="ploop"), Volume(device="/dev/x"))), []
    )
    assert [(one.name, one.level) for one in found] == [
        ("openvz:101", "warning"),
        ("volumes", "ok"),
        ("ves", "ok"),
    ]
    assert "1 in the format ploop of openvz" in found[1].text
    (only, _) = _ves(inventory(ve("sh", Volume(image="/a", format="ploop"))), [])
    assert only.name == "volumes"


def test_a_platform_whose_program_is_missing() -> None:
    found = _ves(inventory(ve("vzctl-is-not-here")), [])
    assert [(one.name, one.level) for one in found] == [
        ("tool vzctl-is-not-here", "warning"),
        ("ves", "ok"),
    ]


def test_a_directory_of_declared_ves_that_is_not_there_is_named(tmp_path: Path) -> None:
    """But for the default one."""
    default, gone = DaemonTable().ves, tmp_path / "gone"
    found = [one.text for one in _ves(inventory(), [*default, tmp_path, gone])]
    assert [text for text in found if "no such directory" in text] == [
        f"{gone}: there is no such directory, so no VE is declared in it"
    ]


def test_each_mistake_that_a_platform_tells_is_a_finding_with_a_remedy() -> None:
    told = "a.toml is owned by user 7\n  chown root:root\nb.toml: ve.1.x: unknown key\nc.toml: no"
    node_inventory = inventory(ve("sh"))
    node_inventory.problems["declared"] = f"{told}\n  the others are known"
    found = [one for one in _ves(node_inventory, []) if one.code == "FSW-DOCTOR-PLATFORM"]
    assert [(one.name, one.level) for one in found] == [("platform declared", "warning")] * 3
    assert [(one.text, one.remedy) for one in found] == [
        ("a.toml is owned by user 7", "chown root:root"),
        ("b.toml: ve.1.x: unknown key", "see to what it names: it is asked again by itself"),
        ("c.toml: no", "the others are known"),
    ]
    node_inventory.problems["declared"] = "one\n  hint"
    assert [one.text for one in _ves(node_inventory, []) if one.level == "warning"] == ["one"]
    node_inventory.problems.clear()
    assert [one.level for one in _ves(node_inventory, [])] == ["ok"]


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("e2fsck 1.47.2 (1-Jan-2025)\n\tUsing EXT2FS Library", "ok"),
        ("e2fsck 1.46.5 (30-Dec-2021)", "warning"),
        ("e2fsck 2.0 (1-Jan-2030)", "ok"),
        ("no idea", "ok"),
    ],
)
def test_an_e2fsck_that_is_too_old_for_new_filesystems(said: str, level: str) -> None:
    assert node.e2fsck(said).level == level


def test_switches_that_take_the_node_down(tmp_path) -> None:
    for name, value in (("fs/xfs/panic_mask", "127"), ("kernel/panic_on_warn", "0")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    (only,) = node.switches(tmp_path)
    assert (only.name, only.level) == ("sysctl fs.xfs.panic_mask", "critical")


@pytest.mark.parametrize(
    ("option", "owner", "level"),
    [
        ("panic", "openvz:101", "critical"),
        ("panic", None, "critical"),
        ("continue", "openvz:101", "warning"),
        ("continue", None, None),  # the node's own is its admin's choice
        ("remount-ro", "openvz:101", None),
    ],
)
def test_what_an_error_does_to_a_mounted_filesystem(option, owner, level) -> None:
    mounted = superblock(7, (NODE, "/srv"))
    users = {mounted.devno: Users(ves=(VeId(owner),) if owner else ())}
    seen: Any = SimpleNamespace(view=SimpleNamespace(users=users))
    found = filesystems._on_error(seen, mounted, option)
    assert [one.level for one in found] == ([level] if level else [])


def test_who_only_rests_on_a_filesystem_is_not_named_as_who_writes_to_it() -> None:
    """Images of VEs lie on a filesystem of the node, which is its admin's choice."""
    below, above = superblock(1, (NODE, "/")), superblock(2, (INSIDE, "/"))
    backing = Backing(kind="loop", image="/a.img", image_inode=12, image_devno=below.devno)
    device = BlockDevice(devno=above.devno, name=above.device, kind="loop", backing=backing)
    view = NodeView(
        superblocks={one.devno: one for one in (below, above)},
        devices={above.devno: device},
        owners={NODE: "the node", INSIDE: "lxc:ve101"},
        ves={VeId("lxc:ve101"): replace(ve("sh"), ve_id=VeId("lxc:ve101"))},
        node_namespace=NODE,
    )
    assert view.affected(below.devno) == ("lxc:ve101",)
    seen: Any = SimpleNamespace(view=view)
    assert not filesystems._on_error(seen, below, "continue")
    (only,) = filesystems._on_error(seen, above, "continue")
    assert "errors=continue: lxc:ve101 goes on" in only.text


def test_the_errors_option_is_the_one_that_holds(tmp_path) -> None:
    superblock: Any = SimpleNamespace(device="loop7", options=("errors=continue",))
    assert filesystems.errors_option(superblock, tmp_path) == "continue"
    (tmp_path / "loop7").mkdir()
    (tmp_path / "loop7" / "options").write_text("rw\nbarrier\nerrors=remount-ro\ncommit=5\n")
    assert filesystems.errors_option(superblock, tmp_path) == "remount-ro"


def ext4(path: Path, *, uuid: bytes, errors: int) -> str:
    data = bytearray(4096)
    data[1024 + 0x38 : 1024 + 0x3E] = b"\x53\xef\x01\x00" + errors.to_bytes(2, "little")
    data[1024 + 0x68 : 1024 + 0x78] = uuid
    path.write_bytes(data)
    return str(path)


def test_what_images_say_before_they_are_mounted(tmp_path) -> None:
    a = ext4(tmp_path / "a", uuid=b"x" * 16, errors=3)
    b = ext4(tmp_path / "b", uuid=b"x" * 16, errors=2)
    c = ext4(tmp_path / "c", uuid=b"y" * 16, errors=1)
    ves = {a: "lxc:a", b: "lxc:b", c: "lxc:c", str(tmp_path / "gone"): "lxc:d"}
    none = RepairTable(reserve="0", reserve_percent=0)
    found = images.look(ves, none, {})
    assert [(one.name, one.level) for one in found] == [
        ("image", "critical"),
        ("image", "warning"),
        ("uuid", "warning"),
    ]
    assert "lxc:a" in found[0].text
    assert "lxc:d" in found[1].text
    assert a in found[2].text
    assert c not in found[2].text


def test_a_clone_that_would_touch_the_reserve_is_told_before_it_is_needed(tmp_path) -> None:
    a = ext4(tmp_path / "a", uuid=b"x" * 16, errors=2)
    (only,) = images.look({a: "lxc:a"}, RepairTable(reserve="1024T"), {})
    assert (only.name, only.level) == ("clone space", "warning")
    assert not images.look({a: "lxc:a"}, RepairTable(reserve="0", reserve_percent=0), {})


async def test_a_disk_that_does_not_answer_holds_up_no_doctor(monkeypatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(images, "look", lambda *_: answered.wait(60))
    monkeypatch.setattr(images, "_PATIENCE_S", 0.01)
    nothing: Any = SimpleNamespace(view=NodeView())
    try:
        (only,) = await images.examine(nothing, RepairTable())
    finally:
        answered.set()
    assert (only.name, only.level) == ("images", "warning")


def rule_set(*to: str, name: str = "tell") -> RuleSet:
    text = f'[[rule]]\nname = "{name}"\n[[rule.step]]\ndo = "notify"\nto = {list(to)}\n'
    found, problems = assemble([("a.toml", text.replace("'", '"'))])
    assert not problems
    return found


def test_a_node_without_rules_does_nothing_and_tells_nobody() -> None:
    _, mistakes = assemble([("a.toml", "[[rule]]")])
    for problems, remedy in (([], "fswatchd.toml"), (mistakes, "fswatch rules check")):
        (only,) = rules.examine(RuleSet(), problems)
        assert (only.code, only.level) == ("FSW-RULE-NONE", "critical")
        assert remedy in only.remedy


def test_rules_of_before_are_told_as_such() -> None:
    _, mistakes = assemble([("a.toml", "[[rule]]")])
    (only,) = rules.examine(rule_set("*"), mistakes)
    assert (only.code, only.level) == ("FSW-RULE-LAST-GOOD", "warning")
    assert only.remedy
    (only,) = rules.examine(rule_set("*"), [])
    assert (only.level, only.text) == ("ok", "1 in force")


@pytest.mark.parametrize(
    ("to", "wrong"),
    [
        (["pager"], "pager"),
        (["ops", "night-*"], "night-*"),
        (["pager", "chat"], "pager, chat"),
        (["ops"], None),
        (["*"], None),
        (["o?s", "mail"], None),
        (["drill"], None),
    ],
)
def test_a_rule_that_tells_a_channel_that_is_not_there(to: list[str], wrong: str | None) -> None:
    found = rules.unheard(rule_set(*to), ["ops", "mail"])
    assert [one.level for one in found] == (["warning"] if wrong else [])
    if wrong:
        assert found[0].name == "rule tell"
        assert f"tell {wrong}, and" in found[0].text
        assert "ops, mail" in found[0].remedy
    assert not rules.unheard(rule_set(*to), []), "that there is none at all is told once"


def test_the_shipped_rules_tell_whoever_is_there() -> None:
    shipped, problems = files.load([files.embedded_rules()])
    assert shipped.rules
    assert [one.level for one in rules.examine(shipped, problems)] == ["ok"]
    assert not rules.unheard(shipped, ["ops"])


def test_a_channel_that_fails_now_is_named() -> None:
    failing = {"mail": "HTTP 500", "drill:declared:x": "gone"}
    found = node.channels(["ops", "mail"], failing)
    assert [(one.name, one.level) for one in found] == [
        ("channels", "ok"),
        ("channel mail", "warning"),
    ]
    assert "HTTP 500" in found[1].text
    assert "fswatch notify test mail" in found[1].remedy
    assert [one.level for one in node.channels(["ops", "mail"], {})] == ["ok"]
    assert [one.level for one in node.channels([], {})] == ["warning"]


async def test_all_of_it_is_asked(monkeypatch) -> None:
    """That doctor is given the rules and the channels, and not only could be."""
    monkeypatch.setattr(node, "tools", _nothing)
    monkeypatch.setattr(images, "examine", _nothing)
    ops = ChannelTable(kind="webhook", url="http://192.0.2.1/")
    keeper: Any = SimpleNamespace(current=rule_set("pager"), problems=[])
    seen: Any = SimpleNamespace(
        view=NodeView(),
        problems={},
        scanner=SimpleNamespace(name="mountinfo"),
        unreached=list,
    )
    found = await doctor.examine(
        Config(channel={"ops": ops}), [], seen, keeper, {"ops": "HTTP 500"}
    )
    assert {"FSW-DOCTOR-TO", "FSW-DOCTOR-CHANNEL", "FSW-DOCTOR-RULES"} <= {o.code for o in found}


async def _nothing(*_: object) -> list[Any]:
    return []
