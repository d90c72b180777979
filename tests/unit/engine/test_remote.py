"""A server that is lost: one incident, whoever depends on it, and the end of it."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.closer import Closer
from fswatchd.engine.intake import Intake
from fswatchd.engine.said_well import SaidWell
from fswatchd.engine.stream import EventStream
from fswatchd.errors import RefusedError
from fswatchd.events import Domain
from fswatchd.incidents import Incident, Outcome
from fswatchd.inventory.model import VeId
from fswatchd.inventory.view import NodeView
from fswatchd.kernlog.grammar import shipped
from fswatchd.sources.kernel_lines import KernelLineSource
from fswatchd.store.store import Store
from tests.unit.inventory.test_lookup import NODE, superblock
from tests.unit.inventory.test_ownership import INSIDE, OTHER, node, on, remote

HOME, USR, CIFS = Devno(0, 50), Devno(0, 51), Devno(0, 52)


def served() -> NodeView:
    """ve101 has its image on nas and ve102 its /home; ve102 also something of another server's."""
    image_host = remote((NODE, "/vz"))
    return node(
        on(image_host.devno),
        superblocks=(superblock(1, (INSIDE, "/")),),
        remote={
            image_host.devno: image_host,
            HOME: remote((OTHER, "/home"), source="nas:/home", devno=HOME),
            USR: remote((OTHER, "/usr"), source="filer:/usr", devno=USR),
            CIFS: remote((OTHER, "/s"), source="//win/s", devno=CIFS, fstype="cifs"),
        },
        image_owners={(image_host.devno, 1): VeId("lxc:ve101")},
    )


class Node:
    """Kernel lines into a book of incidents."""

    def __init__(self, path: Path, view: NodeView) -> None:
        self.store = Store(path)
        self.book = IncidentBook(self.store, "hn1")
        inventory = SimpleNamespace(view=view)
        self.intake = Intake(self.store, self.book, inventory, EventStream(self.store))
        self.source = KernelLineSource(self.intake, shipped())

    async def says(self, *lines: str) -> list[Incident]:
        """What is open after the kernel has said this."""
        for line in lines:
            self.source._take(line, None, facility=0)
        await self.intake.settle()
        return self.book.open_incidents()


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path / "fswatchd.db", served())
    await made.store.open()
    yield made
    await made.store.close()


LOST = "nfs: server nas not responding, still trying"


async def test_a_lost_server_is_one_incident_that_names_all_who_depend_on_it(kernel) -> None:
    (incident,) = await kernel.says(LOST, LOST, "lockd: server nas not responding, timed out")
    assert incident.domain is Domain.REMOTE
    assert incident.filesystem.server == "nas"
    assert set(incident.ves) == {"lxc:ve101", "lxc:ve102"}
    assert incident.through == ("lxc:ve101",)
    assert incident.filesystem.mountpoints == ("/vz", "/home")
    assert incident.events == 3
    assert not incident.confirmed


async def test_it_ends_when_the_server_answers(kernel) -> None:
    (incident,) = await kernel.says(LOST)
    ended = []
    kernel.book.subscribe(lambda _, after: ended.append(after))
    assert await kernel.says("nfs: server nas OK") == []
    assert ended[-1].incident_id == incident.incident_id
    assert ended[-1].outcome is Outcome.RECOVERED


async def test_another_server_that_answers_does_not_end_it(kernel) -> None:
    await kernel.says(LOST, "nfs: server filer not responding, still trying")
    (left,) = await kernel.says("nfs: server filer OK")
    assert left.filesystem.server == "nas"
    assert set(left.ves) == {"lxc:ve101", "lxc:ve102"}


async def test_a_server_that_nobody_uses_concerns_no_ve(kernel) -> None:
    (incident,) = await kernel.says("nfs: server 10.9.9.9 not responding, still trying")
    assert incident.ves == ()


