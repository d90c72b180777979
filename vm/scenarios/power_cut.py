"""The power goes while a VE is repaired: nothing starts on an unproven image afterwards.

One repair is let run to its end, and the machine is held for a moment again and again to take its
disks as they are then: what a power cut at that moment leaves. Each is booted afterwards.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from vm import node
from vm.machine import Disks, Machine

NAME = "power-cut"
TEXT = "the power goes at ten points of a repair, then the machine boots"
KERNELS = "newest"
ABOUT_S = 1000

_SETTLED_S = 240.0
_HEARD_S = 20.0
_REPAIRED_S = 600.0
_EVERY_S = 1.0
_POINTS = int(os.environ.get("POWER_CUTS", "10"))
_IMAGE = f"{node.VES}/ve1.img"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """What was on the disks `after_s` seconds from the damage: `durable` lines of the VE at least.

    `doing` is what the daemon was at.
    """

    disks: Disks
    after_s: float
    durable: int
    doing: str


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    node.make_image(machine, _IMAGE)
    node.make_lxc(machine, "ve1", f"loop:{_IMAGE}")
    node.set_mode(machine, "auto")
    pid = node.lxc_pid(machine, "ve1")
    whole = node.content(machine, pid)
    cuts = _repaired(machine, pid, whole)
    node.expect(len(cuts) >= _POINTS, f"there are {len(cuts)} moments of it")
    seen = {"undisturbed": f"repaired after {cuts[-1].after_s:.0f} s"}
    for number in range(_POINTS):
        cut = cuts[(2 * number + 1) * len(cuts) // (2 * _POINTS)]
        machine.power_cut()
        machine.put_in(cut.disks)
        machine.power_on()
        seen[f"cut {number + 1}"] = _booted(machine, cut, whole)
    return seen


def _repaired(machine: Machine, pid: str, whole: str) -> list[_Cut]:
    """Damage the VE and have it repaired; what the disks were like all the while."""
    node.writes(machine, pid)
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    node.trash_directory(machine, device)
    began = time.monotonic()
    machine.run(f"ls /proc/{pid}/root/srv/files >/dev/null 2>&1 &", check=False)
    cuts: list[_Cut] = []
    durable = 0
    while True:
        found = next((i for i in node.incidents(machine) if "lxc:ve1" in i["ves"]), None)
        if found is not None and found["state"] in {"closed", "needs-operator"}:
            break
        node.expect(time.monotonic() - began < _REPAIRED_S, f"an end of {found}")
        lines = machine.run("wc -l < /proc/$(lxc-info -n ve1 -pH)/root/log", check=False)
        if lines.code == 0:
            durable = int(lines.output) - 1  # the last one may not be synced yet
        after_s = time.monotonic() - began
        disks = machine.copy_disks(machine.work / "cuts" / str(len(cuts)))
        cuts.append(_Cut(disks=disks, after_s=after_s, durable=durable, doing=_doing(found)))
        time.sleep(_EVERY_S)
    node.expect(found["outcome"] == "repaired", f"{found['state']}: {found['summary']}")
    content = node.content(machine, node.lxc_pid(machine, "ve1"))
    node.expect(content == whole, "every file has its content after the repair")
    return cuts


def _doing(incident: dict[str, Any] | None) -> str:
    if incident is None:
        return "nothing yet"
    running = (s["detail"] or s["do"] for s in incident["steps"] if s["state"] == "running")
    return next(running, "") or str(incident["state"])


def _booted(machine: Machine, cut: _Cut, whole: str) -> str:
    """What the daemon makes of it, and that the VE has all it had."""
    node.wait_daemon(machine)
    # LXC starts nothing by itself here: what runs, the daemon has started.
    new = _settled(machine)
    running = machine.run("lxc-info -n ve1 -sH").output.strip() == "RUNNING"
    if running:
        state = "started by the daemon"
        machine.run("lxc-stop -k -n ve1")
        machine.wait_for(f'test -z "$(losetup -nj {_IMAGE})"', "the image is released")
    else:
        state = "stopped"
    if machine.run(f"e2fsck -fn {_IMAGE}", check=False).code != 0:
        node.expect(not running, "a VE is started on a proven image only")
        state = "stopped on the damaged image"
        machine.run(f"e2fsck -fy {_IMAGE}", check=False)
    machine.run("lxc-start -n ve1 && lxc-wait -n ve1 -s RUNNING -t 60")
    pid = node.lxc_pid(machine, "ve1")
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    lines = int(machine.run(f"wc -l < /proc/{pid}/root/log").output)
    node.expect(lines >= cut.durable, f"{cut.durable} lines were durable, {lines} are there")
    told = f"{new[0]['state']} {new[0]['outcome'] or ''}".strip() if new else "no incident yet"
    return f"after {cut.after_s:.0f} s ({cut.doing}): VE {state}; incident {told}"


def _settled(machine: Machine) -> list[dict[str, Any]]:
    """The incidents, once the daemon does nothing more about them by itself."""
    deadline = time.monotonic() + _SETTLED_S
    while True:
        found = node.incidents(machine)
        busy = [one for one in found if one["state"] in {"acting", "verifying"}]
        if not busy and (found or time.monotonic() > deadline - _SETTLED_S + _HEARD_S):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(2.0)
