"""What scenarios do to a machine: install the package, make VEs, damage them, look from outside.

Nothing here asks fswatchd whether something is right: files, tools of the filesystems and of the
platforms do. What fswatchd says is compared with that.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vm.machine import Machine, MachineError

PAYLOAD = "/media/payload"
VES = "/srv/ves"
README = Path(__file__).parents[1] / "README.md"

# A busybox that is the whole of a VE: it appends a line to /log each second, durably.
_TREE = r"""
set -e
tree=$1; mkdir -p $tree/{bin,sbin,dev,proc,sys,tmp,run,etc,usr,var,root,srv/files}
cp /usr/bin/busybox $tree/bin/
for name in sh mount sleep date sync poweroff reboot ls cat md5sum find; do
    ln -s busybox $tree/bin/$name; done
ln -s ../bin/busybox $tree/sbin/init
cat > $tree/etc/inittab <<'END'
::respawn:/bin/sh -c 'while date >> /log && sync; do sleep 1; done; sleep 1'
::ctrlaltdel:/bin/poweroff
::shutdown:/bin/sync
END
echo 'ID=busybox' > $tree/etc/os-release; echo 'root:x:0:0::/root:/bin/sh' > $tree/etc/passwd
for n in $(seq 300); do echo "content of file $n" > $tree/srv/files/file-with-a-long-name-$n; done
"""
_LXC = """lxc.rootfs.path = {rootfs}
lxc.uts.name = {name}
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.autodev = 1
lxc.mount.auto = proc sys cgroup:mixed
lxc.tty.max = 0
lxc.signal.halt = SIGUSR1
"""


def install_commands() -> list[str]:
    """What the README says, for the node itself: the lines with sudo of its section."""
    section = README.read_text(encoding="utf-8").split("### By the package\n", 1)[1]
    block = re.search(r"(?:^    .*\n)+", section, re.M)
    lines = block[0].splitlines() if block else []
    return [
        line.strip()[5:].partition("  #")[0]
        for line in lines
        if line.startswith(("    sudo apt", "    sudo fswatch"))
    ]


def mount_payload(machine: Machine) -> None:
    """The disk with the packages."""
    machine.run(f"mkdir -p {PAYLOAD} && mountpoint -q {PAYLOAD} || mount -o ro /dev/vdd {PAYLOAD}")


def install(machine: Machine, *, auto: bool = False) -> None:
    """The package as the README has it, on a node with room for clones below `VES`."""
    mount_payload(machine)
    machine.run(
        f"mountpoint -q {VES} || {{ mkfs.xfs -q -m reflink=1 /dev/vdb && "
        f"echo '/dev/vdb {VES} xfs defaults 0 0' >> /etc/fstab && mount {VES}; }}"
    )
    for command in install_commands():
        machine.run(f"cd {PAYLOAD} && {command}", check="doctor" not in command)
    if auto:
        set_mode(machine, "auto")


def set_mode(machine: Machine, mode: str) -> None:
    """The widest that any rule may act, and the shipped rule for ext4 as wide."""
    machine.run(
        f"""printf '[daemon]\\nmode = "{mode}"\\n' > /etc/fswatchd/fswatchd.toml
sed 's/^mode .*/mode = "{mode}"/' /usr/lib/fswatchd/rules.d/10-ext4.toml \
    > /etc/fswatchd/rules.d/10-ext4.toml
systemctl restart fswatchd"""
    )


def make_tree(machine: Machine, tree: str) -> None:
    """The root directory of a VE."""
    machine.run(f"cat > /tmp/make-tree <<'EOT'\n{_TREE}\nEOT\nbash /tmp/make-tree {tree}")


def make_image(machine: Machine, path: str, *, size: str = "256M", label: str = "") -> None:
    """An ext4 with a VE in it, in an image file or on a device."""
    make_tree(machine, "/tmp/tree")
    machine.run(
        f"mkdir -p $(dirname {path}) && mke2fs -q -F -t ext4 -e remount-ro {label} "
        f"-d /tmp/tree {path} {'' if path.startswith('/dev/') else size} && rm -r /tmp/tree"
    )


def make_lxc(machine: Machine, name: str, rootfs: str) -> None:
    """A container of LXC, running."""
    config = _LXC.format(rootfs=rootfs, name=name)
    machine.run(
        f"mkdir -p /var/lib/lxc/{name} && cat > /var/lib/lxc/{name}/config <<'EOT'\n{config}EOT"
    )
    machine.run(f"lxc-start -n {name} && lxc-wait -n {name} -s RUNNING -t 60")


def trash_directory(machine: Machine, device: str, name: str = "/srv/files") -> None:
    """Random bytes over the first block of a directory, on the device beneath the filesystem."""
    machine.run(
        f"""set -e
sync
block=$(debugfs -R 'blocks {name}' {device} 2>/dev/null | awk '{{print $1}}')
test "$block" -gt 0
dd if=/dev/urandom of={device} bs=4096 seek=$block count=1 conv=notrunc,fsync status=none
echo 3 > /proc/sys/vm/drop_caches"""
    )


def status(machine: Machine) -> Any:
    """`fswatch status`, as JSON."""
    return machine.run("fswatch status --json", check=False).json()


def incidents(machine: Machine) -> list[Any]:
    """All incidents, as JSON."""
    found: list[Any] = machine.run("fswatch incidents --all --json", check=False).json()
    return found


def wait_incident(
    machine: Machine, ve: str, *states: str, timeout_s: float = 180.0
) -> dict[str, Any]:
    """An incident of the VE in one of these states; raises MachineError with what there is."""
    code = (
        "import json,sys; found=[i for i in json.load(sys.stdin) "
        f"if any({ve!r} in v for v in i['ves']) and i['state'] in {states!r}]; "
        "print(json.dumps(found[:1])); sys.exit(not found)"
    )
    command = f"fswatch incidents --all --json | python3 -c {json.dumps(code)}"
    what = f"an incident of {ve} that is {' or '.join(states)}"
    try:
        found = machine.wait_for(command, what, timeout_s=timeout_s).json()
    except MachineError as error:
        everything = machine.run("fswatch incidents --all", check=False).output
        raise MachineError(f"{error}\n{everything}") from None
    incident: dict[str, Any] = found[0]
    return incident


def expect(condition: bool, what: str) -> None:
    """Raise MachineError unless the condition holds."""
    if not condition:
        raise MachineError(f"not so: {what}")


def collect(machine: Machine) -> None:
    """What explains a failure, into the machine's directory."""
    for name, command in (
        ("journal.txt", "journalctl -b -o short-precise --no-pager -n 3000"),
        ("status.json", "fswatch status --json"),
        ("incidents.txt", "fswatch incidents --all"),
        ("doctor.txt", "fswatch doctor"),
    ):
        (machine.work / name).write_text(machine.run(command, check=False).output)
