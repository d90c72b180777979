"""The life of the package: README install, drill, reboot with a new kernel, upgrade, purge."""

from __future__ import annotations

from typing import Any

from vm import guest, node
from vm.machine import Machine

NAME = "life"
TEXT = "install, start, drill, reboot into the newest kernel, upgrade while a VE runs, purge"
KERNELS = "oldest"
ABOUT_S = 800
BARE = True  # it installs the package itself

_LEFT = "find / -xdev -iname '*fswatch*' -not -path '/tmp/*' -not -path '/var/log/*' -print"


def run(machine: Machine) -> dict[str, Any]:
    """Raises MachineError where anything is not as it has to be."""
    seen: dict[str, Any] = {}
    before = machine.run(_LEFT).output
    node.install(machine)
    machine.run("systemctl is-active fswatchd.service fswatchd.socket")
    node.expect(node.status(machine)["mode"] == "observe", "as installed it observes")
    machine.run("man -w fswatchd 2>/dev/null || test -s /usr/share/man/man8/fswatchd.8.gz")
    machine.run("getent group fswatch && stat -c %G%a /run/fswatchd/api.sock | grep -x fswatch660")
    node.expect("fswatchd" in machine.run("journalctl --list-catalog").output, "catalog is known")

    drill = machine.run(
        f"fswatch drill --json --files 300 --dir {node.VES}", timeout_s=1200, check=False
    )
    result = drill.json()
    node.expect(result["passed"], f"the drill passes: {result['why_failed']}")
    seen["drill: reads stopped"] = f"{result['outage_s']:.2f} s"
    machine.run("! findmnt -rno TARGET | grep drill && ! losetup -l | grep drill")

    newest = guest.prepare().kernels[-1]
    machine.reboot(newest)
    seen["rebooted with"] = machine.run("uname -r").output.strip()
    node.expect(seen["rebooted with"] == newest[0], f"{newest[0]} runs")
    node.mount_payload(machine)
    machine.wait_for("systemctl is-active fswatchd", "the daemon runs after a reboot")
    seen["start to READY"] = _start_time(machine)
    # Beside what any Debian starts at its boot, at the same time and on the same machine.
    blame = machine.run("systemd-analyze blame --no-pager | head -12").output
    seen["beside it"] = "; ".join(" ".join(line.split()) for line in blame.splitlines())
    security = machine.run("systemd-analyze security --no-pager fswatchd | tail -1").output
    seen["systemd-analyze security"] = security.split(":")[1].split()[0]
    node.expect(float(seen["systemd-analyze security"]) <= 6.0, f"exposure: {security}")
    kept = node.incidents(machine)
    node.expect(len(kept) == 1, "the incident of the drill outlives the reboot")

    pid = machine.run("systemctl show -P MainPID fswatchd").output.strip()
    machine.run("systemctl reload fswatchd")
    machine.run(f"test $(systemctl show -P MainPID fswatchd) = {pid} && kill -9 {pid}")
    machine.wait_for(
        f"systemctl is-active fswatchd && test $(systemctl show -P MainPID fswatchd) != {pid}",
        "systemd starts a daemon that was killed",
    )

    node.make_image(machine, f"{node.VES}/ve1.img")
    node.make_lxc(machine, "ve1", f"loop:{node.VES}/ve1.img")
    machine.run("echo '# mine' >> /etc/fswatchd/fswatchd.toml")
    init = machine.run("lxc-info -n ve1 -pH").output
    machine.run(f"apt-get install -y -qq {node.PAYLOAD}/upgrade/*.deb", timeout_s=1200)
    machine.run("systemctl is-active fswatchd.service fswatchd.socket")
    machine.run("dpkg-query -W -f '${Version}' fswatchd | grep -- -2~")
    machine.run("grep '# mine' /etc/fswatchd/fswatchd.toml")
    node.expect(machine.run("lxc-info -n ve1 -pH").output == init, "the VE has not noticed")
    node.expect(len(node.incidents(machine)) == len(kept), "incidents outlive the upgrade")

    machine.run("apt-get purge -y -qq fswatchd", timeout_s=1200)
    after = machine.run(_LEFT).output
    node.expect(before == after, f"purge leaves nothing, but there is\n{after}")
    node.expect(machine.run("lxc-info -n ve1 -pH").output == init, "the VE outlives the package")
    machine.run("! systemctl list-units --all --no-legend | grep fswatch")
    return seen


def _start_time(machine: Machine) -> str:
    begin, end = (
        int(machine.run(f"systemctl show -P {name}TimestampMonotonic fswatchd").output)
        for name in ("InactiveExit", "ActiveEnter")
    )
    return f"{(end - begin) / 1e6:.1f} s"
