"""VEs of several kinds, each damaged: LXC on an image and on LVM and nspawn are repaired.

Image, thin and plain volume by a clone, thin ones with ext4 and with XFS; another plain one, with
XFS, in place. The thin one with ext4 is looked at while it is whole, and put back as it was before
its repair.

A subvolume of a btrfs that the node has mounted is the node's: its VE is named, and nothing
is repaired.
"""

from __future__ import annotations

from typing import Any

from vm import node
from vm.machine import Machine, MachineError

NAME = "kinds"
TEXT = "LXC on an image, on plain and thin LVs and a subvolume, nspawn of machined: damaged"
KERNELS = "newest"
ABOUT_S = 650
_TAG = "pve-vm-101"
_XFS = ("xfs", "inplace")


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    machine.run(
        f"vgcreate -q vg /dev/vdc && lvcreate -qy -L 200M -n plain --addtag {_TAG} vg "
        "&& lvcreate -qy -L 320M -n inplace vg && lvcreate -qy -T -L 1800M vg/pool "
        f"&& lvcreate -qy -T -V 200M -n thin --addtag {_TAG} vg/pool "
        f"&& lvcreate -qy -T -V 320M -n xfs --addtag {_TAG} vg/pool"
    )
    node.make_image(machine, f"{node.VES}/image.img")
    node.make_image(machine, "/dev/vg/plain")
    node.make_xfs(machine, "/dev/vg/inplace")
    node.make_xfs(machine, "/dev/vg/xfs")
    node.make_image(machine, "/dev/vg/thin")
    node.make_image(machine, f"{node.VES}/machines/nsp.raw")
    node.make_lxc(machine, "image", f"loop:{node.VES}/image.img")
    node.make_lxc(machine, "plain", "/dev/vg/plain")
    node.make_lxc(machine, "inplace", "/dev/vg/inplace")
    node.make_lxc(machine, "thin", "/dev/vg/thin")
    node.make_lxc(machine, "xfs", "/dev/vg/xfs")
    machine.run(f"mount --bind {node.VES}/machines /var/lib/machines && machinectl start nsp")
    node.put_rule(
        machine, "05-lvm.toml", "auto", strategy="offline", ves='["lxc:inplace"]', fstype="xfs"
    )
    node.put_rule(machine, "06-xfs.toml", "auto", ves='["lxc:xfs"]', fstype="xfs")
    # One VE after the other is damaged here, which is no storm; the file replaces the shipped one.
    machine.run("printf '[storm]\\nves = 20\\n' > /etc/fswatchd/rules.d/00-storm.toml")
    node.set_mode(machine, "auto")
    seen: dict[str, Any] = {"cgroup": machine.run("stat -fc %T /sys/fs/cgroup").output.strip()}
    problems = []
    for name, do in (
        ("thin, whole", _look_at_thin),
        ("thin", _repair_thin),
        ("thin, put back", _put_thin_back),
        ("image", lambda m: _damage_and_repair(m, "image")[1]),
        ("nsp", lambda m: _damage_and_repair(m, "nsp")[1]),
        ("plain", _repair_plain),
        ("thin, XFS", lambda m: _repair_volume(m, "xfs", "lv_name=~^xfs")),
        ("plain, XFS, in place", lambda m: _damage_and_repair(m, "inplace")[1]),
        ("subvolume", _damage_subvolume),
    ):
        try:
            seen[name] = do(machine)
        except MachineError as error:
            problems.append(f"{name}: {error}")
    node.expect(not problems, "; ".join(problems))
    return seen


def _pid(machine: Machine, name: str) -> str:
    if name == "nsp":
        return machine.run("machinectl show -p Leader --value nsp").output.strip()
    return node.lxc_pid(machine, name)


def _volumes(machine: Machine, which: str = "pool_lv=pool") -> dict[str, str]:
    """The UUIDs of the thin volumes that there are, or of others, by their names."""
    show = f"lvs --noheadings -o lv_name,lv_uuid -S '{which}' vg"
    return dict(line.split() for line in machine.run(show).output.splitlines())  # type: ignore[misc]


def _by_uuid(machine: Machine, pid: str) -> None:
    """No clone has taken the link that leads to the filesystem in use."""
    device = node.device_of(machine, pid)
    link = f"/dev/disk/by-uuid/$(blkid -p -s UUID -o value {device})"
    machine.wait_for(f"test $(readlink -f {link}) = {device}", f"{link} leads to {device}")


