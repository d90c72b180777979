"""One machine in QEMU: started, asked, rebooted, cut from its power, and kept while it runs.

Commands go through the guest agent of QEMU (qemu-guest-agent(8)) on a socket of its own, not
through a console: a node whose log is full of errors still answers.
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm.guest import DATA_BYTES, Kernel
from vm.monitor import Monitor

# Under TCG on two busy cores: a boot takes a minute, sometimes three. What TCG does not survive are
# the first seconds of a kernel: the initramfs, which begins after ten to twenty, tells that.
BOOT_S = 420.0
_KERNEL_S = 120.0
_INITRAMFS = "Loading, please wait"
_COMMAND_S = 300.0
_POLL_S = 0.25
_POLL_MAX_S = 2.0  # each question is a line in the guest's journal
_ENVIRONMENT = "LC_ALL=C HOME=/root PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# panic=1 and -no-reboot: a kernel that dies ends QEMU, and nobody waits for it.
# Dumps of what is damaged stay in the kernel's log: through TCG's serial line they stop everything.
# Nobody attacks this one through its processor: what the kernel does against that costs TCG much.
_CONSOLE = "console=ttyS0 panic=1 loglevel=1 systemd.show_status=0 mitigations=off"


# What a node works with; a third one is for what a scenario makes itself.
_DISKS = ("root.qcow2", "data.img")


class MachineError(Exception):
    """The machine does not do what it is there for; the text says what, and what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command in the guest has ended."""

    command: str
    code: int
    output: str

    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """What a machine begins with; it works on copies. Without `data` its second disk is empty.

    `memory` is that of a machine which ran on these disks: it goes on from there.
    """

    root: Path
    data: Path | None = None
    memory: Path | None = None


class Machine:
    """A guest with disks of its own in `work`, which also holds its console and what it leaves."""

    def __init__(self, work: Path, disks: Disks, kernel: Kernel, payload: Path) -> None:
        self.work = work
        self.release, self._kernel, self._initrd = kernel
        self._payload = payload
        self._memory = disks.memory
        self._socket_path = work / "agent.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._closed = False
        work.mkdir(parents=True, exist_ok=True)
        self.log = (work / "commands.log").open("a", encoding="utf-8")
        form = "raw" if disks.root.suffix == ".img" else "qcow2"
        root = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", str(disks.root)]
        subprocess.run([*root, str(work / "root.qcow2")], check=True)
        if disks.data is not None:
            copy = ["cp", "--sparse=always", str(disks.data), str(work / "data.img")]
            subprocess.run(copy, check=True)
        for name, size in (("data.img", DATA_BYTES), ("spare.img", 5 << 30)):
            with (work / name).open("ab") as file:
                file.truncate(size)

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)

    # --- power ----------------------------------------------------------------------------------

    def power_on(self) -> float:
        """Boot, or go on from where it was kept, and wait until the machine answers; how long.

        TCG is not perfect: a boot that fails is shown, and tried once more.
        """
        try:
            if self._memory is not None:
                return self._go_on(self._memory)
            return self._boot()
        except MachineError as error:
            print(f"  did not boot, once more: {error}", flush=True)
            self.power_cut()
            return self._boot()

    def _go_on(self, memory: Path) -> float:
        self._memory = None  # the disks are not those of then any more: later on it boots
        taken = self._start(f"exec:cat {shlex.quote(str(memory))}")
        self.run(f"date -s @{time.time():.3f}")
        return taken

    def _boot(self) -> float:
        return self._start(None)

    def _start(self, incoming: str | None) -> float:
        started = time.monotonic()
        if self._closed:
            raise MachineError("it was closed")
        said_before = len(self._console())
        self._socket_path.unlink(missing_ok=True)
        (self.work / "monitor.sock").unlink(missing_ok=True)
        argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35"]
        # What TCG has to emulate is the wide registers of younger ones: with this the same work
        # takes a seventh less.
        argv += ["-cpu", "Nehalem", "-smp", "2", "-m", "1536", "-nodefaults", "-nographic"]
        argv += ["-no-reboot"]
        argv += ["-kernel", str(self._kernel), "-initrd", str(self._initrd)]
        argv += ["-append", f"root=/dev/vda rw {_CONSOLE}"]
        argv += ["-chardev", f"file,id=console,path={self.work / 'console.log'},append=on"]
        argv += ["-serial", "chardev:console"]
        # SIGKILL of QEMU is a power cut: what the guest has not written yet is lost. What QEMU has
        # taken is in this node's page cache; but qcow2 keeps tables in memory until it is flushed.
        for name, options in (
            ("root.qcow2", "format=qcow2,cache=writeback"),
            ("data.img", "format=raw,cache=unsafe"),
            ("spare.img", "format=raw,cache=unsafe"),
        ):
            argv += ["-drive", f"file={self.work / name},if=virtio,{options}"]
        argv += ["-drive", f"file={self._payload},format=raw,if=virtio,readonly=on"]
        argv += ["-device", "virtio-serial"]
        argv += ["-chardev", f"socket,id=agent,path={self._socket_path},server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        argv += ["-qmp", f"unix:{self.work / 'monitor.sock'},server=on,wait=off"]
        if incoming is not None:
            argv += ["-incoming", incoming]
        with (self.work / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if incoming is not None:
            self._let_go_on(started + BOOT_S)
        else:
            self._wait_for_kernel(started + _KERNEL_S, said_before)
        self._wait_for_agent(started + BOOT_S)
        return time.monotonic() - started

    def power_cut(self) -> None:
        """SIGKILL for QEMU: nothing in the guest gets a chance."""
        self._disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def power_off(self) -> None:
        """An orderly shutdown, and a cut where it takes too long."""
        if self._process is None:
            return
        try:
            self._send("guest-shutdown", {"mode": "powerdown"})
            self._process.wait(timeout=180)
        except (subprocess.TimeoutExpired, OSError):
            print("  the machine does not power off", flush=True)
        self.power_cut()

    def reboot(self, kernel: Kernel | None = None) -> float:
        """An orderly shutdown and a boot, with another kernel where one is given."""
        self.power_off()
        if kernel is not None:
            self.release, self._kernel, self._initrd = kernel
        return self.power_on()

    def keep_running(self, place: Path) -> Disks:
        """Give memory and disks of a running machine away; it ends here, and goes on elsewhere."""
        place.mkdir(parents=True)
        self._disconnect()
        monitor = Monitor(self.work / "monitor.sock")
        monitor.save(place / "memory")
        monitor.close()
        self.power_cut()
        for name in _DISKS:
            (self.work / name).rename(place / name)
        return Disks(root=place / "root.qcow2", data=place / "data.img", memory=place / "memory")

    def copy_disks(self, place: Path) -> Disks:
        """The disks as they are now, all that QEMU has taken: what a power cut would leave.

        Who holds a machine still waits for its writes and for the tables of its disk's format.
        """
        place.mkdir(parents=True)
        monitor = Monitor(self.work / "monitor.sock")
        monitor.hold()
        try:
            for name in _DISKS:
                copy = ["cp", "--sparse=always", str(self.work / name), str(place / name)]
                subprocess.run(copy, check=True)
        finally:
            monitor.let_run()
            monitor.close()
        return Disks(root=place / "root.qcow2", data=place / "data.img")

    def put_in(self, copied: Disks) -> None:
        """Go on with disks that `copy_disks` has made; it has to be off."""
        assert copied.data is not None
        copied.root.replace(self.work / "root.qcow2")
        copied.data.replace(self.work / "data.img")

    def close(self) -> None:
        """End the machine for good and remove its disks; what it has left in `work` stays."""
        self._closed = True
        self.power_cut()
        self.log.close()
        for name in (*_DISKS, "spare.img", "agent.sock", "monitor.sock"):
            (self.work / name).unlink(missing_ok=True)
        shutil.rmtree(self.work / "cuts", ignore_errors=True)

    # --- commands -------------------------------------------------------------------------------

    def run(self, command: str, *, timeout_s: float = _COMMAND_S, check: bool = True) -> Answer:
        """A command line of the guest's shell; raises MachineError where it fails."""
        script = f"export {_ENVIRONMENT}\n{command}"
        pid = self._ask(
            "guest-exec",
            {"path": "/bin/bash", "arg": ["-c", script], "capture-output": "merged"},
        )["pid"]
        began, pause = time.monotonic(), _POLL_S
        deadline = began + timeout_s
        while not (status := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > deadline:
                raise MachineError(f"{command}: no end within {timeout_s:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_MAX_S)
        output = base64.b64decode(status.get("out-data", "")).decode("utf-8", "replace")
        answer = Answer(
            command=command, code=status.get("exitcode", -status.get("signal", 0)), output=output
        )
        took_s = time.monotonic() - began
        self.log.write(f"$ {command}\n{output}[{answer.code}, {took_s:.1f} s]\n")
        self.log.flush()
        if check and answer.code != 0:
            raise MachineError(f"{command}: exit code {answer.code}\n{output}")
        return answer

    def wait_for(self, command: str, what: str, *, timeout_s: float = _COMMAND_S) -> Answer:
        """Repeat a command until it succeeds; raises MachineError with what did not happen."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.run(command, check=False)
            if answer.code == 0:
                return answer
            if time.monotonic() > deadline:
                raise MachineError(f"not within {timeout_s:.0f} s: {what}\n{answer.output}")
            time.sleep(_POLL_MAX_S)

    def bring_back(self, *paths: str) -> None:
        """Copy text files of the guest to `work`, as far as they are there."""
        for path in paths:
            answer = self.run(f"cat {path}", check=False)
            (self.work / path.strip("/").replace("/", "-")).write_text(answer.output)

    # --- the agent ------------------------------------------------------------------------------

    def _console(self) -> str:
        console = self.work / "console.log"
        return console.read_text(errors="replace") if console.exists() else ""

    def _require_on(self) -> None:
        if self._closed:
            raise MachineError("it was closed")
        if self._process is not None and self._process.poll() is not None:
            raise MachineError(f"QEMU has ended: {(self.work / 'qemu.log').read_text()}")

    def _wait_for_kernel(self, deadline: float, said_before: int) -> None:
        while _INITRAMFS not in self._console()[said_before:]:
            self._require_on()
            if time.monotonic() > deadline:
                raise MachineError(f"no initramfs within {_KERNEL_S:.0f} s")
            time.sleep(1.0)

    def _wait_for_agent(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._require_on()
            try:
                self._connect()
                self._ask("guest-ping", {}, timeout_s=5.0)
            except (OSError, ValueError, MachineError):
                self._disconnect()
                time.sleep(1.0)
            else:
                return
        raise MachineError(
            f"the machine does not answer; its console ends with\n{self._console()[-2000:]}"
        )

    def _let_go_on(self, deadline: float) -> None:
        while True:
            try:
                monitor = Monitor(self.work / "monitor.sock")
            except OSError:  # QEMU has not got so far
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
                continue
            monitor.go_on()
            monitor.close()
            return

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5.0)
        self._socket.connect(str(self._socket_path))
        self._buffer = b""
        token = time.monotonic_ns() % (1 << 31)
        self._send("guest-sync", {"id": token})
        while self._receive() != token:
            pass  # answers to questions of before

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, name: str, arguments: dict[str, Any], timeout_s: float = 60.0) -> Any:
        if self._socket is None:
            raise MachineError("the machine is off")
        self._socket.settimeout(timeout_s)
        self._send(name, arguments)
        return self._receive()

    def _send(self, name: str, arguments: dict[str, Any]) -> None:
        if self._socket is None:
            raise OSError("the machine is off")
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")

    def _receive(self) -> Any:
        assert self._socket is not None
        while b"\n" not in self._buffer:
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise MachineError("the guest agent is gone")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        document = json.loads(line.lstrip(b"\xff"))
        if "error" in document:
            raise MachineError(f"guest agent: {document['error'].get('desc')}")
        return document.get("return")
