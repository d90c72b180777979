"""Virtual machines of libvirt with QEMU (virsh(1), formatdomain of libvirt.org).

While a guest runs, /run/libvirt/qemu/NAME.xml has its definition, the process that runs it, and
what libvirt does with it (src/qemu/qemu_domain.c, qemuDomainObjPrivateXMLFormat); all that are
defined have a file in /etc/libvirt/qemu. Both are root's, and no program is asked. The process is
believed where it is in the cgroup that libvirt makes for this guest, or the pid file beside the
status names it.

A guest's filesystems are mounted by its own kernel: what breaks inside is not seen here, and
nothing of it is repaired here. What can be told is which guests an image or a device of the node
belongs to, and what their agents say of themselves (`guest_agent`).

Not here: disks on the network or by the name of a storage pool, and guests of users
(qemu:///session).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import guest_agent, seen
from fswatchd.platforms.asked import Asked
from fswatchd.platforms.declared import read_pid_file
from fswatchd.platforms.guest_agent import Filesystems
from fswatchd.platforms.seen import Seen

GUEST = "a virtual machine: its disks are for its own kernel to mount, and to repair"
_OWNER = 0
_CONNECT = ("virsh", "--connect", "qemu:///system")
_AGENT = "org.qemu.guest_agent.0"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The metadata that OpenStack writes (nova/virt/libvirt/config.py).
_NOVA = re.compile(r"\{http://openstack\.org/xmlns/libvirt/nova/\S*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A guest as one of libvirt's files has it; what only a running one has is None without it.

    `job` is what libvirt does with it, `agent` whether the guest agent in it is connected.
    """

    name: str
    uuid: str
    labels: dict[str, str] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    number: str | None = None
    pid: int | None = None
    paused: bool = False
    job: str | None = None
    agent: bool = False


class LibvirtPlatform:
    """The guests of this node's libvirt."""

    name = "libvirt"

    def __init__(self, run: str = "/run/libvirt/qemu", defined: str = "/etc/libvirt/qemu") -> None:
        self._run = run
        self._defined = defined
        self._read: dict[str, tuple[object, Domain | None]] = {}
        # Guests whose agent is connected, each by its UUID and the number of this run of it.
        self._agents: frozenset[tuple[str, str | None]] = frozenset()
        self.asked: Asked[Filesystems] = Asked(self._ask, {})

    def watch_directories(self) -> list[str]:
        """Where definitions come and go, and the guests' cgroups."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        return [self._run, self._defined, *(f"{root}/machine.slice" for root in roots)]

    async def list_ves(self) -> list[Ve]:
        """See Platform. Of a guest whose status cannot be read its state is not known."""
        defined, running = _files(self._defined), _files(self._run)
        paths = [*defined, *running]  # what runs is read last, and counts
        self._read = {path: self._read[path] for path in self._read.keys() & set(paths)}
        domains: dict[str, Domain] = {}
        unread: list[str] = []
        for path in paths:
            domain = self._load(path)
            if domain is not None:
                domains[domain.uuid] = domain
            elif os.path.exists(path):
                unread.append(path)
        inside = self._inside(domains.values())
        ves = [self._describe(domain, inside) for _, domain in sorted(domains.items())]
        lost = {Path(path).stem for path in unread if path in running}
        ves = [replace(ve, state=VeState.UNKNOWN) if ve.name in lost else ve for ve in ves]
        problems = [f"{path} cannot be read as a guest's definition" for path in unread]
        if self._agents and self.asked.problem is not None:
            problems.append(self.asked.problem)
        if problems:
            raise PlatformError("\n".join(problems), partial=ves)
        return ves

    def _load(self, path: str) -> Domain | None:
        """The guest in a file, parsed again only when the file has changed."""
        stamp = seen.stamp(path)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read_file(path))
        return known[1]

    def _inside(self, domains: Iterable[Domain]) -> Filesystems:
        """What agents have told; the guests of others are not known from inside."""
        self._agents = frozenset((one.uuid, one.number) for one in domains if one.agent)
        return self.asked.look(self._agents) if self._agents else {}

    async def _ask(self) -> Filesystems:
        return await guest_agent.ask(_CONNECT, (uuid for uuid, _ in self._agents))

    def _describe(self, domain: Domain, inside: Filesystems) -> Ve:
        # By UUID: a name of digits would be taken for the number of another guest.
        selector, agent = domain.uuid, domain.agent
        return Ve(
            ve_id=VeId(f"{self.name}:{domain.name}"),
            platform=self.name,
            native_id=domain.uuid,
            name=domain.name,
            labels=domain.labels,
            volumes=domain.volumes,
            commands=Commands(
                start=(*_CONNECT, "start", selector),
                stop=(*_CONNECT, "shutdown", selector),
                kill=(*_CONNECT, "destroy", selector),
                freeze=(*_CONNECT, "domfsfreeze" if agent else "suspend", selector),
                thaw=(*_CONNECT, "domfsthaw" if agent else "resume", selector),
            ),
            aliases=(VeId(f"{self.name}:{domain.uuid}"),),
            busy=f"libvirt: {domain.job}" if domain.job else None,
            guest=True,
            guest_filesystems=inside.get(domain.uuid, ()) if agent else (),
            unrepairable=GUEST,
            **seen.running_guest(self._process(domain), paused=domain.paused),
        )

    def _process(self, domain: Domain) -> Seen | None:
        if domain.pid is None or not proc.is_alive(domain.pid, None):
            return None
        group = seen.group_of(domain.pid, _group(domain))
        # The file outlives a crash of libvirt; its process number may be another's by then.
        if group is None and read_pid_file(f"{self._run}/{domain.name}.pid") != domain.pid:
            return None
        return Seen(domain.pid, group)


def read_file(path: str) -> Domain | None:
    """The guest of a status file or of a definition; None where it is neither, or not root's."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_uid != _OWNER:
                return None
            root = ElementTree.parse(file).getroot()  # noqa: S314 - it is root's
    except (OSError, ElementTree.ParseError):
        return None
    return read_domain(root)


