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
    node.install(machine)
    for name in ("hurt", "well"):
        node.make_image(machine, f"{node.VES}/{name}.img", size="64M")
        node.make_lxc(machine, name, f"loop:{node.VES}/{name}.img")
    device = machine.run(f"losetup -nO NAME -j {node.VES}/hurt.img").output.split()[0]
    name = device.removeprefix("/dev/")
    machine.wait_for("fswatch status hurt", "the VE is known")
    options = "grep ^%s /proc/$(lxc-info -n hurt -pH)/mounts"
    machine.run(f"echo test > /sys/fs/ext4/{name}/trigger_fs_error")
    mounts = machine.run(options % device).output.split()[3]
    machine.wait_for(
        "! lxc-attach -n hurt -- sh -c 'date > /probe && sync'", "the kernel stops the VE's writes"
    )
    incident = node.wait_incident(machine, "lxc:hurt", "open", "waiting", "needs-operator")
    found = {
        "fstype": incident["filesystem"]["fstype"],
        "confirmed": incident["confirmed"],
        "ves": incident["ves"],
    }
    node.expect(found == _EXPECTED, f"{found} instead of {_EXPECTED}")
    every = [one for one in node.incidents(machine) if one["class"] != "none"]
    node.expect(len(every) == 1, f"one incident, not {[one['summary'] for one in every]}")
    machine.run("lxc-attach -n well -- sh -c 'date > /probe && sync'")
    health = node.status(machine)["ves"]
    (hurt,) = [ve for ve in health if ve["id"] == "lxc:hurt"]
    return {
        "mountinfo says": mounts.split(",")[0]
        + (" emergency_ro" if "emergency_ro" in mounts else ""),
        "class": incident["class"],
        "health": hurt["filesystems"][0]["health"],
        "heard by": " ".join(sorted(incident["sources"])),
    }
