"""Volumes of LVM: cloned, exchanged, kept and deleted by what they are, wherever it is cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd import process
from fswatchd.engine.originals import delete_original
from fswatchd.errors import RefusedError
from fswatchd.inventory.model import Volume as Declared
from fswatchd.inventory.view import NodeView
from fswatchd.kernel import block
from fswatchd.repair import (
    clone,
    lvm,
    lvm_storage,
    resume,
    rollback,
    scope,
    storage,
    ve_control,
    verify,
)
from fswatchd.repair.clone_repair import CloneRepair
from fswatchd.repair.journal import RepairJournal
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.outage import Outage
from fswatchd.repair.scope import Target
from fswatchd.repair.swap import StaleError, SwapError
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionSettings, Next, StepEnded, StepResult
from tests.unit import builders
from tests.unit.repair.lvm_node import SECTORS, KilledError, LvmNode, hold
from tests.unit.repair.test_outage import VE

SETTINGS = ActionSettings()
ITS_OWN = replace(VE, volumes=(Declared(device="/dev/vg/thin"),))
INCIDENT = builders.incident().incident_id
CLONE = f"thin.fswatchd-clone-{INCIDENT}"
DAMAGED = f"thin.damaged-{INCIDENT}"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> LvmNode:
    made = LvmNode(monkeypatch)
    monkeypatch.setattr(lvm_storage, "_open", hold(made))
    made.add("thin", "pve-vm-101")
    return made


def volume(node: LvmNode, name: str = "thin") -> LogicalVolume:
    return LogicalVolume(path=f"/dev/vg/{name}", uuid=node.device_uuid(name))


async def cloned(node: LvmNode) -> LogicalVolume:
    await storage.of(volume(node), SETTINGS).share(f"/dev/vg/{CLONE}")
    return volume(node, CLONE)


def test_what_lvs_of_a_repaired_volume_said_is_read() -> None:
    """Recorded on Debian 13 after a repair: the original is kept beside it."""
    text = Path(__file__).with_name("lvs.json").read_text()
    found = {row.name: row for row in lvm.rows(f"  WARNING: what LVM says before.\n{text}")}
    assert found.keys() == {
        *("lvol0_pmspare", "plain", "pool", "pool_tdata", "pool_tmeta"),
        *("thin", "thin.damaged-20261122-rjenu"),
    }
    thin = found["thin"]
    assert (thin.group, thin.pool, thin.tags, thin.unfit) == ("vg", "pool", ("pve-vm-101",), None)
    assert thin.device_uuid == (
        "LVM-CYv0XRqYGtF2fL8aAnR0Tv21U1tQ665mWT2XoVfzuMhjRSFCzC6fqGLgdVzvPaUH"
    )
    assert thin.is_(LogicalVolume(path="/dev/vg/thin", uuid=thin.device_uuid))
    assert (found["plain"].unfit, found["plain"].is_thin) == (None, False)
    for name in ("pool", "pool_tdata", "lvol0_pmspare"):
        assert found[name].unfit


@pytest.mark.parametrize("text", ["", "{", "[]", '{"log": []}', '{"report": [{"lv": [{}]}]}'])
async def test_what_is_no_report_is_an_error_and_not_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    async def run(argv: Any, **_: object) -> process.Completed:
        return process.Completed(argv=argv, returncode=0, output=text, duration_s=0.0)

    monkeypatch.setattr(process, "run", run)
    with pytest.raises(OSError, match="LVM does not say"):
        await lvm.show("/dev/vg/thin")


# --- whether it can be ------------------------------------------------------------------------


async def test_a_thin_volume_in_a_pool_with_room_can_be_cloned(node: LvmNode) -> None:
    await storage.of(volume(node), SETTINGS).prepare()
    assert storage.of(volume(node), SETTINGS).place == "vg/pool"


@pytest.mark.parametrize(
    ("group", "volume_attr", "segtype", "why"),
    [
        ("wz--nc", "Vwi-aotz--", "thin", "shared"),
        ("wz--ns", "Vwi-aotz--", "thin", "shared"),
        ("wzx-n-", "Vwi-aotz--", "thin", "exported"),
        ("wz-pn-", "Vwi-aotz--", "thin", "missing"),
        ("rz--n-", "Vwi-aotz--", "thin", "read-only"),
        ("wz--n-", "Vri-aotz--", "thin", "read-only"),
        ("wz--n-", "Vwi-aotzD-", "thin", "'D'"),
        ("wz--n-", "Owi-aotz--", "thin", "merged"),
        ("wz--n-", "-wi-ao----", "striped", "striped"),
        ("wz--n-", "Cwi-aoC---", "cache", "cache"),
        ("wz--n-", "rwi-aor---", "raid1", "raid1"),
        ("wz--n-", "owi-aos---", "linear", "snapshots"),
        ("wz--n-", "-wi-XX--X-", "linear", "'X'"),
        ("wz--n-", "-wI-ao----", "linear", "pvmove"),
    ],
)
async def test_what_is_not_simply_thin_or_plain_is_refused_with_the_reason(
    node: LvmNode, group: str, volume_attr: str, segtype: str, why: str
) -> None:
    node.group_attr = group
    node.volumes["thin"].attr, node.volumes["thin"].segtype = volume_attr, segtype
    with pytest.raises(StepEnded, match=why) as ended:
        await storage.of(volume(node), SETTINGS).prepare()
    assert ended.value.result.result == "refused"
    assert why in ended.value.result.detail


@pytest.mark.parametrize(
    "use", ["100/4096 158000/163840", "4050/4096 1000/163840"], ids=["data", "metadata"]
)
async def test_no_room_is_said_as_that(node: LvmNode, use: str) -> None:
    node.pool_status = node.pool_status.replace("100/4096 1000/163840", use)
    with pytest.raises(StepEnded) as ended:
        await storage.of(volume(node), SETTINGS).prepare()
    assert ended.value.result.result == "no room"
    assert "vg/pool" in ended.value.result.detail


async def test_a_pool_that_does_not_write_takes_no_clone(node: LvmNode) -> None:
    node.pool_status = node.pool_status.replace("- rw", "- ro")
    with pytest.raises(OSError, match="in mode ro"):
        await storage.of(volume(node), SETTINGS).prepare()


async def test_a_name_that_leaves_no_room_for_a_clones_is_refused(node: LvmNode) -> None:
    node.volumes["x" * 90] = node.volumes.pop("thin")
    with pytest.raises(StepEnded, match="name"):
        await storage.of(volume(node, "x" * 90), SETTINGS).prepare()


@pytest.mark.parametrize(("fstype", "may"), [("ext4", True), ("xfs", True), ("btrfs", False)])
def test_a_volume_with_btrfs_is_not_cloned(node: LvmNode, fstype: str, *, may: bool) -> None:
    filesystem = builders.filesystem(fstype=fstype)
    target = Target.stopped(filesystem, VE, volume(node))
    if may:
        assert scope.require_volume(target) == volume(node)
        return
    with pytest.raises(StepEnded, match=fstype):
        scope.require_volume(target)


# --- clones -----------------------------------------------------------------------------------


async def test_a_clone_has_the_tags_of_its_volume_and_ours(node: LvmNode) -> None:
    await cloned(node)
    assert node.volumes[CLONE].tags == [lvm_storage.TAG, "pve-vm-101"]


async def test_what_lvm_cannot_freeze_has_no_clone_while_it_is_mounted(node: LvmNode) -> None:
    node.refuses_snapshots = True
    node.volumes["thin"].held = True
    with pytest.raises(clone.NotShareableError, match="while it is mounted"):
        await cloned(node)
    node.volumes["thin"].held = False
    with pytest.raises(OSError, match="suspend"):
        await cloned(node)


async def test_only_the_very_clone_is_deleted(node: LvmNode) -> None:
    made, lies_in = await cloned(node), storage.of(volume(node), SETTINGS)
    other = replace(made, uuid="LVM-" + "z" * 64)
    await lies_in.discard(other)
    await lies_in.discard(volume(node))
    assert set(node.volumes) == {"thin", CLONE}
    await lies_in.discard(made)
    await lies_in.discard(made)
    assert set(node.volumes) == {"thin"}


async def test_of_what_was_not_written_down_only_what_has_our_tag_is_deleted(node: LvmNode) -> None:
    await cloned(node)
    node.add(f"{CLONE}-2", "somebody")
    lies_in = storage.of(volume(node), SETTINGS)
    for name in (CLONE, f"{CLONE}-2", "never-made", "thin"):
        await lies_in.discard_unfinished(f"/dev/vg/{name}")
    assert set(node.volumes) == {"thin", f"{CLONE}-2"}


async def test_a_name_that_is_taken_gets_a_number(node: LvmNode) -> None:
    node.add(CLONE)
    found = await storage.of(volume(node), SETTINGS).free_name(f"/dev/vg/{CLONE}")
    assert found == f"/dev/vg/{CLONE}-2"


async def test_a_write_changes_the_stamp_and_another_name_has_none(node: LvmNode) -> None:
    one = volume(node)
    before = one.stamp()
    assert one.is_unchanged(before)
    node.volumes["thin"].written += 8
    assert not one.is_unchanged(before)
    node.volumes["thin"].active = False
    assert one.stamp() is None
    assert not one.is_unchanged(None)


# --- plain volumes ------------------------------------------------------------------------------


def no_progress() -> Any:
    return lambda _share: None


async def test_a_plain_volume_with_room_beside_it_can_be_cloned_also_while_it_is_mounted(
    node: LvmNode,
) -> None:
    node.make_plain("thin")
    node.volumes["thin"].held = True
    lies_in = storage.of(volume(node), SETTINGS)
    await lies_in.prepare()
    assert (lies_in.live, lies_in.place) == (True, "vg")
    assert lies_in.bytes_to_copy() == SECTORS * 512
    with pytest.raises(clone.NotShareableError):
        await lies_in.share(f"/dev/vg/{CLONE}")
    assert set(node.volumes) == {"thin"}
    made = await lies_in.make(f"/dev/vg/{CLONE}", no_progress)
    assert made == volume(node, CLONE)
    assert node.copies == [CLONE]
    assert node.volumes[CLONE].tags == [lvm_storage.TAG, "pve-vm-101"]


async def test_a_snapshot_is_never_made_while_the_kernel_has_stopped_a_thin_one(
    node: LvmNode,
) -> None:
    lies_in = storage.of(volume(node), SETTINGS)
    assert (lies_in.live, lies_in.bytes_to_copy()) == (False, 0)


async def test_a_group_without_room_for_all_of_it_is_said_as_that(node: LvmNode) -> None:
    node.make_plain("thin")
    node.free_bytes = SECTORS * 512 + (5 << 30) - 1  # 5 % of the group stay free
    lies_in = storage.of(volume(node), SETTINGS)
    with pytest.raises(StepEnded, match="volume group vg") as ended:
        await lies_in.prepare()
    assert ended.value.result.result == "no room"
    with pytest.raises(StepEnded, match="volume group vg"):
        await lies_in.make(f"/dev/vg/{CLONE}", no_progress)
    assert set(node.volumes) == {"thin"}


@pytest.mark.parametrize("what", ["snapshot", "size"])
async def test_what_somebody_has_done_to_it_meanwhile_ends_the_exchange(
    node: LvmNode, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    node.make_plain("thin")
    lies_in, before = storage.of(volume(node), SETTINGS), volume(node)
    made = await lies_in.make(f"/dev/vg/{CLONE}", no_progress)
    names = node.names()
    if what == "snapshot":
        node.volumes["thin"].attr = "owi-aos---"
    else:
        grown = before.devno
        monkeypatch.setattr(block, "sectors", lambda devno: SECTORS + 8 * (devno == grown))
    with pytest.raises(SwapError):
        await lies_in.exchange(made, f"/dev/vg/{DAMAGED}")
    assert node.names() == names


async def test_a_volume_that_has_grown_since_can_still_go_back(
    node: LvmNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.make_plain("thin")
    original = volume(node)
    made = await storage.of(original, SETTINGS).make(f"/dev/vg/{CLONE}", no_progress)
    await storage.of(original, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}")
    repaired, grown = volume(node), made.devno
    monkeypatch.setattr(block, "sectors", lambda devno: SECTORS + 8 * (devno == grown))
    kept = replace(original, path=f"/dev/vg/{DAMAGED}")
    await storage.of(repaired, SETTINGS).exchange(kept, "/dev/vg/thin.repaired")
    assert original.is_at("/dev/vg/thin")


async def test_a_kept_original_of_which_somebody_has_made_a_snapshot_stays(node: LvmNode) -> None:
    node.make_plain("thin")
    node.volumes[DAMAGED] = node.volumes.pop("thin")
    node.volumes[DAMAGED].attr = "owi-a-s---"
    gone, story = await delete_original(f"/dev/vg/{DAMAGED}", volume(node, DAMAGED).describe())
    assert (gone, "snapshots" in story) == (False, True)
    assert set(node.volumes) == {DAMAGED}


async def test_a_group_that_other_nodes_use_gets_no_volumes_of_ours(
    node: LvmNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.make_plain("thin")
    devno = volume(node).devno
    monkeypatch.setattr(scope, "_devno", lambda _: devno)
    shared = replace(VE, volumes=(Declared(device="/dev/vg/thin", shared=True),))
    for ve, may in ((shared, False), (replace(shared, volumes=()), True)):
        target = Target.stopped(builders.filesystem(fstype="ext4"), ve, volume(node))
        if may:
            assert scope.require_volume(target) == volume(node)
            continue
        with pytest.raises(StepEnded, match="other nodes"):
            scope.require_volume(target)


async def test_what_cannot_be_copied_leaves_nothing_behind(node: LvmNode) -> None:
    node.make_plain("thin")
    node.copying_fails = True
    with pytest.raises(OSError, match="Input/output error"):
        await storage.of(volume(node), SETTINGS).make(f"/dev/vg/{CLONE}", no_progress)
    assert set(node.volumes) == {"thin"}


async def test_segments_of_several_kinds_are_of_no_kind(
    monkeypatch: pytest.MonkeyPatch, node: LvmNode
) -> None:
    node.make_plain("thin")
    real = node._lvs

    def lvs(words: list[str]) -> tuple[int, str]:
        code, output = real(words)
        report = json.loads(output[output.index("{") :])
        (row,) = report["report"][0]["lv"]
        report["report"][0]["lv"].append({**row, "segtype": "striped"})
        return code, json.dumps(report)

    monkeypatch.setattr(node, "_lvs", lvs)
    with pytest.raises(StepEnded, match="linear and striped"):
        await storage.of(volume(node), SETTINGS).prepare()


# --- exchanging -------------------------------------------------------------------------------


async def test_an_exchange_gives_each_the_other_place(node: LvmNode) -> None:
    before, made = volume(node), await cloned(node)
    await storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}")
    assert made.is_at("/dev/vg/thin")
    assert before.is_at(f"/dev/vg/{DAMAGED}")
    assert node.volumes["thin"].tags == ["pve-vm-101"]


async def test_what_was_written_to_since_is_not_exchanged(
    monkeypatch: pytest.MonkeyPatch, node: LvmNode
) -> None:
    before, made = volume(node), await cloned(node)
    names, stamp = node.names(), before.stamp()
    with monkeypatch.context() as patch:
        patch.setattr(LogicalVolume, "is_unchanged", lambda *_: False)
        with pytest.raises(StaleError):
            await storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}", stamp)
    assert node.names() == names
    await storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}", stamp)
    assert made.is_at("/dev/vg/thin")


@pytest.mark.parametrize("who", ["thin", CLONE])
async def test_what_somebody_has_open_is_not_exchanged(node: LvmNode, who: str) -> None:
    before, made = volume(node), await cloned(node)
    node.volumes[who].held = True
    names = node.names()
    with pytest.raises(SwapError):
        await storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}")
    assert node.names() == names


async def test_a_deadline_between_the_renames_waits_for_the_second(
    monkeypatch: pytest.MonkeyPatch, node: LvmNode
) -> None:
    before, made = volume(node), await cloned(node)
    between, go_on = asyncio.Event(), asyncio.Event()
    real = lvm.rename

    async def rename(old: str, new: str) -> None:
        if new == "/dev/vg/thin":
            between.set()
            await go_on.wait()
        await real(old, new)

    monkeypatch.setattr(lvm, "rename", rename)
    task = asyncio.create_task(storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}"))
    await between.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not made.is_at("/dev/vg/thin")
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.is_at("/dev/vg/thin")
    assert before.is_at(f"/dev/vg/{DAMAGED}")


async def test_where_the_second_rename_fails_the_first_is_taken_back(node: LvmNode) -> None:
    before, made = volume(node), await cloned(node)
    real, failed = node._lvrename, []

    def rename(words: list[str]) -> tuple[int, str]:
        if words[-1] == "vg/thin" and not failed:
            failed.append(1)
            return 5, "  it does not like that\n"
        return real(words)

    node._lvrename = rename  # type: ignore[method-assign]
    with pytest.raises(SwapError, match="does not like"):
        await storage.of(before, SETTINGS).exchange(made, f"/dev/vg/{DAMAGED}")
    assert before.is_at("/dev/vg/thin")


def never_back(node: LvmNode) -> None:
    """Nothing is given the volume's name."""
    real = node._lvrename

    def rename(words: list[str]) -> tuple[int, str]:
        return (5, "  it does not like that\n") if words[-1] == "vg/thin" else real(words)

    node._lvrename = rename  # type: ignore[method-assign]


