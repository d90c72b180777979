"""Virtual machines of Proxmox VE (qm(1), qm.conf(5)), for the driver in `proxmox`.

Their configurations are /etc/pve/qemu-server/ID.conf, the process of one that runs is named by
/run/qemu-server/ID.pid, and it is in a scope of qemu.slice (PVE/QemuServer.pm, vm_start). They are
guests as those of `libvirt` are: nothing on their disks is repaired here.

Not here: disks on Ceph, and whether one is paused, which only its monitor tells.
"""

from __future__ import annotations

import re

from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.platforms import proxmox_config, seen
from fswatchd.platforms.declared import read_pid_file
from fswatchd.platforms.libvirt import GUEST
from fswatchd.platforms.proxmox_config import Storage, read_volume
from fswatchd.platforms.seen import Seen

RUN = "/run/qemu-server"
# Not the disks of the firmware and of the TPM, nor those that are detached (unusedN).
_DISK = re.compile(r"(?:ide|sata|scsi|virtio)\d+")
_CLOUD_INIT = re.compile(r"(?:.*/)?vm-\d+-cloudinit(?:\.\w+)?")


def describe(native_id: str, config: dict[str, str], storages: dict[str, Storage], run: str) -> Ve:
    """The virtual machine as its configuration has it; `run` is where its pid file lies."""
    lock = config.get("lock")
    agent = has_agent(config.get("agent", ""))
    return Ve(
        ve_id=VeId(f"proxmox:{native_id}"),
        platform="proxmox",
        native_id=native_id,
        name=config.get("name") or native_id,
        labels=proxmox_config.labels(config),
        volumes=tuple(
            volume
            for key, value in config.items()
            if _DISK.fullmatch(key) and (volume := read_disk(value, storages)) is not None
        ),
        commands=Commands(
            start=("qm", "start", native_id),
            stop=("qm", "shutdown", native_id, "--forceStop", "1", "--timeout", "30"),
            kill=("qm", "stop", native_id),
            freeze=_agent(native_id, "freeze") if agent else ("qm", "suspend", native_id),
            thaw=_agent(native_id, "thaw") if agent else ("qm", "resume", native_id),
        ),
        busy=f"Proxmox: lock: {lock}" if lock else proxmox_config.template(config),
        guest=True,
        unrepairable=GUEST,
        **seen.running_guest(_process(native_id, run)),
    )


def read_disk(value: str, storages: dict[str, Storage]) -> Volume | None:
    """`STORAGE:VOLUME,size=32G` of a disk; None for a drive for media and where it is unknown."""
    first, *options = value.split(",")
    if "media=cdrom" in options or _CLOUD_INIT.fullmatch(first.partition(":")[2]):
        return None
    return read_volume(value, storages, guest=True)


def has_agent(value: str) -> bool:
    """Whether `agent: 1` or `agent: enabled=1,…` says that a guest agent runs in it."""
    return not {"1", "enabled=1"}.isdisjoint(value.split(","))


def _agent(native_id: str, what: str) -> tuple[str, ...]:
    return ("qm", "guest", "cmd", native_id, f"fsfreeze-{what}")


def _process(native_id: str, run: str) -> Seen | None:
    pid = read_pid_file(f"{run}/{native_id}.pid")
    if pid is None:
        return None
    return Seen(pid, seen.group_of(pid, rf"/qemu\.slice/{native_id}\.scope"))