async def test_a_windows_server(kernel) -> None:
    line = "CIFS: VFS: \\\\win has not responded in 180 seconds. Reconnecting..."
    (incident,) = await kernel.says(line)
    assert (incident.filesystem.server, incident.ves) == ("win", ("lxc:ve102",))


async def test_it_is_known_again_after_a_restart(kernel, tmp_path) -> None:
    (before,) = await kernel.says(LOST)
    kernel.book.flush()
    await kernel.store.close()
    again = Node(tmp_path / "fswatchd.db", served())
    await again.store.open()
    await again.book.load()
    (incident,) = await again.says(LOST)
    assert incident.incident_id == before.incident_id
    assert await again.says("nfs: server nas OK") == []
    await again.store.close()
    await kernel.store.open()


async def test_it_ends_when_nothing_is_mounted_from_it_any_more_and_not_before(
    kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fswatchd.engine.closer._MISSING_S", 0.0)
    (incident,) = await kernel.says(LOST)
    nothing: Any = None
    inventory: Any = SimpleNamespace(view=served())
    closer = Closer(
        kernel.book,
        inventory,
        nothing,
        forget_volume=nothing,
        poke=nothing,
        has_room=nothing,
        device_fault=nothing,
    )
    await closer._look_at(incident.incident_id)
    assert kernel.book.open_incidents() == [incident]
    since_boot = replace(incident, earlier=frozenset({"detected"}))
    kernel.book.put(since_boot)
    await closer._look_at(incident.incident_id)
    assert kernel.book.open_incidents() == [since_boot]
    left = {devno: one for devno, one in served().remote.items() if one.source == "filer:/usr"}
    inventory.view = node(remote=left)
    await closer._look_at(incident.incident_id)
    assert kernel.book.open_incidents() == []


async def test_one_of_before_the_boot_is_over_where_it_is_mounted_since(kernel) -> None:
    """Nothing is mounted from a server that does not answer, and no line tells the end of it."""
    (incident,) = await kernel.says(LOST)
    before = tuple((-1, source, count) for _, source, count in incident.recent)
    kernel.book.put(replace(incident, earlier=frozenset({"detected"}), recent=before))
    ended: list[Incident] = []
    kernel.book.subscribe(lambda _, after: ended.append(after))
    nothing: Any = None
    closer = Closer(
        kernel.book,
        cast("Any", SimpleNamespace(view=served())),
        nothing,
        forget_volume=nothing,
        poke=nothing,
        has_room=nothing,
        device_fault=nothing,
    )
    await closer._look_at(incident.incident_id)
    assert ended[-1].outcome is Outcome.RECOVERED


@pytest.mark.parametrize("answers", [True, False])
async def test_who_says_that_it_has_recovered_is_believed_where_its_mounts_answer(
    kernel, monkeypatch: pytest.MonkeyPatch, *, answers: bool
) -> None:
    """A soft mount, or SMB: the kernel never says that it does."""
    asked: list[str] = []
    goes_on = threading.Event()

    def statvfs(path: str) -> None:
        asked.append(path)
        if not answers:
            goes_on.wait(60)

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr("fswatchd.engine.said_well._READ_TIMEOUT_S", 0.05 if not answers else 60)
    (incident,) = await kernel.says(LOST)
    nothing: Any = None
    said_well = SaidWell(
        kernel.book,
        cast("Any", SimpleNamespace(view=served())),
        nothing,
        forget_volume=lambda _: None,
        poke=nothing,
        device_fault=nothing,
    )
    if answers:
        done = await said_well.recovered(incident, "root", "root says so")
        assert done.outcome is Outcome.RECOVERED
    else:
        with pytest.raises(RefusedError, match="nas has not recovered: /vz: no answer"):
            await said_well.recovered(incident, "root", "root says so")
        goes_on.set()
        assert kernel.book.open_incidents() == [incident]
    assert asked == ["/vz"]  # what only a VE has mounted is not asked
