"""Pods of Kubernetes, whatever runs their containers (containerd, CRI-O, cri-dockerd).

A pod is one VE. It is known by its cgroup, which the kubelet makes where only root can and names
by the pod's UID (pkg/kubelet/cm/pod_container_manager_linux.go): `kubepods-burstable-podUID.slice`
with the systemd driver, `/kubepods/burstable/podUID` with cgroupfs. For that nobody is asked. Its
name, namespace and labels are told by crictl, asked when pods have come or gone; until it answers,
a pod has its UID as its name. The same name may be two pods' for a while (one ends, the next
begins): so the UID is the id, and `cri:NAMESPACE/NAME` an alias.

A volume is a pod's where the kubelet has mounted a device of its own for it, in the node's
namespace, below /var/lib/kubelet/pods/UID/volumes. The containers' root filesystems are overlays on
a filesystem of the node. Pods are stopped and started by their kubelet only, which would mount a
volume again while it is checked: so nothing of them is repaired, and there are no commands.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.inventory.model import DISK_FILESYSTEMS, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import block, cgroup, mountinfo
from fswatchd.kernel.mounts import Mount
from fswatchd.platforms import seen
from fswatchd.platforms.asked import Asked
from fswatchd.platforms.engines import parse_json
from fswatchd.platforms.seen import Seen

POD = "a pod: only its kubelet stops and starts it, and mounts its volumes"
KUBELET = "/var/lib/kubelet"
_DEADLINE_S = 10.0
_MAX_ANSWER = 64 << 20
# A static pod's UID is a digest of its file, without dashes. With systemd, "_" stands for "-".
_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})"
_SYSTEMD = re.compile(rf"(?:.+-)?kubepods(?:-burstable|-besteffort)?-pod{_UID}\.slice")
_CGROUPFS = re.compile(rf"pod{_UID}")
_QOS = re.compile(
    r"(?:.+-)?kubepods(?:-burstable|-besteffort)?\.slice|kubepods|burstable|besteffort"
)
_OWN_LABELS = "io.kubernetes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """What the runtime says of one."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)


Pods = dict[str, Pod]


class CriPlatform:
    """The pods of this node's kubelet."""

    name = "cri"

    def __init__(self, kubelet: str = KUBELET) -> None:
        self.asked: Asked[Pods] = Asked(_ask, {})
        self._kubelet = kubelet

    def watch_directories(self) -> list[str]:
        """Where the pods' cgroups come and go."""
        roots = cgroup.hierarchies()[:1]
        return [str(root) + parent for root in roots for parent in ("", *_parents())]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        groups = find_groups()
        if not groups:
            return []
        told = self.asked.look(frozenset(groups))
        mounts = await asyncio.to_thread(mountinfo.read, "self")
        volumes = read_volumes(mounts, self._kubelet)
        ves = [
            self._describe(uid, group, told.get(uid), volumes.get(uid, ()))
            for uid, group in sorted(groups.items())
        ]
        found = [ve for ve in ves if ve is not None]
        if self.asked.problem is not None:
            hint = "pods have their UIDs as names until crictl answers (package cri-tools)"
            raise PlatformError(self.asked.problem, hint=hint, partial=found)
        return found

    def _describe(
        self, uid: str, group: str, told: Pod | None, volumes: tuple[Volume, ...]
    ) -> Ve | None:
        pid = seen.first_of_group(group)
        if pid is None:
            return None  # a cgroup that its pod has left behind, or that has no process yet
        return Ve(
            ve_id=VeId(f"{self.name}:{uid}"),
            platform=self.name,
            native_id=uid,
            name=told.name if told else uid,
            labels=told.labels if told else {},
            labels_known=told is not None,
            volumes=volumes,
            node_mounts=True,
            aliases=(VeId(f"{self.name}:{told.name}"),) if told else (),
            unrepairable=POD,
            **seen.running(Seen(pid, group)),
        )


def find_groups() -> dict[str, str]:
    """UID → cgroup of every pod."""
    parents = _parents()
    found = {}
    for pattern in (_SYSTEMD, _CGROUPFS):
        for path, match in seen.groups_named(parents, pattern).items():
            found[match["uid"].replace("_", "-")] = path
    return found


def _parents() -> list[str]:
    """The cgroups that hold pods: `kubepods`, also in a parent as kind sets it, and its classes."""
    top = list(seen.groups_named(["/", "/kubelet.slice", "/kubelet"], _QOS))
    return [*top, *seen.groups_named(top, _QOS)]


async def _ask() -> Pods:
    argv = ("crictl", "pods", "--output", "json")
    try:
        done = await process.run(argv, timeout_s=_DEADLINE_S, max_output=_MAX_ANSWER)
    except process.ProcessError as error:
        raise PlatformError(error.message, hint=error.hint) from error
    if not done.succeeded:
        raise PlatformError(done.describe())
    return read_pods(parse_json(done.output, "crictl pods"))


def read_pods(answer: dict[str, Any]) -> Pods:
    """`crictl pods --output json` (ListPodSandboxResponse of k8s.io/cri-api).

    Of a pod whose sandbox was made anew there are several: the last attempt is the one that is.
    """
    found: dict[str, tuple[int, Pod]] = {}
    for one in answer.get("items") or []:
        metadata = one["metadata"]
        attempt = int(metadata.get("attempt") or 0)
        labels = one.get("labels") or {}
        pod = Pod(
            name=f"{metadata['namespace']}/{metadata['name']}",
            labels={k: v for k, v in labels.items() if not k.startswith(_OWN_LABELS)},
        )
        known = found.get(metadata["uid"])
        if known is None or known[0] <= attempt:
            found[metadata["uid"]] = (attempt, pod)
    return {uid: pod for uid, (_, pod) in found.items()}


def read_volumes(mounts: list[Mount], kubelet: str) -> dict[str, tuple[Volume, ...]]:
    """UID → its volumes, by what the node has mounted for it.

    Only whole filesystems: a directory of one is a bind of something else's.
    """
    place = re.compile(rf"{re.escape(kubelet)}/pods/{_UID}/volumes/[^/]+/([^/]+)(?:/mount)?")
    found: dict[str, dict[Devno, Volume]] = {}
    for mount in mounts:
        match = place.fullmatch(mount.point)
        if match is None or mount.root != "/" or mount.fstype not in DISK_FILESYSTEMS:
            continue
        name = block.name_of(mount.devno)
        if name is not None:  # btrfs has numbers of its own
            volume = Volume(device=f"/dev/{name}", mountpoint=mount.point)
            found.setdefault(match["uid"], {})[mount.devno] = volume
    return {uid: tuple(volumes.values()) for uid, volumes in found.items()}
