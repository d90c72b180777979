"""Virtual machines: told of, never repaired on the node, and not killed while they shut down."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.doctor.ves import examine as _ves
from fswatchd.inventory import owners
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import Ve, VeId, Volume
from fswatchd.inventory.view import NodeView
from fswatchd.repair import scope, ve_control
from fswatchd.steps import ActionSettings, StepEnded
from tests.unit.builders import filesystem, incident
from tests.unit.inventory.test_lookup import NODE, superblock, ve, view

IMAGE = Volume(image="/srv/web.img", mountpoint="", format="disk")
WHAT = "a virtual machine: its disks are its own"
HOST = superblock(0, (NODE, "/srv"))


def guest(name: str = "web", **more: Any) -> Ve:
    return ve("libvirt", name, guest=True, unrepairable=WHAT, volumes=(IMAGE,), **more)


def node(*ves: Ve) -> NodeView:
    owners = {(HOST.devno, n): VeId(one.ve_id) for n, one in enumerate(ves)}
    return view(*ves, superblocks=(HOST,), owners={NODE: "the node"}, image_owners=owners)


def test_a_host_filesystem_that_is_hurt_names_its_guests() -> None:
    seen = node(guest("web"), guest("db"))
    assert seen.affected(HOST.devno) == ("libvirt:web", "libvirt:db")
    assert seen.superblocks_of(VeId("libvirt:web")) == []


@pytest.mark.parametrize("mounted", [True, False])
async def test_nothing_of_a_guest_is_ever_repaired(mounted: bool) -> None:
    """Not even while the node has its image mounted, and nobody else."""
    own = superblock(1, (NODE, "/mnt"))
    seen = view(
        replace(guest(), node_mounts=True),
        superblocks=(own,),
        owners={NODE: "the node"},
        image_owners={(own.backing.image_devno, 1): VeId("libvirt:web")},
    )
    assert seen.users[own.devno].ves == ("libvirt:web",)
    assert seen.users[own.devno].foreign == ()

    async def refresh() -> None: ...

    found = incident(filesystem=filesystem(devno=None), ves=("libvirt:web",))
    if mounted:
        found = incident(filesystem=seen.describe(own), ves=("libvirt:web",))
    context: Any = SimpleNamespace(
        incident=found, inventory=SimpleNamespace(view=seen, refresh=refresh)
    )
    with pytest.raises(StepEnded, match="libvirt:web is a virtual machine"):
        await scope.resolve(context)


def test_copies_of_the_nodes_mounts_around_a_hypervisor_are_not_the_guests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = r"/machine.slice/machine-qemu\x2d4\x2dweb.scope"
    monkeypatch.setattr(owners.proc, "cgroups", lambda _: {"": f"{group}/libvirt/emulator"})
    known = {group: guest(cgroup=group)}
    process = owners._Process(77, "qemu-system-x86", is_init=False)
    assert owners._owner_of(process, known) == "process 77 (qemu-system-x86) of libvirt:web"
    known[group] = ve("lxc", "web", cgroup=group)
    assert owners._owner_of(process, known) == "lxc:web"


def test_what_is_declared_of_a_guest_does_not_make_it_repairable() -> None:
    declared = ve("declared", "web", volumes=(Volume(image="/srv/web.img"),))
    (found,) = merged([declared, guest()]).values()
    assert (found.ve_id, found.unrepairable) == ("libvirt:web", WHAT)


@pytest.mark.parametrize("is_guest", [True, False])
async def test_a_guest_gets_the_time_to_shut_down(
    monkeypatch: pytest.MonkeyPatch, is_guest: bool
) -> None:
    """`virsh shutdown` returns at once; of a container's stop nothing is left when it returns."""
    ends = time.monotonic() + 0.4
    killed = []

    async def command(*_: object) -> str:
        return "asked"

    async def kill(*_: object) -> str:
        killed.append(True)
        return "killed"

    monkeypatch.setattr(ve_control, "_AFTER_STOP_S", 0.1)
    monkeypatch.setattr(ve_control, "_command", command)
    monkeypatch.setattr(ve_control, "kill", kill)
    monkeypatch.setattr(ve_control, "is_running", lambda _: time.monotonic() < ends)
    one = guest() if is_guest else ve("lxc", "web")
    one = replace(one, commands=replace(one.commands, stop=("stop",)))
    await ve_control.stop(one, ActionSettings(stop_timeout_s=60))
    assert bool(killed) is not is_guest


def test_doctor_does_not_want_a_start_command_for_what_is_never_repaired() -> None:
    seen: Any = SimpleNamespace(view=node(guest("web"), guest("db")), problems={})
    findings = _ves(seen, [])
    assert {found.level for found in findings} == {"ok"}
    assert any(WHAT in found.text and found.text.startswith("2 ") for found in findings)
