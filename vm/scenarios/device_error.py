"""The device beneath one of three VEs' images fails: it is blamed, and nothing is checked on it."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine

NAME = "device-error"
TEXT = "dm-error beneath one of three images: the device is blamed, nothing is fsck'ed"
KERNELS = "newest"

# Who runs e2fsck is seen here, whatever the daemon says about itself.
_WITNESS = r"""cat > /usr/local/sbin/e2fsck <<'END'
#!/bin/sh
echo "$@" >> /run/e2fsck-was-run
exec /usr/sbin/e2fsck "$@"
END
chmod 755 /usr/local/sbin/e2fsck"""


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
    machine.run(
        "size=$(blockdev --getsz /dev/vdc); dmsetup suspend --noflush --nolockfs bad"
        ' && dmsetup load bad --table "0 $size error" && dmsetup resume bad'
    )
    incident = node.wait_incident(machine, "lxc:on-bad", "open", "waiting", "needs-operator")
    for name in ("well1", "well2"):
        node.writes(machine, node.lxc_pid(machine, name))
    found = node.incidents(machine)
    wrong = [one["summary"] for one in found if {"lxc:well1", "lxc:well2"} & set(one["ves"])]
    node.expect(not wrong, f"nobody blames the others: {wrong}")
    machine.run("! cat /run/e2fsck-was-run")
    machine.wait_for(f"test -s {node.RECEIVED}", "somebody is told")
    cause = next((one["cause"] for one in found if one["cause"]), None)
    node.expect(cause is not None, f"a cause is named: {[one['summary'] for one in found]}")
    return {
        "incidents": len(found),
        "class": " ".join(sorted({one["class"] for one in found})),
        "summary": incident["summary"],
    }
