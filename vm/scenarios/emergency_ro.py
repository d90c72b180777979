"""ext4 that stops writing after an error: the same incident, however the kernel shows it."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine

NAME = "emergency-ro"
TEXT = "ext4 aborts (errors=remount-ro) in a VE: one incident, the same on each kernel"
KERNELS = "all"

_EXPECTED = {"fstype": "ext4", "confirmed": True, "ves": ["lxc:hurt"]}


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    for name in ("hurt", "well"):
        node.make_image(machine, f"{node.VES}/{name}.img", size="64M")
        node.make_lxc(machine, name, f"loop:{node.VES}/{name}.img")
    device = machine.run(f"losetup -nO NAME -j {node.VES}/hurt.img").output.split()[0]
    name = device.removeprefix("/dev/")
    pid = node.lxc_pid(machine, "hurt")
    machine.run(f"echo test > /sys/fs/ext4/{name}/trigger_fs_error")
    machine.wait_for(f"! touch /proc/{pid}/root/probe", "the kernel stops the VE's writes")
    # The last fields of mountinfo are the superblock's options.
    shown = machine.run(f"grep ' {device} ' /proc/{pid}/mountinfo").output.split()[-1].split(",")
    opened = machine.run(f"cat /proc/{pid}/root/etc/os-release", check=False)
    incident = node.wait_incident(machine, "lxc:hurt", "open", "waiting", "needs-operator")
    found = {
        "fstype": incident["filesystem"]["fstype"],
        "confirmed": incident["confirmed"],
        "ves": incident["ves"],
    }
    node.expect(found == _EXPECTED, f"{found} instead of {_EXPECTED}")
    every = [one for one in node.incidents(machine) if one["class"] != "none"]
    node.expect(len(every) == 1, f"one incident, not {[one['summary'] for one in every]}")
    node.writes(machine, node.lxc_pid(machine, "well"))
    health = node.status(machine)["ves"]
    (hurt,) = [ve for ve in health if ve["id"] == "lxc:hurt"]
    return {
        "mountinfo shows": " ".join(o for o in shown if o in {"ro", "rw", "emergency_ro"}),
        "opens a file": "yes" if opened.code == 0 else opened.output.strip(),
        "class": incident["class"],
        "health": hurt["filesystems"][0]["health"],
        "heard by": " ".join(sorted(incident["sources"])),
    }