@pytest.mark.parametrize("fault", [never_back, LvmNode.kernel_follows_no_more])
async def test_where_an_exchange_stays_half_done_both_are_left_and_the_truth_is_told(
    monkeypatch: pytest.MonkeyPatch,
    node: LvmNode,
    stopped: list[str],
    fault: Callable[[LvmNode], None],
) -> None:
    context, before = Context(node), volume(node)
    await context.journal(image=before.describe(), ve=str(VE.ve_id), stopping=True)
    repair = Repair(context)
    target = Target.stopped(builders.filesystem(), VE, before)
    made = repair._make_clone

    async def make(target: Target) -> None:
        await made(target)
        fault(node)

    monkeypatch.setattr(repair, "_make_clone", make)
    with pytest.raises(StepEnded) as ended:
        await finished(repair, target, RepairJournal.read(context.record.journal))
    assert ended.value.result.result == "half exchanged"
    assert ended.value.result.next is Next.OPERATOR
    assert f"is /dev/vg/{DAMAGED}" in ended.value.result.detail
    assert "untouched" not in ended.value.result.detail
    assert node.device_uuid(DAMAGED) == before.uuid
    assert len(node.volumes) == 2, "the repaired one is not deleted"
    assert stopped == []


async def finished(repair: CloneRepair, target: Target, journal: RepairJournal) -> None:
    async with repair:
        repair.resume_outage(target, journal)
        await repair.finish(target, fresh=False)


