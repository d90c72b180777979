"""A thin pool is full: the room is to blame, a rule extends the pool, and its VEs go on."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine

NAME = "thin-pool"
TEXT = "a thin pool fills up: space is the cause, a rule's exec extends it, the VEs recover"
KERNELS = "oldest"
ABOUT_S = 180

_EXTEND = "/usr/local/sbin/extend-pool"
# What an admin would write: only the pool that the incident names, and only so far.
_PROGRAM = f"""cat > {_EXTEND} <<'END'
#!/bin/sh
set -e
echo "$FSWATCH_DEVICE $FSWATCH_CLASS" >> /run/extend-was-run
lvextend -q -L 1500M vg/pool
END
chmod 755 {_EXTEND}"""
_RULE = f"""[[rule]]
name = "extend-pool"
match.class = "space"
match.fstype = "dm-thin"
mode = "auto"
threshold = "1 in 10m"
cooldown = "0s"
healthy = "5s"
[[rule.step]]
do = "exec"
run = ["{_EXTEND}"]
memory = "1G"
[[rule.step]]
do = "notify"
to = ["*"]
"""
_VES = ("thin1", "thin2")


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    machine.run(
        "vgcreate -q vg /dev/vdc && lvcreate -qy -T -L 300M --errorwhenfull y vg/pool && "
        + " && ".join(f"lvcreate -qy -T -V 400M -n {name} vg/pool" for name in _VES)
    )
    for name in _VES:
        node.make_image(machine, f"/dev/vg/{name}")
        node.make_lxc(machine, name, f"/dev/vg/{name}")
    node.make_image(machine, f"{node.VES}/well.img", size="64M")
    node.make_lxc(machine, "well", f"loop:{node.VES}/well.img")
    pids = {name: node.lxc_pid(machine, name) for name in _VES}
    whole = {name: node.content(machine, pid) for name, pid in pids.items()}
    node.put_rule(
        machine, "12-lvm.toml", "auto", strategy="offline", ves='["lxc:thin1", "lxc:thin2"]'
    )
    machine.run(_PROGRAM)
    node.save_rule(machine, "06-pool.toml", _RULE)
    node.set_mode(machine, "auto")
    machine.run(
        f"dd if=/dev/urandom of=/proc/{pids['thin1']}/root/big bs=1M count=350 conv=fsync",
        check=False,
    )
    machine.wait_for(
        "grep -q space /run/extend-was-run && "
        "test $(lvs --noheadings --nosuffix --units m -o lv_size vg/pool | cut -d. -f1) -ge 1500",
        "a rule extends the pool",
    )
    machine.run("! grep -qv space /run/extend-was-run")
    # Whatever has become of them meanwhile: they write again, and have what they had.
    for name in _VES:
        machine.wait_for(
            f"pid=$(lxc-info -n {name} -pH) && touch /proc/$pid/root/probe && "
            f"sync -f /proc/$pid/root/probe",
            f"{name} writes again",
            timeout_s=400,
        )
        pid = node.lxc_pid(machine, name)
        node.writes(machine, pid)
        node.expect(node.content(machine, pid) == whole[name], f"{name} has every file")
    node.writes(machine, node.lxc_pid(machine, "well"))
    machine.wait_for(f"grep -q extend-pool {node.RECEIVED}", "somebody is told")
    found = node.incidents(machine)
    wrong = [one["summary"] for one in found if "lxc:well" in one["ves"]]
    node.expect(not wrong, f"nobody blames a VE that is elsewhere: {wrong}")
    told = {
        f"{' '.join(one['ves']) or one['filesystem']['device']}, {one['class']}": (
            f"{one['state']} {one['outcome'] or ''} by {' '.join(s['do'] for s in one['steps'])}"
        )
        for one in found
    }
    return {"extended": machine.run("wc -l < /run/extend-was-run").output.strip(), **told}