def _look_at_thin(machine: Machine) -> str:
    pid, before = node.lxc_pid(machine, "thin"), _volumes(machine)
    # As `fswatch repair lxc:thin --dry-run` asks, with the patience that an emulated machine needs.
    seen = machine.run(
        f"curl -sS --max-time 500 --unix-socket {node.API} -X POST http://node/v1/repair "
        """-H 'Content-Type: application/json' -d '{"target": "lxc:thin", "dry_run": true}'""",
        timeout_s=520,
    ).json()
    node.expect(seen.get("clean") is True, f"a healthy thin volume is clean: {seen}")
    node.expect(_volumes(machine) == before, "a preview leaves nothing behind")
    _by_uuid(machine, pid)
    node.writes(machine, pid)
    return f"{seen['found']}, in {seen['seconds']} s"


def _repair_thin(machine: Machine) -> str:
    how = _repair_volume(machine, "thin", "lv_name=~^thin")
    machine.run(
        "lvs --reportformat json -a -o vg_name,vg_uuid,vg_attr,lv_name,lv_uuid,lv_attr,"
        "segtype,pool_lv,lv_tags vg; dmsetup status; dmsetup ls --tree"
    )
    return how


def _repair_plain(machine: Machine) -> str:
    return _repair_volume(machine, "plain", "lv_name=~^plain")


def _repair_volume(machine: Machine, name: str, which: str) -> str:
    before = _volumes(machine, which)
    incident, how = _damage_and_repair(machine, name)
    after, damaged = _volumes(machine, which), f"{name}.damaged-{incident}"
    node.expect(after.keys() == {name, damaged}, f"original and repaired, not {after}")
    node.expect(after[damaged] == before[name] != after[name], "the original is kept aside")
    machine.run(f"lvs --noheadings -o lv_tags vg/{name} | grep -wx ' *{_TAG}'")
    _by_uuid(machine, node.lxc_pid(machine, name))
    return how


def _put_thin_back(machine: Machine) -> str:
    """The rollback, and nothing that repairs what it brings back."""
    node.set_mode(machine, "observe")
    try:
        return _roll_back(machine)
    finally:
        machine.run("lxc-stop -k -n thin", check=False)
        node.set_mode(machine, "auto")


def _roll_back(machine: Machine) -> str:
    before = _volumes(machine)
    (damaged,) = (name for name in before if name.startswith("thin.damaged-"))
    incident = damaged.removeprefix("thin.damaged-")
    machine.run(f"fswatch rollback {incident} --discard-newer", timeout_s=900)
    machine.wait_for(
        f"test $(lvs --noheadings -o lv_uuid vg/thin) = {before[damaged]}", "the original is back"
    )
    machine.run("lxc-wait -n thin -s RUNNING -t 120")
    after = _volumes(machine)
    node.expect(after.get(f"thin.repaired-{incident}") == before["thin"], f"kept: {after}")
    node.expect(len(after) == len(before), f"nothing else: {after}")
    return "the original is in place again, the repaired one is kept"


def _damage_and_repair(machine: Machine, name: str) -> tuple[str, str]:
    ve = "nspawn:nsp" if name == "nsp" else f"lxc:{name}"
    pid = _pid(machine, name)
    node.writes(machine, pid)
    whole = node.content(machine, pid)
    if name in _XFS:
        inode = machine.run(f"stat -c %i /proc/{pid}/root/srv/files").output.strip()
        machine.run(f"lxc-stop -k -n {name} && lxc-wait -n {name} -s STOPPED -t 60")
        node.trash_xfs_directory(machine, f"/dev/vg/{name}", inode)
        machine.run(f"lxc-start -n {name} && lxc-wait -n {name} -s RUNNING -t 60")
        pid = _pid(machine, name)
    else:
        node.trash_directory(machine, node.device_of(machine, pid))
    machine.run(f"ls /proc/{pid}/root/srv/files", check=False)
    incident = node.wait_incident(machine, ve, "closed", "needs-operator", timeout_s=400)
    node.expect(
        incident["outcome"] == "repaired",
        f"{incident['id']} of {ve} is repaired, not {incident['state']}: {incident['summary']}",
    )
    pid = _pid(machine, name)
    node.writes(machine, pid)
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    if name not in _XFS:
        said = " ".join(step["detail"] or "" for step in incident["steps"])
        told = "stay in lost+found without" in said and "not looked for" not in said
        node.expect(told, f"names are looked for in the service's own sandbox: {said}")
    machine.run(f"grep -q {incident['id']} {node.RECEIVED}")
    how = [step["do"] for step in incident["steps"]]
    return incident["id"], f"{incident['outcome']} by {' '.join(how)}"


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
