"""The device beneath one of three VEs' images fails: it is blamed, and nothing is checked on it.

When it is healed, and an operator has said so, the VE on it is repaired like any other.
"""

from __future__ import annotations

import time
from typing import Any

from vm import node
from vm.machine import Machine

NAME = "device-error"
TEXT = "dm-error beneath one of three images: the device is blamed, no fsck; healed: repaired"
KERNELS = "newest"
ABOUT_S = 200

# Who runs e2fsck is seen here, whatever the daemon says of itself: it comes by one of these. Its
# configuration is shown to every tool.
_WITNESS = r"""for name in systemd-run bwrap; do
    printf '#!/bin/sh\ncase "$*" in *" e2fsck -"*) echo "$@" >> /run/e2fsck-was-run;; esac\n' \
        > /usr/local/sbin/$name
    echo "exec /usr/bin/$name \"\$@\"" >> /usr/local/sbin/$name
    chmod 755 /usr/local/sbin/$name
done"""
_TABLE = 'dmsetup load bad --table "0 $(blockdev --getsz /dev/vdc) {}"'


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    machine.run(_WITNESS)
    machine.run(
        'size=$(blockdev --getsz /dev/vdc); dmsetup create bad --table "0 $size linear /dev/vdc 0"'
        " && mkfs.xfs -q -m reflink=1 /dev/mapper/bad && mkdir /srv/bad"
        " && mount /dev/mapper/bad /srv/bad"
    )
    for name, place in (("on-bad", "/srv/bad"), ("well1", node.VES), ("well2", node.VES)):
        node.make_image(machine, f"{place}/{name}.img", size="64M")
        node.make_lxc(machine, name, f"loop:{place}/{name}.img")
    node.set_mode(machine, "auto")
    _exchange(machine, "error")
    incident = node.wait_incident(machine, "lxc:on-bad", "open", "waiting", "needs-operator")
    for name in ("well1", "well2"):
        node.writes(machine, node.lxc_pid(machine, name))
    found = node.incidents(machine)
    wrong = [one["summary"] for one in found if {"lxc:well1", "lxc:well2"} & set(one["ves"])]
    node.expect(not wrong, f"nobody blames the others: {wrong}")
    machine.run("! cat /run/e2fsck-was-run")
    machine.wait_for(f"test -s {node.RECEIVED}", "somebody is told")
    blamed = {one["cause"]["incident"] for one in found if one["cause"]} - {None}
    node.expect(len(blamed) == 1, f"one device is blamed: {[one['summary'] for one in found]}")
    device = blamed.pop()
    node.expect(not node.device_recovered(machine, device), "a device that fails has not recovered")
    repaired = _healed(machine, device)
    return {
        "incidents": len(found),
        "healed": repaired,
        "class": " ".join(sorted({one["class"] for one in found})),
        "summary": incident["summary"],
    }


def _exchange(machine: Machine, target: str) -> None:
    machine.run(
        f"dmsetup suspend --noflush --nolockfs bad && {_TABLE.format(target)} && dmsetup resume bad"
    )


def _repaired(machine: Machine) -> dict[str, Any]:
    """The incident of the VE, once a repair has ended it: the first that is done here."""
    deadline = time.monotonic() + 600.0
    while True:
        found = [one for one in node.incidents(machine) if "lxc:on-bad" in one["ves"]]
        for one in found:
            if one["outcome"] == "repaired":
                return dict(one)
        there = "; ".join(f"{one['state']}: {one['summary']}" for one in found)
        node.expect(time.monotonic() < deadline, f"repaired once the device is well: {there}")
        time.sleep(node.LOOK_EVERY_S)


def _healed(machine: Machine, incident_id: str) -> str:
    """The device works again, what it carries is mounted anew; then its VE is damaged."""
    machine.run("lxc-stop -k -n on-bad; umount /srv/bad", check=False)
    _exchange(machine, "linear /dev/vdc 0")
    machine.run("mount /dev/mapper/bad /srv/bad && lxc-start -n on-bad")
    machine.run("lxc-wait -n on-bad -s RUNNING -t 60")
    pid = node.lxc_pid(machine, "on-bad")
    node.writes(machine, pid)
    left = {one["id"] for one in node.incidents(machine) if one["state"] != "closed"}
    recovered = node.device_recovered(machine, incident_id)  # where it was not unmounted for long
    node.expect(recovered or incident_id not in left, "the device has recovered")
    whole = node.content(machine, pid)
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    node.trash_directory(machine, device)
    machine.run(f"ls /proc/{pid}/root/srv/files", check=False)
    incident = _repaired(machine)
    machine.run("grep -q e2fsck /run/e2fsck-was-run")
    pid = node.lxc_pid(machine, "on-bad")
    node.writes(machine, pid)
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    return f"{incident['outcome']} by {' '.join(step['do'] for step in incident['steps'])}"
