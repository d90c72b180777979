"""Whose a platform's lock is, after a kill. The lock is a word in a file, as Proxmox has it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd import process
from fswatchd.engine.step_context import StepContext
from fswatchd.incidents import StepRecord
from fswatchd.inventory.model import Ve
from fswatchd.inventory.view import NodeView
from fswatchd.platforms import proxmox
from fswatchd.platforms.proxmox_config import read_config
from fswatchd.repair.platform_lock import VeLocks
from fswatchd.store.store import StoreError
from tests.unit import builders

TAKE, UNLOCK = ("pct", "set", "101", "--lock", "disk"), ("pct", "unlock", "101")


class Node:
    """A container 101 of Proxmox with its file, and `pct`."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "101.conf"
        self.write("")
        self.journal: dict[str, Any] = {}
        self.asked: list[tuple[str, ...]] = []
        self.killed = ""

    def write(self, lock: str) -> None:
        """As pmxcfs and pct do: what is written is a new file."""
        new = self.file.with_suffix(".tmp")
        new.write_text("hostname: web\n" + (f"lock: {lock}\n" if lock else ""))
        new.rename(self.file)

    def lock(self) -> str | None:
        return read_config(self.file.read_text()).get("lock")

    def ve(self) -> Ve:
        config = read_config(self.file.read_text())
        return proxmox.describe("101", config, {}, file=str(self.file))

    async def run(self, argv: tuple[str, ...], **_: Any) -> process.Completed:
        self.asked.append(argv)
        if self.killed == "before it was written":
            raise KilledError
        self.write("disk" if argv == TAKE else "")
        if self.killed:
            raise KilledError
        return process.Completed(
            argv=argv, returncode=0, output="", duration_s=0.0, timed_out=False
        )

    async def note(self, **facts: Any) -> None:
        self.journal.update(facts)

    def daemon(self) -> VeLocks:
        """A new run of the daemon, whose inventory sees the file as it is."""
        inventory = SimpleNamespace(adjust=[], view=NodeView())

        async def refresh() -> None:
            seen = self.ve()
            for adjust in inventory.adjust:
                seen = adjust(seen)
            inventory.view = NodeView(ves={seen.ve_id: seen})

        inventory.refresh = refresh
        return VeLocks(cast("Any", inventory))


class KilledError(BaseException):
    """The daemon was killed in the middle."""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(tmp_path)
    monkeypatch.setattr(process, "run", made.run)
    return made


async def taken(node: Node) -> None:
    """An earlier run has taken the lock, and is gone."""
    locks = node.daemon()
    await locks.take(node.ve(), "one", node.note)
    assert node.lock() == "disk"


async def killed_while_it_takes(node: Node, killed: str) -> None:
    node.killed = killed
    with pytest.raises(KilledError):
        await node.daemon().take(node.ve(), "one", node.note)
    node.killed = ""


async def test_a_lock_that_was_taken_is_taken_over_and_given_back(node: Node) -> None:
    await taken(node)
    locks = node.daemon()
    assert await locks.adopt(node.journal["lock"], "one") is None
    assert locks.seen(node.ve()).busy is None
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == (None, [TAKE, UNLOCK])


async def test_a_platform_that_answers_late_hides_no_lock_of_ours(node: Node) -> None:
    """Where its files could not be read at the start nothing was taken over then."""
    await taken(node)
    locks = node.daemon()
    hidden = node.file.rename(node.file.with_suffix(".unmounted"))
    with suppress(FileNotFoundError):
        await locks.adopt(node.journal["lock"], "one")
    hidden.rename(node.file)
    incident = builders.incident(
        incident_id="one", steps=(StepRecord(do="fsck", journal=dict(node.journal)),)
    )
    book = SimpleNamespace(get=lambda _: incident)
    nothing = cast("Any", None)
    context = StepContext(
        cast("Any", book), nothing, nothing, nothing, nothing, locks, "one", index=0
    )
    assert not locks.holds(node.ve().ve_id)
    assert (await context.lock_ve(node.ve())).busy is None
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == (None, [TAKE, UNLOCK])


async def test_one_that_was_taken_by_somebody_else_since_is_not(node: Node) -> None:
    await taken(node)
    node.write("")
    node.write("disk")
    locks = node.daemon()
    problem = await locks.adopt(node.journal["lock"], "one")
    assert "take it away: pct unlock 101" in (problem or "")
    assert locks.seen(node.ve()).busy == "Proxmox: lock: disk"
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == ("disk", [TAKE])


@pytest.mark.parametrize("killed", ["before it was written", "after it was written"])
async def test_killed_while_it_is_taken_nobody_can_tell(node: Node, killed: str) -> None:
    """Either pct had written it by then, or somebody else has since."""
    await killed_while_it_takes(node, killed)
    node.write("disk")
    locks = node.daemon()
    assert "nobody can tell" in (await locks.adopt(node.journal["lock"], "one") or "")
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == ("disk", [TAKE])


@pytest.mark.parametrize("lock", ["", "backup"])
async def test_where_there_is_no_lock_like_ours_nothing_is_to_be_done(
    node: Node, lock: str
) -> None:
    await killed_while_it_takes(node, "before it was written")
    node.write(lock)
    locks = node.daemon()
    assert await locks.adopt(node.journal["lock"], "one") is None
    assert await locks.release("one") == []
    assert node.asked == [TAKE]


async def test_what_fails_after_it_was_taken_does_not_hide_that_it_is_ours(node: Node) -> None:
    """A state disk that is full, or a deadline, while that is written down."""
    written: list[object] = []

    async def full(**facts: Any) -> None:
        written.append(facts)
        if len(written) == 2:
            raise StoreError("no space left on device")

    locks = node.daemon()
    with pytest.raises(StoreError):
        await locks.take(node.ve(), "one", full)
    assert node.lock() == "disk"
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == (None, [TAKE, UNLOCK])


async def test_cut_off_while_it_is_taken_that_is_told(node: Node) -> None:
    """By a deadline, and not by a kill: the same run is asked to give it back."""
    locks = node.daemon()
    node.killed = "after it was written"
    with pytest.raises(KilledError):
        await locks.take(node.ve(), "one", node.note)
    node.killed = ""
    (problem,) = await locks.release("one")
    assert "nobody can tell whether that lock is ours" in problem
    assert (node.lock(), node.asked) == ("disk", [TAKE])


async def test_cut_off_while_it_is_given_back_it_can_be_asked_for_again(node: Node) -> None:
    locks = node.daemon()
    await locks.take(node.ve(), "one", node.note)
    node.killed = "before it was written"
    with pytest.raises(KilledError):
        await locks.release("one")
    node.killed = ""
    assert await locks.release("one") == []
    assert (node.lock(), node.asked) == (None, [TAKE, UNLOCK, UNLOCK])
