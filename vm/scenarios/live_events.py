"""What only a whole kernel sends: a quota's warning, DISK_RO, a degraded md array, GFS2's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vm import node
from vm.machine import Machine, MachineError

NAME = "live-events"
TEXT = "a real quota warning, a disk that becomes read-only, md degraded, a GFS2 that withdraws"
KERNELS = "oldest"  # 7.3 sends no uevent when a GFS2 without a cluster withdraws

_PIECE = 600 * 2048  # sectors of each of the five devices that are cut from the third disk


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    node.set_mode(machine, "observe")
    seen: dict[str, Any] = {}
    problems = []
    parts: tuple[Callable[[Machine], str], ...] = (_quota, _read_only, _degraded, _withdrawn)
    for part in parts:
        name = part.__name__.strip("_")
        try:
            seen[name] = part(machine)
        except MachineError as error:
            problems.append(f"{name}: {error}")
    node.expect(not problems, f"{'; '.join(problems)}; the others: {seen}")
    return seen


def _piece(machine: Machine, name: str, number: int) -> str:
    """A device of its own; returns the name that the kernel has for it."""
    machine.run(f'dmsetup create {name} --table "{_table(number)}" && udevadm settle')
    return machine.run(f"basename $(readlink -f /dev/mapper/{name})").output.strip()


def _table(number: int) -> str:
    return f"0 {_PIECE} linear /dev/vdc {number * _PIECE}"


def _told(machine: Machine, incident: dict[str, Any]) -> str:
    machine.wait_for(f"grep -q {incident['id']} {node.RECEIVED}", "somebody is told")
    return f"{incident['class']} by {' '.join(sorted(incident['sources']))}: {incident['summary']}"


def _quota(machine: Machine) -> str:
    device = _piece(machine, "quota", 0)
    machine.run(
        "mke2fs -q -t ext4 -O quota -E quotatype=usrquota /dev/mapper/quota && mkdir -p /srv/quota"
    )
    node.mount_seen(
        machine,
        "mount -o usrquota /dev/mapper/quota /srv/quota && chmod 1777 /srv/quota"
        " && setquota -u nobody 1000 2000 0 0 /srv/quota",
    )
    nobody = "setpriv --reuid nobody --clear-groups"
    machine.run(f"{nobody} dd if=/dev/zero of=/srv/quota/file bs=1k count=1500 2>&1")
    machine.run(f"! {nobody} dd if=/dev/zero of=/srv/quota/more bs=1k count=3000 2>&1")
    incident = node.wait_class(machine, device, "quota")
    node.expect("quota" in incident["sources"], f"the kernel's own warning: {incident['sources']}")
    return _told(machine, incident)


def _read_only(machine: Machine) -> str:
    device = _piece(machine, "ro", 4)
    machine.run("mke2fs -q -F -t ext4 /dev/mapper/ro && mkdir -p /srv/ro")
    node.mount_seen(machine, "mount /dev/mapper/ro /srv/ro")
    machine.run(
        f'dmsetup suspend ro && dmsetup reload --readonly ro --table "{_table(4)}"'
        f" && dmsetup resume ro && test $(cat /sys/block/{device}/ro) = 1"
    )
    incident = node.wait_class(machine, device, "readonly")
    node.expect("uevent" in incident["sources"], f"by its uevent: {incident['sources']}")
    return _told(machine, incident)


def _degraded(machine: Machine) -> str:
    for number, name in enumerate(("md-a", "md-b"), 1):
        _piece(machine, name, number)
    machine.run(
        "modprobe raid1 && mdadm --create /dev/md0 --run --assume-clean --level=1 --raid-devices=2"
        " --metadata=1.2 /dev/mapper/md-a /dev/mapper/md-b 2>&1 && mke2fs -q -F -t ext4 /dev/md0"
        " && mkdir -p /srv/md"
    )
    node.mount_seen(machine, "mount /dev/md0 /srv/md")
    machine.run("mdadm /dev/md0 --fail /dev/mapper/md-a")
    incident = node.wait_class(machine, "md0", "degraded")
    told = _told(machine, incident)
    machine.run("touch /srv/md/goes-on && sync -f /srv/md")
    return told


def _withdrawn(machine: Machine) -> str:
    device = _piece(machine, "gfs2", 3)
    machine.run(
        "mkfs.gfs2 -q -O -p lock_nolock -j 1 /dev/mapper/gfs2 && mkdir -p /srv/gfs2 "
        "&& modprobe gfs2"
    )
    node.mount_seen(machine, "mount -t gfs2 /dev/mapper/gfs2 /srv/gfs2 && touch /srv/gfs2/one")
    machine.run(
        f'dmsetup suspend --noflush --nolockfs gfs2 && dmsetup load gfs2 --table "0 {_PIECE} error"'
        " && dmsetup resume gfs2"
    )
    machine.run("timeout 20 touch /srv/gfs2/two; timeout 20 sync -f /srv/gfs2", check=False)
    # Its device is to blame, and so the incident is called; that it has withdrawn its uevent says.
    said = "journalctl -b -k --no-pager | grep -qi 'file system withdrawn'"
    machine.wait_for(said, "GFS2 withdraws")
    incident = node.wait_class(machine, device, "io_error", heard_by={"kmsg", "uevent"})
    named = [one for one in node.incidents(machine) if one["filesystem"]["fstype"] == "gfs2"]
    node.expect(len(named) == 1, f"one incident: {[one['summary'] for one in named]}")
    return _told(machine, incident)
