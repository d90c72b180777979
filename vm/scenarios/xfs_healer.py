"""xfs_healer(8) repairs beside us: we stand back, and the incident tells what it did.

Where it gives up on a VE's filesystem the VE is repaired by clone.
"""

from __future__ import annotations

from typing import Any

from vm import node
from vm.guest import NEWER
from vm.machine import Machine

NAME = "xfs-healer"
TEXT = "xfs_healer beside the daemon: one damaged directory is healed, two are left to a clone"
KERNELS = "newest"
ABOUT_S = 250

_INSTALL = f"""set -e
mkdir -p /usr/libexec/xfsprogs
ln -s {NEWER}/usr/libexec/xfsprogs/xfs_healer* /usr/libexec/xfsprogs/
cp {NEWER}/usr/lib/systemd/system/*xfs_healer* /etc/systemd/system/
# All of the package that it comes with.
for program in repair logprint db; do cp {NEWER}/usr/sbin/xfs_$program /usr/sbin/; done
mkdir /etc/systemd/system/xfs_healer@.service.d
cat > /etc/systemd/system/xfs_healer@.service.d/repair.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/libexec/xfsprogs/xfs_healer --repair --everything %f
END
# What it cannot mend it has xfs_scrub look at, for ever, on a mount of that one's own: then nobody
# else may repair it.
ln -s /dev/null /etc/systemd/system/xfs_scrub@.service
systemctl daemon-reload"""
_GIVEN_UP = "journalctl -b -u {} -o cat --no-pager | grep -q 'offline repair required'"
# A VE that no platform has: the node mounts its image, and a service runs in it.
_VE = "taken-over"
_PROGRAM = f"/usr/local/sbin/{_VE}"
_TAKEN_OVER = f"""set -e
cat > {_PROGRAM} <<'END'
#!/bin/sh
case $1 in
start)
    mountpoint -q /srv/{_VE} || mount -o loop {node.VES}/{_VE}.img /srv/{_VE} || exit 1
    exec systemctl start {_VE} ;;
stop) systemctl stop {_VE} ;;
kill) systemctl kill -s KILL {_VE}; systemctl stop {_VE} ;;
esac
# By name: an XFS that has shut down answers mountpoint(1) with EIO.
! grep -q " /srv/{_VE} " /proc/self/mounts || umount /srv/{_VE}
END
chmod 755 {_PROGRAM}
cat > /etc/systemd/system/{_VE}.service <<'END'
[Service]
RootDirectory=/srv/{_VE}
PrivateMounts=yes
MountAPIVFS=yes
ExecStart=/bin/sh -c 'while date >> /log && sync; do sleep 1; done'
END
systemctl daemon-reload
cat > /etc/fswatchd/ve.d/{_VE}.toml <<'END'
[[ve]]
name = "{_VE}"
cgroup = "/system.slice/{_VE}.service"
volume = [ {{ image = "{node.VES}/{_VE}.img", mountpoint = "/" }} ]
start = ["{_PROGRAM}", "start"]
stop = ["{_PROGRAM}", "stop"]
kill = ["{_PROGRAM}", "kill"]
END
systemctl reload fswatchd
truncate -s 500M {node.VES}/{_VE}.img
mkfs.xfs -q -m rmapbt=1 -n parent=1 {node.VES}/{_VE}.img
mkdir /srv/{_VE}; mount -o loop {node.VES}/{_VE}.img /srv/{_VE}"""
_DAMAGE_TWO = f"""set -e
inodes=$(stat -c %i /srv/{_VE}/srv/files /srv/{_VE}/srv/more); umount /srv/{_VE}
for inode in $inodes; do
    {NEWER}/usr/sbin/xfs_db -x -c "inode $inode" -c "dblock 0" -c "blocktrash -2 -x 64 -n 8 -z" \\
        {node.VES}/{_VE}.img
done"""
# Parent pointers and the reverse map are what the kernel mends a directory from.
_MAKE = """set -e
cd {ves}; truncate -s 500M {name}.img
{newer}/usr/sbin/mkfs.xfs -q -m rmapbt=1 -n parent=1 {name}.img; mkdir /srv/{name}
mount {name}.img /srv/{name}; mkdir /srv/{name}/one
for n in $(seq 300); do touch /srv/{name}/one/file-with-a-long-name-$n; done
inode=$(stat -c %i /srv/{name}/one); umount /srv/{name}
{newer}/usr/sbin/xfs_db -x -c "inode $inode" -c "dblock 0" -c "blocktrash -2 -x 64 -n 8 -z" \\
    {name}.img"""


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    node.wait_ready(machine)
    node.start_receiver(machine)
    machine.run(_INSTALL)
    seen = {}
    device = _mounted_with_healer(machine, "healed")
    machine.run("ls /srv/healed/one", check=False)
    machine.wait_for("test $(ls /srv/healed/one | wc -l) = 300", "xfs_healer mends the directory")
    incident = node.wait_class(machine, device, "corruption")
    seen["one directory"] = _left_alone(machine, incident)
    seen["two directories of a VE"] = _taken_over(machine)
    return seen


