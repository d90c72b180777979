"""A server that is lost: one incident, whoever depends on it, and the end of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.book import IncidentBook
from fswatchd.devno import Devno
from fswatchd.engine.closer import Closer
from fswatchd.engine.intake import Intake
from fswatchd.engine.stream import EventStream
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
    left = {devno: one for devno, one in served().remote.items() if one.source == "filer:/usr"}
    inventory.view = node(remote=left)
    await closer._look_at(incident.incident_id)
    assert kernel.book.open_incidents() == []
