from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.devno import Devno
from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import mountinfo
from fswatchd.platforms import cri, seen
from fswatchd.platforms.cri import CriPlatform, Pod

UID = "1c178021-5860-4495-a1ab-f9ac17877672"
STATIC = "6d7a5b8ed6bf3c1c1a0c0c3d0c4a9f21"  # of a pod from a file of the kubelet's
CONTAINER = "9" * 64
KIND = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
SYSTEMD = "kubepods.slice/kubepods-burstable.slice"

# `crictl pods --output json` of cri-tools 1.2x (cmd/crictl/sandbox.go; ListPodSandboxResponse of
# k8s.io/cri-api/pkg/apis/runtime/v1), what is not read left out.
ANSWER = {
    "items": [
        {
            "id": CONTAINER,
            "metadata": {"name": "web-0", "uid": UID, "namespace": "shop", "attempt": 1},
            "state": "SANDBOX_READY",
            "createdAt": "1700000000000000000",
            "labels": {
                "app": "web",
                "io.kubernetes.pod.name": "web-0",
                "io.kubernetes.pod.namespace": "shop",
                "io.kubernetes.pod.uid": UID,
            },
            "annotations": {"kubernetes.io/config.source": "api"},
            "runtimeHandler": "",
        },
        {
            "id": "8" * 64,
            "metadata": {"name": "old-name", "uid": UID, "namespace": "shop", "attempt": 0},
            "state": "SANDBOX_NOTREADY",
            "labels": {"app": "old"},
        },
        {
            "id": "7" * 64,
            "metadata": {"name": "etcd-node1", "uid": STATIC, "namespace": "kube-system"},
            "state": "SANDBOX_READY",
            "labels": None,
        },
    ]
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup hierarchy of its own."""
    monkeypatch.setattr(seen.cgroup, "hierarchies", lambda: (tmp_path,))
    return tmp_path


def test_what_crictl_tells() -> None:
    assert cri.read_pods(ANSWER) == {
        UID: Pod(name="shop/web-0", labels={"app": "web"}),
        STATIC: Pod(name="kube-system/etcd-node1"),
    }
    assert cri.read_pods({"items": None}) == {}


@pytest.mark.parametrize(
    "path",
    [
        f"{SYSTEMD}/kubepods-burstable-pod{UID.replace('-', '_')}.slice",
        f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice",
        f"kubepods/besteffort/pod{UID}",
        f"kubepods/pod{UID}",
        # kind: the kubelet's parent is another one (--cgroup-root).
        f"{KIND}/kubelet-kubepods-besteffort-pod{UID.replace('-', '_')}.slice",
    ],
)
def test_the_cgroup_of_a_pod(tree: Path, path: str) -> None:
    (tree / path / f"cri-containerd-{CONTAINER}.scope").mkdir(parents=True)
    assert cri.find_groups() == {UID: f"/{path}"}


@pytest.mark.parametrize(
    "path",
    [
        f"user.slice/user-7.slice/user@7.service/kubepods.slice/kubepods-pod{STATIC}.slice",
        f"system.slice/kubepods-pod{STATIC}.slice",
        f"kubepods/burstable/{CONTAINER}",
        "kubepods/podman",
        f"lxc.payload.x/kubepods/pod{UID}",
        f"pod{UID}",
    ],
)
def test_what_is_no_pods_cgroup(tree: Path, path: str) -> None:
    """Least of all one that a user or a VE can make."""
    (tree / path).mkdir(parents=True)
    assert cri.find_groups() == {}


def test_a_static_pod_has_an_id_without_dashes(tree: Path) -> None:
    (tree / SYSTEMD / f"kubepods-burstable-pod{STATIC}.slice").mkdir(parents=True)
    assert list(cri.find_groups()) == [STATIC]


def mounted(point: str, devno: str, root: str = "/", fstype: str = "ext4") -> str:
    return f"36 35 {devno} {root} {point} rw,relatime shared:1 - {fstype} /dev/sdb rw"


def test_volumes_are_what_the_node_has_mounted_for_the_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cri.block, "name_of", {Devno(8, 16): "sdb", Devno(253, 3): "dm-3"}.get)
    pod = f"/var/lib/kubelet/pods/{UID}"
    csi = f"{pod}/volumes/kubernetes.io~csi/pvc-11aa/mount"
    plugin = "/var/lib/kubelet/plugins/kubernetes.io/csi/ebs.csi.aws.com/5f/globalmount"
    lines = [
        mounted(plugin, "8:16"),
        mounted(csi, "8:16"),
        mounted(csi, "8:16"),  # twice, as CSI drivers that are started again do
        mounted(f"{pod}/volumes/kubernetes.io~iscsi/data", "253:3", fstype="xfs"),
        mounted(f"{pod}/volumes/kubernetes.io~local-volume/d", "8:1", root="/srv/d"),
        mounted(f"{pod}/volumes/kubernetes.io~empty-dir/cache", "0:50", fstype="tmpfs"),
        mounted(f"{pod}/volumes/kubernetes.io~nfs/home", "0:51", fstype="nfs4"),
        mounted(f"{pod}/volume-subpaths/pvc-11aa/web/0", "8:16", root="/sub"),
        mounted(f"{pod}/volumes/kubernetes.io~csi/b/mount", "0:60", fstype="btrfs"),
        mounted(f"/srv/{csi}", "8:16"),
    ]
    found = cri.read_volumes([mountinfo.parse_line(line) for line in lines], "/var/lib/kubelet")
    assert found == {
        UID: (
            Volume(device="/dev/sdb", mountpoint=csi),
            Volume(device="/dev/dm-3", mountpoint=f"{pod}/volumes/kubernetes.io~iscsi/data"),
        )
    }


async def test_without_pods_nobody_is_asked(tree: Path) -> None:
    (tree / "kubepods").mkdir()
    platform = CriPlatform()
    assert await platform.list_ves() == []
    assert platform.asked.problem is None


async def test_a_cgroup_without_processes_is_no_pod(tree: Path) -> None:
    (tree / f"kubepods/pod{UID}").mkdir(parents=True)
    platform = CriPlatform()
    platform.asked.look = lambda _: {}  # type: ignore[method-assign]
    assert await platform.list_ves() == []


async def test_a_crictl_that_does_not_answer_is_told(tree: Path) -> None:
    (tree / f"kubepods/pod{UID}").mkdir(parents=True)
    platform = CriPlatform()
    platform.asked.look = lambda _: {}  # type: ignore[method-assign]
    platform.asked.problem = "cannot run crictl: there is no such program"
    with pytest.raises(PlatformError, match="crictl"):
        await platform.list_ves()
