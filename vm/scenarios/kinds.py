"""VEs of several kinds, each damaged: LXC on an image and on LVM and nspawn are repaired.

A subvolume of a btrfs that the node has mounted is the node's: its VE is named, and nothing
is repaired.
"""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine, MachineError

NAME = "kinds"
TEXT = "LXC on an image, on a plain and a thin LV and a subvolume, nspawn of machined: damaged"
KERNELS = "oldest"


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    machine.run(
        "vgcreate -q vg /dev/vdc && lvcreate -qy -L 200M -n plain vg "
        "&& lvcreate -qy -T -L 600M vg/pool && lvcreate -qy -T -V 200M -n thin vg/pool"
    )
    node.make_image(machine, f"{node.VES}/image.img")
    node.make_image(machine, "/dev/vg/plain")
    node.make_image(machine, "/dev/vg/thin")
    node.make_image(machine, f"{node.VES}/machines/nsp.raw")
    node.make_lxc(machine, "image", f"loop:{node.VES}/image.img")
    node.make_lxc(machine, "plain", "/dev/vg/plain")
    node.make_lxc(machine, "thin", "/dev/vg/thin")
    machine.run(f"mount --bind {node.VES}/machines /var/lib/machines && machinectl start nsp")
    # A volume of its own has nothing beside it to clone to: it is repaired in place.
    node.put_rule(
        machine, "05-lvm.toml", "auto", strategy="offline", ves='["lxc:plain", "lxc:thin"]'
    )
    node.set_mode(machine, "auto")
    seen: dict[str, Any] = {"cgroup": machine.run("stat -fc %T /sys/fs/cgroup").output.strip()}
    problems = []
    for name in ("image", "nsp", "plain", "thin"):
        try:
            seen[name] = _damage_and_repair(machine, name)
        except MachineError as error:
            problems.append(f"{name}: {error}")
    try:
        seen["subvolume"] = _damage_subvolume(machine)
    except MachineError as error:
        problems.append(f"subvolume: {error}")
    node.expect(not problems, "; ".join(problems))
    return seen


def _pid(machine: Machine, name: str) -> str:
    if name == "nsp":
        return machine.run("machinectl show -p Leader --value nsp").output.strip()
    return node.lxc_pid(machine, name)


def _damage_and_repair(machine: Machine, name: str) -> str:
    ve = "nspawn:nsp" if name == "nsp" else f"lxc:{name}"
    pid = _pid(machine, name)
    node.writes(machine, pid)
    whole = node.content(machine, pid)
    device = machine.run(f"findmnt -fnro SOURCE -N {pid} /").output.strip()
    node.trash_directory(machine, device)
    machine.run(f"ls /proc/{pid}/root/srv/files", check=False)
    incident = node.wait_incident(machine, ve, "closed", "needs-operator", timeout_s=400)
    node.expect(
        incident["outcome"] == "repaired",
        f"{incident['id']} of {ve} is repaired, not {incident['state']}: {incident['summary']}",
    )
    pid = _pid(machine, name)
    node.writes(machine, pid)
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    machine.run(f"grep -q {incident['id']} {node.RECEIVED}")
    how = [step["do"] for step in incident["steps"]]
    return f"{incident['outcome']} by {' '.join(how)}"


def _damage_subvolume(machine: Machine) -> str:
    """A file is overwritten on the device: its checksum tells, and nobody mends it."""
    image = f"{node.VES}/btrfs.img"
    machine.run(
        f"truncate -s 400M {image} && mkfs.btrfs -q {image} && mkdir -p /srv/btrfs "
        f"&& mount -o loop {image} /srv/btrfs && btrfs -q subvolume create /srv/btrfs/sub"
    )
    node.make_tree(machine, "/srv/btrfs/sub")
    machine.run(
        "yes 'what is going to be overwritten' | head -c 65536 > /srv/btrfs/sub/srv/victim; sync"
    )
    node.make_lxc(machine, "sub", "dir:/srv/btrfs/sub")
    pid = node.lxc_pid(machine, "sub")
    node.writes(machine, pid)
    machine.run(
        f"""set -e
place=$(grep -obUa 'going to be overwritten' {image} | head -1 | cut -d: -f1)
dd if=/dev/urandom of={image} bs=4096 seek=$((place / 4096 + 1)) count=2 conv=notrunc,fsync \
    status=none
echo 3 > /proc/sys/vm/drop_caches
! cat /proc/{pid}/root/srv/victim > /dev/null"""
    )
    incident = node.wait_incident(machine, "lxc:sub", "open", "waiting", "needs-operator")
    done = [step["do"] for step in incident["steps"] if step["do"] != "notify"]
    node.expect(not done, f"nothing is repaired: {done}")
    node.writes(machine, pid)
    return f"{incident['class']}, {incident['state']}: {incident['summary']}"
