"""NILFS2 and f2fs: damage is heard and told, nothing is repaired, and a copy can be kept."""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine, MachineError

NAME = "other-filesystems"
TEXT = "NILFS2 and f2fs in LXC containers: damage heard, told, left alone; snapshot of the image"
KERNELS = "newest"

# How each is made. Both keep their superblocks in the first two blocks; what they need again for
# each look at a directory lies behind them, and is overwritten while it is mounted.
_KINDS = {"nilfs2": "mkfs.nilfs2 -q", "f2fs": "mkfs.f2fs -q"}


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    node.set_mode(machine, "auto")
    seen, problems = {}, []
    for kind in _KINDS:
        try:
            seen[kind] = _damage(machine, kind)
        except MachineError as error:
            problems.append(f"{kind}: {error}")
    node.expect(not problems, f"{'; '.join(problems)}; the others: {seen}")
    return seen


def _damage(machine: Machine, kind: str) -> str:
    image = f"{node.VES}/{kind}.img"
    machine.run(f"modprobe {kind} && truncate -s 256M {image} && {_KINDS[kind]} {image}")
    machine.run(f"mkdir -p /mnt/{kind} && mount -o loop {image} /mnt/{kind}")
    node.make_tree(machine, f"/mnt/{kind}")
    machine.run(f"umount /mnt/{kind} && cp --reflink=always {image} {image}.whole")
    node.make_lxc(machine, kind, f"loop:{image}")
    pid = node.lxc_pid(machine, kind)
    node.writes(machine, pid)
    ve = f"lxc:{kind}"
    snapshot = machine.run(f"fswatch snapshot {ve} --json", check=False, timeout_s=120)
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    # Zeros over all but the beginning: what is not in memory any more cannot be what it was.
    machine.run(
        f"sync -f /proc/{pid}/root/srv; echo 3 > /proc/sys/vm/drop_caches; "
        f"dd if=/dev/urandom of={device} bs=1M seek=3 count=200 conv=notrunc,fsync status=none; "
        "echo 3 > /proc/sys/vm/drop_caches"
    )
    machine.run(f"timeout 30 ls -lR /proc/{pid}/root/srv /proc/{pid}/root/usr", check=False)
    incident = node.wait_incident(machine, ve, "open", "waiting", "needs-operator")
    machine.wait_for(f"grep -q {incident['id']} {node.RECEIVED}", "somebody is told")
    done = [step["do"] for step in incident["steps"] if step["do"] != "notify"]
    node.expect(not done, f"nothing is repaired: {done}")
    node.expect(incident["filesystem"]["fstype"] == kind, str(incident["filesystem"]))
    machine.run(f"lxc-stop -k -n {kind}", check=False)
    text = f"{incident['class']} by {' '.join(sorted(incident['sources']))}"
    kept = "kept" if snapshot.code == 0 else f"none ({snapshot.output.strip()[-160:]})"
    return f"{text}; snapshot: {kept}"