def read_domain(root: ElementTree.Element) -> Domain | None:
    """A `<domain>`, or a `<domstatus>` with one in it."""
    domain = root if root.tag == "domain" else root.find("domain")
    if domain is None:
        return None
    name, uuid = domain.findtext("name"), domain.findtext("uuid", "").strip().lower()
    if not name or not _UUID.fullmatch(uuid):
        return None
    pid = root.get("pid", "")
    return Domain(
        name=name,
        uuid=uuid,
        labels=_labels(domain),
        volumes=tuple(_volumes(domain)),
        number=domain.get("id"),
        pid=int(pid) if pid.isdecimal() else None,
        paused=root.get("state") in {"paused", "pmsuspended"},
        job=_job(root),
        agent=any(
            target.get("name") == _AGENT and target.get("state") == "connected"
            for target in domain.iterfind("devices/channel/target")
        ),
    )


def _volumes(domain: ElementTree.Element) -> Iterator[Volume]:
    """Its disks, each by the file or device that is written; what that rests on is not its own."""
    for disk in domain.iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        if disk.get("device", "disk") not in {"disk", "lun"} or source is None:
            continue
        kind = driver.get("type", "raw") if driver is not None else "raw"
        kind = "disk" if kind == "raw" else kind
        image, device = source.get("file"), source.get("dev")
        if disk.get("type") == "file" and image:
            yield Volume(image=image, mountpoint="", format=kind)
        elif disk.get("type") == "block" and device:
            yield Volume(device=device, mountpoint="", format=kind)


def _labels(domain: ElementTree.Element) -> dict[str, str]:
    """Its title, and what OpenStack says of it: the names of the instance and of its project."""
    found = {"title": domain.findtext("title", "")}
    for element in domain.iterfind("metadata//*"):
        name = _NOVA.sub("", element.tag)
        if name != element.tag and name in {"name", "project"}:
            found[f"nova.{name}"] = (element.text or "").strip()
    return {key: value for key, value in found.items() if value}


def _job(root: ElementTree.Element) -> str | None:
    job = root.find("job")
    if job is not None and job.get("async", "none") != "none":
        return f"job: {job.get('async')}"
    blocks = root.find("blockjobs")
    if blocks is not None and (blocks.get("active") == "yes" or len(blocks)):
        kinds = sorted({job.get("type", "") for job in blocks.iterfind("blockjob")})
        return f"block job: {', '.join(kinds)}" if any(kinds) else "block job"
    return None


def _group(domain: Domain) -> str:
    """Where libvirt puts the guest (src/util/virsystemd.c, virSystemdMakeScopeName; without systemd
    src/util/vircgroup.c). Its name may be shortened there, its number is not."""
    number = re.escape(domain.number or "-")
    with_systemd = rf"{seen.SLICES}/machine-qemu\\x2d{number}\\x2d[^/]+\.scope"
    return rf"{with_systemd}|(?:/[^/]+\.partition|/machine)*/qemu-{number}-[^/]+\.libvirt-qemu"


def _files(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [str(Path(directory, name)) for name in sorted(names) if name.endswith(".xml")]
