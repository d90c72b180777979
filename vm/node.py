"""What scenarios do to a machine: install the package, make VEs, damage them, look from outside.

Nothing here asks fswatchd whether something is right: files, tools of the filesystems and of the
platforms do. What fswatchd says is compared with that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from vm.machine import Machine, MachineError

PAYLOAD = "/media/payload"
VES = "/srv/ves"
API = "/run/fswatchd/api.sock"
LOOK_EVERY_S = 3.0  # each look is a shell, curl and a page of JSON for a processor that is emulated
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
_RULE = """[[rule]]
name = "{fstype}-{strategy}"
match.ve = {ves}
match.class = ["corruption", "readonly", "shutdown"]
match.severity = ">= error"
match.fstype = ["{fstype}"]
mode = "{mode}"
threshold = "1 in 10m"
cooldown = "0s"
budget = {{ node = 4, device = 4 }}
healthy = "5s"
[[rule.step]]
do = "fsck"
strategy = "{strategy}"
{of_clone}on_failure = "quarantine"
[[rule.step]]
do = "notify"
to = ["*"]
"""
# Whoever is told stands beside the daemon, and writes down what it gets.
CONFIGURATION = """[daemon]
mode = "auto"
[channel.ops]
kind = "webhook"
url = "http://127.0.0.1:9999/"
"""
RECEIVED = "/run/received"
_RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open("/run/received", "ab") as file:
            file.write(self.rfile.read(int(self.headers["Content-Length"])) + b"\\n")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 9999), Handler).serve_forever()
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


def wait_daemon(machine: Machine) -> None:
    """The daemon of a node that has just booted answers."""
    machine.wait_for(f"curl -sf --unix-socket {API} http://node/v1/status", "the daemon answers")


def wait_ready(machine: Machine) -> None:
    """The daemon answers, and the disk with the packages is there."""
    mount_payload(machine)
    wait_daemon(machine)


def install(machine: Machine) -> None:
    """The package as the README has it, on a node with room for clones below `VES`."""
    mount_payload(machine)
    machine.run(
        f"mountpoint -q {VES} || {{ mkfs.xfs -q -m reflink=1 /dev/vdb && "
        f"echo '/dev/vdb {VES} xfs defaults 0 0' >> /etc/fstab && mount {VES}; }}"
    )
    for command in install_commands():
        machine.run(f"cd {PAYLOAD} && {command}", timeout_s=900, check="doctor" not in command)


def set_mode(machine: Machine, mode: str) -> None:
    """What the rule for ext4 may do; the node itself permits all (`CONFIGURATION`)."""
    put_rule(machine, "10-ext4.toml", mode)


def rule(mode: str, *, strategy: str = "clone", ves: str = '["*"]', fstype: str = "ext4") -> str:
    """The text of a rule that repairs."""
    of_clone = 'max_write_pause = "10m"\n' if strategy == "clone" else ""
    return _RULE.format(mode=mode, strategy=strategy, ves=ves, fstype=fstype, of_clone=of_clone)


def put_rule(
    machine: Machine,
    name: str,
    mode: str,
    *,
    strategy: str = "clone",
    ves: str = '["*"]',
    fstype: str = "ext4",
) -> None:
    """A rule that repairs in a file of the admin's, in force."""
    save_rule(machine, name, rule(mode, strategy=strategy, ves=ves, fstype=fstype))


def save_rule(machine: Machine, name: str, text: str) -> None:
    """Deploy a rule file as an admin does, by saving it; wait until it is in force."""
    place = "/etc/fswatchd/rules.d"
    machine.run(f"cat > {place}/.{name} <<'END'\n{text}END\nmv {place}/.{name} {place}/{name}")
    wanted = (
        re.findall(r'^name = "(.+)"$', text, re.M)[0],
        re.findall(r'^mode = "(.+)"$', text, re.M),
    )
    deadline = time.monotonic() + 60.0
    while True:
        found = [one for one in _api(machine, "rules")["rules"] if one["name"] == wanted[0]]
        if found and found[0]["mode"] in wanted[1]:
            return
        if time.monotonic() > deadline:
            raise MachineError(f"{name} is not in force: {found}")
        time.sleep(LOOK_EVERY_S)


