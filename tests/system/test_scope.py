"""Containers that no driver knows: made by hand, in cgroups that are real."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.events import VeState
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve, VeId
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import scope
from fswatchd.platforms.declared import DeclaredPlatform
from fswatchd.repair import ve_control
from tests.system import rules
from tests.system.conftest import wait_until

CONTAINER = "unshare -mpf --propagation slave --kill-child sleep 1000"
SERVICE = "unshare -m --propagation slave sleep 1000"


class Groups:
    """Cgroups that root makes by hand, and what runs in them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._children: list[subprocess.Popen[bytes]] = []

    def make(self, name: str) -> Path:
        """The directory of `/NAME`, made where it is not there."""
        assert name.startswith(self.name)
        directory = cgroup.hierarchies()[0] / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def run(self, name: str, program: str, *, beside: bool = False) -> int:
        """Run it in the cgroup `/NAME`, `beside` under a shell that stays; returns its process.

        Of a container that is its first process.
        """
        before = set(cgroup.pids(f"/{name}"))
        directory = self.make(name)
        how = f"{program} & wait" if beside else f"exec {program}"
        line = f"echo $$ > {directory}/cgroup.procs; {how}"
        self._children.append(subprocess.Popen(["sh", "-c", line], start_new_session=True))

        def found() -> int | None:
            for pid in set(cgroup.pids(f"/{name}")) - before:
                ready = proc.is_container_init(pid) if program == CONTAINER else True
                if ready and proc.command_name(pid) == "sleep":
                    return pid
            return None

        return int(wait_until(found))

    def close(self) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def groups(work: Path) -> Iterator[Groups]:
    made = Groups(work.name)
    yield made
    made.close()
    for directory in sorted(cgroup.hierarchies()[0].glob(f"{work.name}*/**/"), reverse=True):
        cgroup.kill(f"/{directory.relative_to(cgroup.hierarchies()[0])}")
        wait_until(lambda d=directory: not (d / "cgroup.procs").read_text())
        directory.rmdir()


@pytest.fixture
async def inventory(work: Path) -> AsyncIterator[Inventory]:
    (work / "ve.d").mkdir()
    declared = DeclaredPlatform([work / "ve.d"])
    inventory = Inventory([declared], unclaimed=scope.describe)
    yield inventory
    await inventory.close()


