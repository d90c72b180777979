"""The node's own root is read-only and journald is stopped: the daemon goes on."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine

NAME = "sick-node"
TEXT = "root of the node read-only, journald stopped: detection, notice and status go on"
KERNELS = "newest"

_API = "curl -sf --max-time 10 --unix-socket /run/fswatchd/api.sock http://node/v1/status"


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    node.make_image(machine, f"{node.VES}/ve1.img", size="64M")
    node.make_lxc(machine, "ve1", f"loop:{node.VES}/ve1.img")
    node.set_mode(machine, "observe")
    device = machine.run(f"losetup -nO NAME -j {node.VES}/ve1.img").output.split()[0]

    machine.run("echo test > /sys/fs/ext4/vda/trigger_fs_error")
    machine.wait_for("! touch /var/lib/fswatchd/probe", "the root filesystem is read-only")
    machine.run(
        "systemctl stop systemd-journald.socket systemd-journald-dev-log.socket "
        "systemd-journald-audit.socket systemd-journald.service; ! pgrep -x systemd-journal",
        check=False,
    )
    machine.run(f"echo test > /sys/fs/ext4/{device.removeprefix('/dev/')}/trigger_fs_error")
    incident = node.wait_incident(machine, "lxc:ve1", "open", "waiting", "needs-operator")
    machine.wait_for(f"grep -q {incident['id']} {node.RECEIVED}", "somebody is told")
    slowest = 0.0
    for _ in range(5):
        took = machine.run(f"{_API} -o /dev/null -w '%{{time_total}}'").output
        slowest = max(slowest, float(took))
    node.expect(slowest <= 1.0, f"status answers within 1 s, not {slowest}")
    store = node.status(machine)["store"]
    machine.run("systemctl is-active fswatchd")
    return {"status, slowest of 5": f"{slowest:.3f} s", "store": store["problem"] or "no problem"}
