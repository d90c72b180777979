"""The power goes while a VE is repaired: nothing starts on an unproven image afterwards."""

from __future__ import annotations

import os
import time
from typing import Any

from vm import node
from vm.machine import Machine

NAME = "power-cut"
TEXT = "QEMU is killed at several points of a repair, then booted"
KERNELS = "newest"

_POINTS = int(os.environ.get("POWER_CUTS", "3"))
_STEP_S = 2.0  # a repair takes about ten seconds on such a machine


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    image = f"{node.VES}/ve1.img"
    node.make_image(machine, image)
    node.make_lxc(machine, "ve1", f"loop:{image}")
    node.set_mode(machine, "auto")
    seen = {}
    for point in range(_POINTS):
        seen[f"cut {point + 1}"] = _cut(machine, image, point * _STEP_S)
    return seen


def _cut(machine: Machine, image: str, delay_s: float) -> str:
    pid = node.lxc_pid(machine, "ve1")
    node.writes(machine, pid)
    whole = node.content(machine, pid)
    acknowledged = int(machine.run(f"wc -l < /proc/{pid}/root/log").output)
    known = {one["id"] for one in node.incidents(machine)}
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    node.trash_directory(machine, device)
    machine.run(f"ls /proc/{pid}/root/srv/files >/dev/null 2>&1 &", check=False)
    time.sleep(delay_s)
    machine.power_cut()

    machine.power_on()
    machine.wait_for("systemctl is-active fswatchd", "the daemon runs again")
    machine.wait_for("fswatch status >/dev/null; test $? -lt 3", "the daemon answers")
    node.start_receiver(machine)
    # LXC starts nothing by itself here: what runs, the daemon has started.
    time.sleep(10)
    running = machine.run("lxc-info -n ve1 -sH").output.strip() == "RUNNING"
    if not running:
        state = "stopped"
        if machine.run(f"e2fsck -fn {image}", check=False).code != 0:
            state = "stopped on the damaged image"
            machine.run(f"e2fsck -fy {image}", check=False)
        machine.run("lxc-start -n ve1 && lxc-wait -n ve1 -s RUNNING -t 60")
    else:
        state = "started by the daemon"
        machine.run("lxc-stop -k -n ve1")
        machine.wait_for(f'test -z "$(losetup -nj {image})"', "the image is released")
        node.expect(
            machine.run(f"e2fsck -fn {image}", check=False).code == 0,
            "a VE is started on a proven image only",
        )
        machine.run("lxc-start -n ve1 && lxc-wait -n ve1 -s RUNNING -t 60")
    pid = node.lxc_pid(machine, "ve1")
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    lines = int(machine.run(f"wc -l < /proc/{pid}/root/log").output)
    node.expect(lines >= acknowledged, f"{acknowledged} lines were durable, {lines} are there")
    new = [one for one in node.incidents(machine) if one["id"] not in known]
    told = f"{new[0]['state']} {new[0]['outcome'] or ''}".strip() if new else "no incident yet"
    return f"after {delay_s:.0f} s: VE {state}; incident {told}"
