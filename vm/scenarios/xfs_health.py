"""XFS on a kernel with a health monitor: damage is heard from it."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine

NAME = "xfs-health"
TEXT = "a damaged XFS on a kernel with its health monitor: heard, attributed, told"
KERNELS = "newest"

_MAKE = f"""set -e
cd {node.VES}; truncate -s 400M x.img; mkfs.xfs -q x.img; mkdir -p /srv/x; mount x.img /srv/x
mkdir /srv/x/files; for n in $(seq 300); do touch /srv/x/files/file-with-a-long-name-$n; done
inode=$(stat -c %i /srv/x/files); umount /srv/x
xfs_db -x -c "inode $inode" -c "dblock 0" -c "blocktrash -3 -n 8 -z" x.img
mount x.img /srv/x"""


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    node.set_mode(machine, "observe")
    machine.run(_MAKE)
    device = machine.run(f"losetup -nO NAME -j {node.VES}/x.img").output.split()[0]
    device = device.removeprefix("/dev/")
    machine.run(f"test -b /dev/{device}")
    node.expect(_monitored(machine), "the health monitor is a source")
    machine.run("ls /srv/x/files", check=False)
    machine.wait_for(
        f"fswatch events --json | grep {device} | grep -q xfs_health", "the monitor is heard"
    )
    machine.wait_for(f"grep -q {device} {node.RECEIVED}", "somebody is told")
    (incident,) = [one for one in node.incidents(machine) if one["filesystem"]["device"] == device]
    node.expect(incident["class"] == "corruption", f"class {incident['class']}")
    return {"class": incident["class"], "heard by": " ".join(sorted(incident["sources"]))}


def _monitored(machine: Machine) -> bool:
    sources = {source["name"]: source for source in node.status(machine)["sources"]}
    return bool(sources["xfs_health"]["state"] == "ok")