async def test_a_rollback_that_stays_half_done_starts_nothing(
    node: LvmNode, stopped: list[str]
) -> None:
    original = volume(node)
    repaired = await cloned(node)
    await storage.of(original, SETTINGS).exchange(repaired, f"/dev/vg/{DAMAGED}")
    undo = {
        "image": "/dev/vg/thin",
        "original": f"/dev/vg/{DAMAGED}",
        "original_file": original.describe(),
        "ve": str(VE.ve_id),
    }
    context: Any = Context(node, undo=undo)
    await context.journal(stopping=True)
    node.kernel_follows_no_more()
    with pytest.raises(StepEnded) as ended:
        await rollback.run(context)
    assert ended.value.result.result == "half exchanged"
    assert ended.value.result.detail.endswith("stays stopped")
    assert stopped == []


# --- a whole repair, cut off ------------------------------------------------------------------


class Context:
    """A step with its journal, on a node where the VE was stopped by us."""

    def __init__(self, node: LvmNode, **facts: Any) -> None:
        self.settings = SETTINGS
        self.incident = builders.incident(**facts)
        self.record = SimpleNamespace(journal={})
        self.inventory = SimpleNamespace(
            view=NodeView(ves={VE.ve_id: ITS_OWN}), refresh=self._refresh
        )
        self.node = node

    async def _refresh(self) -> None: ...

    async def lock_ve(self, ve: Any) -> Any:
        return ve

    async def about_to_start(self, _: object) -> None: ...

    async def about_to_stop(self, _: object) -> None: ...

    def note(self, _: str) -> None: ...

    def progress(self, *_: object) -> None: ...

    async def journal(self, **facts: Any) -> None:
        self.record.journal |= facts


