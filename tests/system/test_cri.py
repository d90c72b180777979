"""Pods: cgroups and namespaces that are real, a kubelet's mounts, and a crictl that is played."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.lookup import find_ve
from fswatchd.inventory.model import Ve
from fswatchd.inventory.view import describe
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms.cri import POD, CriPlatform
from fswatchd.repair import scope
from fswatchd.steps import StepEnded
from tests.system.conftest import wait_until
from tests.unit.builders import incident


class FakePod:
    """As a kubelet with the cgroupfs driver makes it, with a volume of its own."""

    def __init__(self, work: Path) -> None:
        self.uid = str(uuid.uuid4())
        self.group = f"/kubepods/besteffort/pod{self.uid}"
        self.directory = cgroup.hierarchies()[0] / self.group.lstrip("/")
        self.kubelet = work / "kubelet"
        volumes = self.kubelet / "pods" / self.uid / "volumes"
        self.volume = volumes / "kubernetes.io~csi" / "pvc-1" / "mount"
        self.volume.mkdir(parents=True)
        self.image = work / "pvc.img"
        with self.image.open("xb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(self.image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.volume)], check=True)
        self.container = self.directory / ("c" * 64)
        self.container.mkdir(parents=True)
        # A sandbox whose root is a directory of the node's: it sees the node's filesystem, too.
        # What the node unmounts goes there too, as below a runtime.
        unshare = "unshare -mpf --propagation slave --kill-child sleep 1000"
        line = f"echo $$ > {self.container}/cgroup.procs; exec {unshare}"
        self.child = subprocess.Popen(["sh", "-c", line])
        wait_until(lambda: any(proc.is_container_init(pid) for pid in cgroup.pids(self.group)))

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        cgroup.kill(self.group)
        wait_until(lambda: not cgroup.pids(self.group))
        for directory in (self.container, *self.container.parents[:3]):
            with suppress(OSError):  # other pods of other tests
                directory.rmdir()


@pytest.fixture
def pod(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePod]:
    made = FakePod(work)
    # cmd/crictl/sandbox.go, --output json; crictl warns on standard error before it answers.
    labels = {"app": "web", "io.kubernetes.pod.uid": made.uid}
    metadata = {"name": "web-0", "uid": made.uid, "namespace": "shop", "attempt": 0}
    answer = json.dumps({"items": [{"metadata": metadata, "labels": labels}]}, indent=2)
    (work / "bin").mkdir()
    (work / "bin" / "crictl").write_text(
        "#!/bin/sh\n"
        "echo 'WARN[0000] runtime connect using default endpoints: [unix:///x.sock]' >&2\n"
        f"[ \"$*\" = 'pods --output json' ] && cat {work}/answer\n"
    )
    (work / "bin" / "crictl").chmod(0o755)
    (work / "answer").write_text(answer)
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", f"{work}/bin:{os.environ['PATH']}")
    yield made
    made.close()


@pytest.fixture
async def inventory(pod: FakePod) -> AsyncIterator[Inventory]:
    platform = CriPlatform(str(pod.kubelet))
    inventory = Inventory([platform])
    await inventory.refresh()
    await platform.asked.settle()
    await inventory.refresh()
    yield inventory
    await inventory.close()
    await platform.asked.close()


def known(inventory: Inventory, pod: FakePod) -> Ve:
    return find_ve(inventory.view, f"cri:{pod.uid}")


async def test_a_pod_is_known_by_its_cgroup_before_crictl_answers(pod: FakePod) -> None:
    platform = CriPlatform(str(pod.kubelet))
    (ve,) = [ve for ve in await platform.list_ves() if ve.native_id == pod.uid]
    await platform.asked.close()
    assert (ve.name, ve.state, ve.cgroup) == (pod.uid, "running", pod.group)
    assert ve.init_pid in cgroup.pids(pod.group)
    assert (ve.commands.start, ve.commands.stop, ve.commands.kill) == ((), (), ())


async def test_its_name_comes_with_the_answer(pod: FakePod, inventory: Inventory) -> None:
    ve = known(inventory, pod)
    assert (ve.name, ve.labels) == ("shop/web-0", {"app": "web"})
    for text in ("shop/web-0", "cri:shop/web-0"):
        assert find_ve(inventory.view, text) == ve


async def test_its_volume_is_its_own_though_the_node_has_it_mounted(
    pod: FakePod, inventory: Inventory
) -> None:
    devno = Devno.of(os.stat(pod.volume).st_dev)
    # Whoever makes a namespace beside this test has copies of all mounts of the node for a while.
    deadline = time.monotonic() + 60
    while inventory.view.users[devno].foreign and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        await inventory.refresh()
    users = inventory.view.users[devno]
    assert (users.ves, users.foreign) == ((f"cri:{pod.uid}",), ())
    with pytest.raises(StepEnded, match=f"{pod.uid} is {POD}"):
        await scope.resolve(context(inventory, devno, pod))


async def test_the_nodes_filesystem_below_it_is_never_repaired_for_it(
    pod: FakePod, inventory: Inventory
) -> None:
    """Its containers' root filesystems are there, and so is all else."""
    host = Devno.of(os.stat(pod.kubelet).st_dev)
    assert f"cri:{pod.uid}" in inventory.view.affected(host)
    with pytest.raises(StepEnded, match=r"also used by .*the node"):
        await scope.resolve(context(inventory, host, pod))


def context(inventory: Inventory, devno: Devno, pod: FakePod) -> Any:
    filesystem = describe(inventory.view.superblocks[devno])
    found = incident(filesystem=filesystem, ves=(f"cri:{pod.uid}",))
    return SimpleNamespace(incident=found, inventory=inventory)