def make_tree(machine: Machine, tree: str) -> None:
    """The root directory of a VE."""
    machine.run(f"cat > /tmp/make-tree <<'EOT'\n{_TREE}\nEOT\nbash /tmp/make-tree {tree}")


def make_image(machine: Machine, path: str, *, size: str = "256M", label: str = "") -> None:
    """An ext4 with a VE in it, in an image file or on a device."""
    make_tree(machine, "/tmp/tree")
    machine.run(
        f"mkdir -p $(dirname {path}) && mke2fs -q -F -t ext4 -b 4096 -e remount-ro {label} "
        f"-d /tmp/tree {path} {'' if path.startswith('/dev/') else size} && rm -r /tmp/tree"
    )


def make_xfs(machine: Machine, device: str) -> None:
    """An XFS with a VE in it, on a device."""
    machine.run(f"mkfs.xfs -q {device} && mkdir -p /mnt/made && mount {device} /mnt/made")
    make_tree(machine, "/mnt/made/tree")
    machine.run("mv /mnt/made/tree/* /mnt/made/ && rmdir /mnt/made/tree && umount /mnt/made")


def make_lxc(machine: Machine, name: str, rootfs: str) -> None:
    """A container of LXC, running."""
    config = _LXC.format(rootfs=rootfs, name=name)
    machine.run(
        f"mkdir -p /var/lib/lxc/{name} && cat > /var/lib/lxc/{name}/config <<'EOT'\n{config}EOT"
    )
    machine.run(f"lxc-start -n {name} && lxc-wait -n {name} -s RUNNING -t 60")


def mount_seen(machine: Machine, command: str, *, timeout_s: float = 60.0) -> None:
    """Mount something, and wait until the daemon watches one filesystem more.

    Nothing may have been unmounted before: when that is noticed nobody can tell.
    """
    before = _watched(machine)
    machine.run(command)
    deadline = time.monotonic() + timeout_s
    while _watched(machine) <= before:
        if time.monotonic() > deadline:
            raise MachineError(f"the daemon does not watch what was mounted by: {command}")
        time.sleep(LOOK_EVERY_S)


def _watched(machine: Machine) -> int:
    sources = {source["name"]: source for source in status(machine)["sources"]}
    return int((sources["state"]["detail"] or "0").split()[0])


def start_receiver(machine: Machine) -> None:
    """Who is told of incidents, in a unit of its own."""
    machine.run(
        f"cat > /run/receiver.py <<'END'{_RECEIVER}END\n"
        "systemd-run -q -u receiver python3 /run/receiver.py"
    )


def content(machine: Machine, pid: str) -> str:
    """A digest of all files of a VE's `make_tree`, under whatever name, read by the node itself."""
    return content_below(machine, f"/proc/{pid}/root")


def content_below(machine: Machine, root: str) -> str:
    """The same of a tree that is mounted at `root`."""
    return machine.run(
        f"find {root}/srv {root}/lost+found -type f -size -2 -exec cat {{}} + 2>/dev/null "
        "| grep '^content of file' | sort | md5sum"
    ).output.split()[0]


def lxc_pid(machine: Machine, name: str) -> str:
    """The init process of a running container."""
    return machine.run(f"lxc-info -n {name} -pH").output.strip()


def device_of(machine: Machine, pid: str) -> str:
    """The block device beneath a VE's root, by its number: its name may be of another namespace."""
    number = machine.run(f"findmnt -fnro MAJ:MIN -N {pid} /").output.strip()
    return machine.run(f"readlink -f /dev/block/{number}").output.strip()


def writes(machine: Machine, pid: str) -> None:
    """Wait until the VE has appended a line to its log, and so has written durably."""
    log = f"/proc/{pid}/root/log"
    machine.run(
        f"n=$(wc -l < {log}); for i in $(seq 60); do sleep 1; "
        f"test $(wc -l < {log}) -gt $n && exit; done; exit 1"
    )


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