class Repair(CloneRepair):
    """All but the tools of the filesystem, and the VE."""

    def __init__(self, context: Any) -> None:
        super().__init__(context, FsckStep(do="fsck"))
        self.started_on = ""

    async def _cure(self) -> None: ...

    async def _prove(self) -> None: ...

    async def start(self, target: Target) -> StepResult:
        self.started_on = self._context.node.volumes["thin"].uuid  # type: ignore[attr-defined]
        return StepResult(next=Next.CONTINUE, result="repaired", detail="")

    async def run(self) -> StepResult:
        raise AssertionError("it was begun anew although the VE is stopped")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts of the VE, on what its volume was then."""
    starts: list[str] = []

    async def released(*_: object) -> None: ...

    async def running(*_: object) -> Any:
        return VE if starts else None

    async def start(_ve: object, _settings: object, found: LogicalVolume) -> str:
        assert found.is_at("/dev/vg/thin")
        starts.append(found.uuid)
        return "exit code 0"

    async def mounted(_context: object, ve: Any, *_: object) -> Any:
        return (ve, None) if starts else f"{ve.ve_id} did not come up"

    monkeypatch.setattr(ve_control, "is_running", lambda _: False)
    monkeypatch.setattr(ve_control, "wait_released", released)
    monkeypatch.setattr(ve_control, "wait_running", running)
    monkeypatch.setattr(ve_control, "start", start)
    monkeypatch.setattr(verify, "find_mounted", mounted)
    return starts


POINTS = [
    (when, program, count)
    for program, times in (("lvcreate", 1), ("dd", 1), ("lvchange", 1), ("lvrename", 2))
    for count in range(1, times + 1)
    for when in ("before", "after")
]


@pytest.mark.parametrize("put_away", [False, True], ids=["active", "after a boot"])
@pytest.mark.parametrize(
    ("plain", "point"),
    [
        *((False, point) for point in (None, *POINTS) if point is None or point[1] != "dd"),
        *((True, point) for point in (None, *POINTS)),
    ],
)
@pytest.mark.usefixtures("stopped")
async def test_wherever_it_is_killed_the_ve_starts_on_the_repaired_volume(
    node: LvmNode, point: tuple[str, str, int] | None, *, plain: bool, put_away: bool
) -> None:
    if plain:
        node.make_plain("thin")
    context, before = Context(node), volume(node)
    await context.journal(image=before.describe(), ve=str(VE.ve_id), stopping=True)
    target = Target.stopped(builders.filesystem(), VE, before)
    node.killed = point
    if point is not None:
        with pytest.raises(KilledError):
            await Repair(context).finish(target, fresh=False)
    node.killed = None
    for one in node.volumes.values():
        one.active = not put_away
    repair = Repair(context)
    ended = await resume.resume(repair, context)  # type: ignore[arg-type]
    assert ended.result == "repaired"
    assert node.volumes.keys() == {"thin", DAMAGED}
    assert before.is_at(f"/dev/vg/{DAMAGED}")
    assert repair.started_on == node.volumes["thin"].uuid != node.volumes[DAMAGED].uuid
    assert node.volumes["thin"].tags == ["pve-vm-101"]


@pytest.mark.parametrize(
    "point", [None, *((when, "lvrename", n) for when in ("before", "after") for n in (1, 2))]
)
async def test_a_rollback_that_is_killed_ends_with_the_original_in_place(
    monkeypatch: pytest.MonkeyPatch,
    node: LvmNode,
    stopped: list[str],
    point: tuple[str, str, int] | None,
) -> None:
    original = volume(node)
    repaired = await cloned(node)
    await storage.of(original, SETTINGS).exchange(repaired, f"/dev/vg/{DAMAGED}")
    node.commands.clear()
    undo = {
        "image": "/dev/vg/thin",
        "original": f"/dev/vg/{DAMAGED}",
        "original_file": original.describe(),
        "repaired_file": replace(repaired, path="/dev/vg/thin").describe(),
        "ve": str(VE.ve_id),
    }
    context: Any = Context(node, undo=undo)
    rollback.check(context.incident, context.inventory.view, discard_newer=True)
    node.killed = point
    if point is not None:
        with monkeypatch.context() as patch:

            async def nothing(*_: object) -> None: ...

            patch.setattr(Outage, "__aexit__", nothing)
            with pytest.raises(KilledError):
                await rollback.run(context)
    node.killed = None
    ended = await rollback.run(context)
    assert ended.result == "rolled back"
    kept = f"thin.repaired-{INCIDENT}"
    assert node.volumes.keys() == {"thin", kept}
    assert original.is_at("/dev/vg/thin")
    assert repaired.is_at(f"/dev/vg/{kept}")
    assert stopped == [original.uuid]


@pytest.mark.parametrize("put_away", [False, True], ids=["active", "after a boot"])
async def test_a_ve_that_has_another_volume_by_now_is_not_rolled_back(
    node: LvmNode, stopped: list[str], *, put_away: bool
) -> None:
    original = volume(node)
    repaired = await cloned(node)
    await storage.of(original, SETTINGS).exchange(repaired, f"/dev/vg/{DAMAGED}")
    node.add("restored")
    undo = {
        "image": "/dev/vg/thin",
        "original": f"/dev/vg/{DAMAGED}",
        "original_file": original.describe(),
        "repaired_file": replace(repaired, path="/dev/vg/thin").describe(),
        "ve": str(VE.ve_id),
    }
    for one in node.volumes.values():
        one.active = not put_away
    context: Any = Context(node, undo=undo)
    pointed = replace(VE, volumes=(Declared(device="/dev/vg/restored"),))
    context.inventory.view = NodeView(ves={VE.ve_id: pointed})
    if put_away:  # what cannot be seen yet the step asks about
        rollback.check(context.incident, context.inventory.view, discard_newer=True)
    else:
        with pytest.raises(RefusedError, match="would be started on /dev/vg/restored"):
            rollback.check(context.incident, context.inventory.view, discard_newer=True)
    with pytest.raises(StepEnded, match="would be started on /dev/vg/restored") as ended:
        await rollback.run(context)
    assert ended.value.result.result == "not its volume"
    assert repaired.is_at("/dev/vg/thin")
    assert stopped == []


@pytest.mark.parametrize("put_away", [False, True], ids=["active", "after a boot"])
async def test_a_volume_that_was_made_anew_since_is_not_rolled_back(
    node: LvmNode, stopped: list[str], *, put_away: bool
) -> None:
    original = volume(node)
    repaired = await cloned(node)
    await storage.of(original, SETTINGS).exchange(repaired, f"/dev/vg/{DAMAGED}")
    del node.volumes["thin"]
    anew = node.add("thin")
    undo = {
        "image": "/dev/vg/thin",
        "original": f"/dev/vg/{DAMAGED}",
        "original_file": original.describe(),
        "repaired_file": replace(repaired, path="/dev/vg/thin").describe(),
        "ve": str(VE.ve_id),
    }
    for one in node.volumes.values():
        one.active = not put_away
    with pytest.raises(StepEnded, match="not the volume that the repair has put there"):
        await rollback.run(Context(node, undo=undo))  # type: ignore[arg-type]
    assert node.volumes["thin"] is anew
    assert stopped == []


# --- what is kept -----------------------------------------------------------------------------


async def test_a_kept_original_is_deleted_by_what_it_is(node: LvmNode) -> None:
    node.volumes[DAMAGED] = node.volumes.pop("thin")
    original, path = volume(node, DAMAGED), f"/dev/vg/{DAMAGED}"
    node.volumes[DAMAGED].held = True
    gone, story = await delete_original(path, original.describe())
    assert (gone, "in use" in story) == (False, True)
    node.volumes[DAMAGED].held = False
    node.volumes[DAMAGED].active = False
    gone, story = await delete_original(path, original.describe())
    assert (gone, "was deleted" in story, node.names()) == (True, True, {})


async def test_another_volume_under_the_originals_name_stays(node: LvmNode) -> None:
    node.volumes[DAMAGED] = node.volumes.pop("thin")
    other = replace(volume(node, DAMAGED), uuid="LVM-" + "z" * 64)
    await delete_original(f"/dev/vg/{DAMAGED}", other.describe())
    assert set(node.volumes) == {DAMAGED}


def test_the_rule_of_udev_names_what_is_ours() -> None:
    """The device's name has its hyphens doubled."""
    import fnmatch
    import re

    rule = Path("data/systemd/fswatchd.rules").read_text()
    found = re.search(r'ATTR\{dm/name\}=="([^"]+)"', rule)
    assert found is not None
    patterns = found[1].split("|")

    def hidden(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    for suffix in ("fswatchd-clone-", "fswatchd-preview-", "damaged-", "repaired-"):
        assert hidden(f"vg-thin.{suffix}20261121-abcde".replace("-", "--").replace("--", "-", 1))
    for name in ("vg-thin", "vg-vm--101--disk--0", "vg-fswatchd", "vg-x.damaged--by--me"):
        assert not hidden(name)