def _taken_over(machine: Machine) -> str:
    machine.run(_TAKEN_OVER)
    node.make_tree(machine, f"/srv/{_VE}")
    machine.run(f"cp -r /srv/{_VE}/srv/files /srv/{_VE}/srv/more && sync -f /srv/{_VE}")
    whole = node.content_below(machine, f"/srv/{_VE}")
    machine.run(_DAMAGE_TWO)
    node.put_rule(machine, "11-xfs.toml", "auto", fstype="xfs")
    machine.run(f"{_PROGRAM} start")
    node.writes(machine, _main_pid(machine))
    unit = f"xfs_healer@$(systemd-escape -p /srv/{_VE}).service"
    machine.run(f"systemctl start {unit}", check=False)
    machine.wait_for(f"systemctl start {unit} && systemctl is-active {unit}", "xfs_healer runs")
    machine.run(f"ls /srv/{_VE}/srv/files; ls /srv/{_VE}/srv/more", check=False)
    incident = node.wait_incident(
        machine, f"declared:{_VE}", "closed", "needs-operator", timeout_s=400
    )
    node.expect(incident["outcome"] == "repaired", f"{incident['state']}: {incident['summary']}")
    machine.run(_GIVEN_UP.format(unit))
    pid = _main_pid(machine)
    node.writes(machine, pid)
    node.expect(node.content(machine, pid) == whole, "every file has its content")
    machine.run(f"grep -q {incident['id']} {node.RECEIVED}")
    return f"{incident['outcome']} by {' '.join(step['do'] for step in incident['steps'])}"


def _main_pid(machine: Machine) -> str:
    return machine.run(f"systemctl show -P MainPID {_VE}").output.strip()


def _mounted_with_healer(machine: Machine, name: str) -> str:
    """Returns the loop device."""
    machine.run(_MAKE.format(ves=node.VES, newer=NEWER, name=name))
    machine.run(f"mount {node.VES}/{name}.img /srv/{name}")
    unit = f"xfs_healer@$(systemd-escape -p /srv/{name}).service"
    # It finds the daemon at the monitor, which steps aside then.
    machine.run(f"systemctl start {unit}", check=False)
    machine.wait_for(f"systemctl start {unit} && systemctl is-active {unit}", "xfs_healer runs")
    return machine.run(f"basename $(losetup -nO NAME -j {node.VES}/{name}.img)").output.strip()


def _left_alone(machine: Machine, incident: dict[str, Any]) -> str:
    done = [step["do"] for step in incident["steps"] if step["do"] != "notify"]
    node.expect(not done, f"we stand back: {done}")
    machine.wait_for(f"grep -q {incident['id']} {node.RECEIVED}", "somebody is told")
    return f"{incident['state']}, heard by {' '.join(sorted(incident['sources']))}"
