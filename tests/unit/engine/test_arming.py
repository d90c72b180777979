"""Disarms of the node, of VEs and of labels, and who has armed again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.arming import Arming
from fswatchd.engine.history import History
from fswatchd.engine.operations import Operations
from fswatchd.engine.trust import Trust
from fswatchd.errors import ConflictError, RefusedError, UnknownTargetError
from fswatchd.events import VeState
from fswatchd.inventory.model import Ve, VeId
from fswatchd.situation import Disarm
from fswatchd.store.store import Store
from tests.unit import builders


def ve(name: str, **changes: Any) -> Ve:
    known = {"platform": "lxc", "native_id": name, "name": name, "state": VeState.RUNNING}
    return Ve(ve_id=VeId(f"lxc:{name}"), **{**known, **changes})


GOLD = ve("gold", labels={"tier": "gold"})
SILVER = ve("silver", labels={"tier": "silver"})
UNTOLD = ve("untold", labels_known=False)
SCRATCH = ve("scratch", scratch=True)
VES = {one.ve_id: one for one in (GOLD, SILVER, UNTOLD, SCRATCH)}


class Node:
    def __init__(self, store: Store) -> None:
        self.history = History(store)
        self.trust = Trust(store, lambda *_: None)
        self.operations = Operations(store)
        self.poked = 0
        inventory = SimpleNamespace(view=SimpleNamespace(ves=VES))
        self.arming = Arming(
            self.history, cast("Any", inventory), self.trust, self.operations, self._poke
        )

    def _poke(self) -> None:
        self.poked += 1


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store = Store(tmp_path / "fswatchd.db")
    await store.open()
    yield Node(store)
    await store.close()


async def test_a_label_is_disarmed_for_those_that_have_it_and_those_that_may(node: Node) -> None:
    await node.arming.disarm(None, "tier=gold", "new disks", "alice", 3600.0)
    why = node.arming.why_disarmed(["lxc:gold"])
    assert why == "label tier=gold was disarmed by alice: new disks"
    assert node.arming.why_disarmed(["lxc:silver"]) is None
    assert node.arming.why_disarmed(["lxc:untold"]) is not None
    assert node.arming.why_disarmed(["lxc:not-there-now"]) is not None
    with pytest.raises(RefusedError, match="for another 60 min"):
        node.arming.refuse_if_disarmed(["lxc:gold"])
    await node.arming.arm(None, "tier=gold", "", "bob")
    assert node.arming.why_disarmed(["lxc:gold"]) is None
    assert node.poked == 2


async def test_who_did_it_why_and_for_how_long_is_kept(node: Node) -> None:
    await node.arming.disarm(None, None, "storage move", "alice", 7200.0)
    (kept,) = node.history.current_disarms()
    assert (kept.target, kept.reason, kept.by) == ("node", "storage move", "alice")
    assert kept.since_ns > 0
    assert kept.until_ns is not None
    await node.arming.arm(None, None, "moved", "bob")
    done = [(one["what"], one["by"], one["reason"]) for one in node.operations.latest(9)]
    assert done == [("disarm", "alice", "storage move"), ("arm", "bob", "moved")]
    assert "for 2 h" in node.operations.latest(9)[0]["result"]


async def test_the_node_is_armed_and_trusted_by_one_who_has_looked(node: Node) -> None:
    node.trust.doubt("records", "the database was set aside", heals=False)
    name, accepted = await node.arming.arm(None, None, "looked", "alice")
    assert (name, accepted) == ("node", ["the database was set aside"])
    assert "accepted: the database" in node.operations.latest(1)[0]["result"]
    with pytest.raises(ConflictError):
        await node.arming.arm(None, None, "", "alice")


async def test_arming_a_label_does_not_make_the_daemon_trust_itself(node: Node) -> None:
    await node.arming.disarm(None, "tier=gold", "x", "alice", None)
    node.trust.doubt("records", "the database was set aside", heals=False)
    assert (await node.arming.arm(None, "tier=gold", "", "alice"))[1] == []
    assert node.trust.why


async def test_what_a_person_has_asked_for_and_a_drill_go_on_in_doubt(node: Node) -> None:
    node.trust.doubt("source kmsg", "kmsg is deaf", heals=True)
    assert node.arming.why_doubted(builders.incident(ves=("lxc:gold",)))
    asked = builders.incident(ves=("lxc:gold",), requested_by="root")
    assert node.arming.why_doubted(asked) is None
    assert node.arming.why_doubted(builders.incident(ves=("lxc:scratch",))) is None
    assert node.arming.why_doubted(builders.incident(ves=("lxc:scratch", "lxc:gold")))
    assert node.arming.why_doubted(builders.incident(ves=()))


@pytest.mark.parametrize(
    ("target", "label"), [(None, "gold"), (None, "=gold"), (None, ""), ("gold", "tier=gold")]
)
async def test_what_is_no_label_is_refused(node: Node, target: Any, label: str) -> None:
    with pytest.raises(UnknownTargetError):
        await node.arming.disarm(target, label, "x", "alice", None)
    assert node.history.current_disarms() == ()


async def test_a_disarm_for_no_time_is_refused_and_not_just_over(node: Node) -> None:
    with pytest.raises(ValueError, match="no time at all"):
        await node.arming.disarm(None, None, "x", "alice", 0.0)
    assert node.poked == 0


@pytest.mark.parametrize("text", ["lxc:ve101", "ve101", "101", "lxc:101"])
async def test_a_ve_that_has_gone_is_armed_by_any_of_its_names(node: Node, text: str) -> None:
    await node.history.disarm(Disarm(target="lxc:ve101", reason="move", by="alice"))
    assert (await node.arming.arm(text, None, "", "bob"))[0] == "lxc:ve101"
    assert node.history.current_disarms() == ()
    with pytest.raises(UnknownTargetError):
        await node.arming.arm(text, None, "", "bob")


async def test_what_could_be_one_that_has_gone_or_another_one_is_asked_for(node: Node) -> None:
    await node.history.disarm(Disarm(target="incus:gold", reason="move", by="alice"))
    with pytest.raises(UnknownTargetError, match="incus:gold, lxc:gold"):
        await node.arming.arm("gold", None, "", "bob")
    assert (await node.arming.arm("incus:gold", None, "", "bob"))[0] == "incus:gold"


@pytest.mark.parametrize(
    ("label", "hint"), [("tier=gold", "arm --label tier=gold"), (None, "arm --node")]
)
async def test_who_arms_a_ve_is_told_what_else_holds_it(
    node: Node, label: str | None, hint: str
) -> None:
    await node.arming.disarm(None, label, "new disks", "alice", None)
    with pytest.raises(ConflictError) as caught:
        await node.arming.arm("gold", None, "", "bob")
    assert hint in caught.value.hint


async def test_a_label_with_a_line_break_makes_no_line_of_its_own(node: Node, caplog) -> None:
    caplog.set_level("INFO")
    label = "a\nb=c"
    assert await node.arming.disarm(None, label, "x\ny", "alice", None) == f"label {label}"
    assert (
        node.arming.why_disarmed(["lxc:untold"]) == "label a\\x0ab=c was disarmed by alice: x\\x0ay"
    )
    with pytest.raises(RefusedError) as caught:
        node.arming.refuse_if_disarmed(["lxc:untold"])
    assert "\n" not in caught.value.message
    await node.arming.arm(None, label, "", "bob")
    assert "\n" not in "".join(record.getMessage() for record in caplog.records)