def trash_xfs_directory(machine: Machine, device: str, inode: str) -> None:
    """The same of an XFS that nobody has mounted."""
    machine.run(
        f'xfs_db -x -c "inode {inode}" -c "dblock 0" -c "blocktrash -2 -x 64 -n 8 -z" {device}'
    )


def _api(machine: Machine, path: str) -> Any:
    """A document of the API: a tenth of the time that `fswatch` takes to start under TCG."""
    url = f"http://node/v1/{path}"
    return machine.run(f"curl -sS --max-time 20 --unix-socket {API} '{url}'", check=False).json()


def status(machine: Machine) -> Any:
    """What `fswatch status` shows."""
    return _api(machine, "status")


def incidents(machine: Machine) -> list[Any]:
    """All incidents."""
    found: list[Any] = _api(machine, "incidents?all=1")["incidents"]
    return found


def acknowledge(machine: Machine, incident_id: str) -> None:
    """End an incident as an operator does."""
    url = f"http://node/v1/incidents/{incident_id}/ack"
    body = "-H 'Content-Type: application/json' -d '{}'"
    machine.run(f"curl -sSf --max-time 60 --unix-socket {API} -X POST {body} {url}", check=False)


def device_recovered(machine: Machine, incident_id: str) -> bool:
    """Say that the device of an incident works again; whether that was believed."""
    command = f"fswatch ack {incident_id} --recovered --reason 'another disk'"
    return machine.run(command, check=False).code == 0


def wait_incident(
    machine: Machine, ve: str, *states: str, timeout_s: float = 240.0, known: Collection[str] = ()
) -> dict[str, Any]:
    """A new incident of the VE in one of these states; raises MachineError with what there is."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = incidents(machine)
        except ValueError:
            found = []  # the daemon does not answer yet
        for one in found:
            if ve in one["ves"] and one["state"] in states and one["id"] not in known:
                return dict(one)
        if time.monotonic() > deadline:
            there = "; ".join(f"{one['id']} {one['state']}: {one['summary']}" for one in found)
            wanted = " or ".join(states)
            raise MachineError(f"no incident of {ve} is {wanted}; there is: {there or 'none'}")
        time.sleep(LOOK_EVERY_S)


def wait_class(
    machine: Machine,
    device: str,
    klass: str,
    *,
    heard_by: Collection[str] = (),
    timeout_s: float = 240.0,
) -> dict[str, Any]:
    """An incident of this class about a device; raises MachineError with what there is."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = incidents(machine)
        for one in found:
            found_it = one["filesystem"]["device"] == device and one["class"] == klass
            if found_it and set(heard_by) <= set(one["sources"]):
                return dict(one)
        if time.monotonic() > deadline:
            there = "; ".join(
                f"{one['filesystem']['device']} {one['class']} {one['sources']}: {one['summary']}"
                for one in found
            )
            raise MachineError(f"no incident of class {klass} about {device}: {there or 'none'}")
        time.sleep(LOOK_EVERY_S)


def expect(condition: bool, what: str) -> None:
    """Raise MachineError unless the condition holds."""
    if not condition:
        raise MachineError(f"not so: {what}")


def collect(machine: Machine) -> None:
    """What explains a failure, into the machine's directory."""
    for name, command in (
        ("journal.txt", "journalctl -b -o short-precise --no-pager -n 3000"),
        ("boot.txt", "systemd-analyze; systemd-analyze blame --no-pager | head -40"),
        ("processes.txt", "top -b -n 1 -w 160 | head -40"),
        ("status.json", f"curl -sS --max-time 60 --unix-socket {API} http://node/v1/status"),
        ("incidents.json", f"curl -sS --unix-socket {API} 'http://node/v1/incidents?all=1'"),
    ):
        (machine.work / name).write_text(machine.run(command, check=False).output)
    with (machine.work / "why.txt").open("w") as file, suppress(ValueError):  # purged: none answers
        for incident in incidents(machine):
            why = _api(machine, f"incidents/{incident['id']}/why")
            file.write(f"{why['text']}\n\n")
