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
ABOUT_S = 900

_SETTLED_S = 240.0
_HEARD_S = 20.0
_POINTS = int(os.environ.get("POWER_CUTS", "4"))


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    image = f"{node.VES}/ve1.img"
    node.make_image(machine, image)
    node.make_lxc(machine, "ve1", f"loop:{image}")
    node.set_mode(machine, "auto")
    whole_s = _undisturbed(machine)
    seen = {"undisturbed": f"repaired after {whole_s:.0f} s"}
    for point in range(_POINTS):
        # How fast a machine is changes with what else the node does: shares of a whole repair.
        seen[f"cut {point + 1}"] = _cut(machine, image, whole_s * (point + 0.5) / _POINTS)
    return seen


def _undisturbed(machine: Machine) -> float:
    """How long a repair takes here, from the damage until the incident is over."""
    pid = node.lxc_pid(machine, "ve1")
    node.writes(machine, pid)
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    node.trash_directory(machine, device)
    started = time.monotonic()
    machine.run(f"ls /proc/{pid}/root/srv/files >/dev/null 2>&1 &", check=False)
    incident = node.wait_incident(machine, "lxc:ve1", "closed", "needs-operator", timeout_s=400)
    took = time.monotonic() - started
    node.expect(incident["outcome"] == "repaired", f"{incident['state']}: {incident['summary']}")
    return took


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
    node.wait_daemon(machine)
    node.start_receiver(machine)
    # LXC starts nothing by itself here: what runs, the daemon has started.
    new = _settled(machine, known)
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
    told = f"{new[0]['state']} {new[0]['outcome'] or ''}".strip() if new else "no incident yet"
    for one in new:
        if one["state"] != "closed":
            node.acknowledge(machine, one["id"])
    return f"after {delay_s:.0f} s: VE {state}; incident {told}"


def _settled(machine: Machine, known: set[str]) -> list[dict[str, Any]]:
    """The incidents of this cut, once the daemon does nothing more about them by itself."""
    deadline = time.monotonic() + _SETTLED_S
    while True:
        new = [one for one in node.incidents(machine) if one["id"] not in known]
        busy = [one for one in new if one["state"] in {"acting", "verifying"}]
        if not busy and (new or time.monotonic() > deadline - _SETTLED_S + _HEARD_S):
            return new
        if time.monotonic() > deadline:
            return new
        time.sleep(2.0)