@pytest.fixture
def disk(work: Path) -> Devno:
    """A filesystem that is mounted for the containers to have."""
    image, point = work / "disk.img", work / "disk"
    with image.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    return Devno.of(os.stat(point).st_dev)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers are named however young they are."""
    monkeypatch.setattr(scope, "_SETTLED_S", 0.0)


async def scopes(inventory: Inventory, groups: Groups) -> list[Ve]:
    """Those of this test."""
    await inventory.refresh()
    found = inventory.view.ves.values()
    return [ve for ve in found if ve.platform == "scope" and groups.name in ve.native_id]


def owner(inventory: Inventory, pid: int) -> str | None:
    return inventory.view.owners.get(proc.mount_namespace_inode(pid))  # type: ignore[call-overload]


@pytest.mark.usefixtures("at_once")
async def test_a_container_by_hand_is_named_by_its_scope(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    name = f"{groups.name}-run.scope"
    pid = groups.run(name, CONTAINER)
    (ve,) = await scopes(inventory, groups)
    assert (ve.ve_id, ve.name, ve.state) == (f"scope:{name}", name, "running")
    assert (ve.init_pid, ve.init_started) == (pid, proc.start_time(pid))
    assert (ve.namespace, ve.cgroup) == (proc.mount_namespace_inode(pid), f"/{name}")
    assert not any((ve.commands.start, ve.commands.stop, ve.commands.kill))
    assert ve.ve_id in inventory.view.users[disk].ves
    assert inventory.view.superblocks[disk] in inventory.view.superblocks_of(ve.ve_id)


@pytest.mark.usefixtures("at_once")
async def test_below_another_cgroup_it_has_the_whole_path(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    groups.run(f"{groups.name}-crun/web", CONTAINER)
    groups.run(f"{groups.name}-crun/db", CONTAINER)
    found = {ve.ve_id: ve.name for ve in await scopes(inventory, groups)}
    assert found == {f"scope:{groups.name}-crun/{name}": name for name in ("web", "db")}


async def test_a_young_one_is_left_for_its_own_driver_to_find(
    disk: Devno, groups: Groups, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "_SETTLED_S", 3600.0)
    pid = groups.run(f"{groups.name}-run.scope", CONTAINER)
    assert await scopes(inventory, groups) == []
    assert owner(inventory, pid) == f"process {pid} (sleep)"
    monkeypatch.setattr(scope, "_SETTLED_S", 0.0)
    assert len(await scopes(inventory, groups)) == 1


@pytest.mark.usefixtures("at_once")
async def test_one_whose_namespace_was_seen_before_its_first_process(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    """unshare(1) is in the namespace before it forks."""
    name = f"{groups.name}-run.scope"
    fifo = Path("/var/tmp") / groups.name / "go"
    os.mkfifo(fifo)
    slow = "unshare -m --propagation slave sh -c 'read x < $0; exec unshare -pf sleep 1000'"
    directory = groups.make(name)
    line = f"echo $$ > {directory}/cgroup.procs; exec {slow.replace('$0', str(fifo))}"
    child = subprocess.Popen(["sh", "-c", line], start_new_session=True)
    groups._children.append(child)
    own = proc.mount_namespace_inode("self")
    wait_until(lambda: proc.mount_namespace_inode(child.pid) not in {own, None})
    await inventory.refresh()
    assert str(owner(inventory, child.pid)).startswith(f"process {child.pid} ")
    fifo.write_text("go\n")
    wait_until(lambda: any(proc.is_container_init(pid) for pid in cgroup.pids(f"/{name}")))
    await inventory.refresh(forget=True)  # every fourth look; others look again for some seconds
    (ve,) = await scopes(inventory, groups)
    assert owner(inventory, child.pid) == ve.ve_id


@pytest.mark.usefixtures("at_once")
async def test_private_mounts_alone_make_no_container(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    """So do services with PrivateMounts= or ProtectSystem=."""
    pid = groups.run(f"{groups.name}-run.scope", SERVICE)
    assert await scopes(inventory, groups) == []
    assert owner(inventory, pid) == f"process {pid} (sleep)"


@pytest.mark.parametrize("name", ["x.service", "x.service/payload", "x.slice"])
@pytest.mark.usefixtures("at_once")
async def test_a_services_container_does_not_make_the_service_one(
    disk: Devno, groups: Groups, inventory: Inventory, name: str
) -> None:
    pid = groups.run(f"{groups.name}-{name}", CONTAINER)
    assert await scopes(inventory, groups) == []
    assert owner(inventory, pid) == f"process {pid} (sleep)"


@pytest.mark.usefixtures("at_once")
async def test_a_cgroup_that_was_given_away_proves_nothing(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    pid = groups.run(f"{groups.name}-user/mine.scope", CONTAINER)
    os.chown(groups.make(f"{groups.name}-user"), 65534, 65534)
    assert await scopes(inventory, groups) == []
    assert owner(inventory, pid) == f"process {pid} (sleep)"


@pytest.mark.usefixtures("at_once")
async def test_of_several_in_one_cgroup_none_has_its_name(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    pids = [groups.run(f"{groups.name}-run.scope", CONTAINER) for _ in range(2)]
    assert await scopes(inventory, groups) == []
    assert [owner(inventory, pid) for pid in pids] == [f"process {pid} (sleep)" for pid in pids]


@pytest.mark.usefixtures("at_once")
async def test_a_kill_reaches_the_container_and_not_who_waits_beside_it(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    name = f"{groups.name}-run.scope"
    pid = groups.run(name, CONTAINER, beside=True)
    (ve,) = await scopes(inventory, groups)
    assert ve.cgroup is None
    (shell,) = [one for one in cgroup.pids(f"/{name}") if proc.command_name(one) == "sh"]
    started = proc.start_time(pid)
    os.kill(shell, signal.SIGSTOP)  # it would go by itself when nothing is left to wait for
    ve_control.send_kill(ve)
    wait_until(lambda: not proc.is_alive(pid, started))
    assert proc.is_alive(shell, None)


@pytest.mark.usefixtures("at_once")
async def test_a_declared_ve_is_not_taken_from_whoever_declared_it(
    work: Path, disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    name = f"{groups.name}-run.scope"
    pid = groups.run(name, CONTAINER)
    (work / "ve.d" / "web.toml").write_text(f'[[ve]]\nname = "web"\ncgroup = "/{name}"\n')
    assert await scopes(inventory, groups) == []
    assert owner(inventory, pid) == "declared:web"


@pytest.mark.usefixtures("at_once")
async def test_what_a_ve_makes_inside_belongs_to_the_ve(
    work: Path, disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    """Of the first process and of others, also where the VE has no PID namespace of its own."""
    group = f"{groups.name}-ve.scope"
    (work / "ve.d" / "web.toml").write_text(f'[[ve]]\nname = "web"\ncgroup = "/{group}"\n')
    inner = [
        groups.run(group, SERVICE),
        groups.run(f"{group}/inner", CONTAINER),
        groups.run(f"{group}/inner.scope", CONTAINER),
    ]
    assert await scopes(inventory, groups) == []
    assert {owner(inventory, pid) for pid in inner} == {"declared:web"}


@pytest.mark.usefixtures("at_once")
async def test_what_a_container_makes_inside_is_its_own(
    disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    """As systemd in one does for services with mounts of their own."""
    name = f"{groups.name}-run.scope"
    groups.run(name, CONTAINER)
    inner = groups.run(f"{name}/system.slice/x.service", SERVICE)
    (ve,) = await scopes(inventory, groups)
    assert owner(inventory, inner) == ve.ve_id
    assert ve.cgroup == f"/{name}"


@pytest.mark.usefixtures("at_once")
async def test_a_cgroup_with_a_known_ve_in_it_is_not_one_container(
    work: Path, disk: Devno, groups: Groups, inventory: Inventory
) -> None:
    group = f"{groups.name}-run.scope"
    (work / "ve.d" / "web.toml").write_text(f'[[ve]]\nname = "web"\ncgroup = "/{group}/ve"\n')
    known = groups.run(f"{group}/ve", SERVICE)
    pid = groups.run(f"{group}/other", CONTAINER)
    assert await scopes(inventory, groups) == []
    assert owner(inventory, known) == "declared:web"
    assert owner(inventory, pid) == f"process {pid} (sleep)"


def test_an_error_in_one_is_told_by_its_name_and_nothing_is_done(daemon, make_ve, work) -> None:
    ve = make_ve("ve101")  # nobody declares it
    daemon.configure(rules=rules.repair())
    daemon.start()
    ve.start()
    name = f"{work.name}-ve101"
    # Without a sign of change the next look at all comes after half a minute.
    wait_until(lambda: name in {ve["name"] for ve in daemon.status()["ves"]}, 60, f"{name} known")
    ve.damage_directory()
    incident = daemon.wait_for_incident("open", ve=name)
    assert incident["ves"] == [f"scope:{name}"]
    what = f"a decision about {incident['id']}"
    wait_until(lambda: scope.CONTAINER in daemon.why(incident["id"]), 120, what)
    assert daemon.incidents(name)[0]["steps"] == []
    assert ve.wait_for_write()


async def test_what_liblxc_runs_and_nobody_lists_is_told(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a LXD whose socket is at another place: silence would look as if it were watched."""
    name = f"lxc.payload.{work.name}"
    directory = cgroup.hierarchies()[0] / name
    directory.mkdir()
    line = f"echo $$ > {directory}/cgroup.procs; exec {CONTAINER}"
    child = subprocess.Popen(["sh", "-c", line])
    inventory = Inventory([], unlisted=scope.unlisted)
    try:
        wait_until(lambda: any(map(proc.is_container_init, cgroup.pids(f"/{name}"))))
        await inventory.refresh()
        assert name not in inventory.problems.get("not known", "")  # its driver may still be asked
        monkeypatch.setattr(scope, "_UNLISTED_S", 0.0)
        await inventory.refresh()
        assert f"{name}: containers of liblxc that no driver" in inventory.problems["not known"]
        listed = Ve(
            ve_id=VeId("lxd:a"),
            platform="lxd",
            native_id="a",
            name="a",
            state=VeState.RUNNING,
            cgroup=f"/{name}",
        )
        assert name not in (scope.unlisted([listed]) or "")
    finally:
        child.kill()
        child.wait()
        wait_until(lambda: not cgroup.pids(f"/{name}"))
        directory.rmdir()
        await inventory.close()
