"""A sandbox of systemd: a unit of its own, which PID 1 shuts in.

See systemd.exec(5), systemd.resource-control(5). What bubblewrap does by a process namespace is
done by leaving out /proc and every call that could reach another process. (PrivateUsers= needs
/proc; without any capability, and nothing else to be seen, user 0 is nobody special.)
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from fswatchd import transient
from fswatchd.sandbox import OPEN_FILES, SETTINGS, SYSTEM, Sandbox, SandboxError
from fswatchd.sandbox.entry import Entry

_MOST_THREADS = 512
# systemd.exec(5), "Process exit codes": its own, where it cannot shut a program in.
_OF_SYSTEMD = range(200, 256)
# The end is SIGKILL, which takes no time; telling of it takes a shell, on a node with no time left.
_STOP_S = 30
_OTHER_PROCESSES = (
    "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal",
    "pidfd_getfd", "process_madvise", "process_mrelease", "ptrace", "kcmp",
    "process_vm_readv", "process_vm_writev",
)  # fmt: skip
_GROUPS = ("@privileged", "@resources", "@keyring", "@aio", "@network-io", "@mount", "@ipc")

# Inside, too: what is to run outside of it ("+") systemd 257 cannot start, because it looks for its
# memory.pressure below the /sys that is not there.
_TELL = "ExecStopPost=/bin/sh -c 'echo \"$EXIT_CODE $EXIT_STATUS\" >&0'"

SHUT_IN = (
    # The node's files: only what is bound below.
    "TemporaryFileSystem=/:ro",
    "InaccessiblePaths=-/proc -/sys -/dev/shm -/dev/mqueue",
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "PrivateNetwork=yes",
    "PrivateIPC=yes",
    "IPAddressDeny=any",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    # getrlimit(3) is prlimit(2), without which xfs_repair 6.13 gives up. That reaches processes of
    # the same user *and* group (kernel/sys.c, `check_prlimit_permission`): there are none.
    "Group=65534",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "KeyringMode=private",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RestrictNamespaces=yes",
    # None at all cannot be said to systemd-run before version 254; the calls are forbidden below.
    "RestrictAddressFamilies=AF_UNIX",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    f"SystemCallFilter=~{' '.join((*_GROUPS, *_OTHER_PROCESSES))}",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    "LimitCORE=0",
    "OOMPolicy=kill",
    "KillSignal=SIGKILL",
    f"TimeoutStopSec={_STOP_S}",
)
"""What holds for every program; systemd-analyze(1) can judge it."""


class Unit(Entry):
    """By PID 1. At most one descriptor can be passed on, `stdin` or another; `place` is where it
    stands at the disk.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        passed: Sequence[int],
        stdin: int,
        *,
        timeout_s: float,
        place: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        super().__init__()
        if len(passed) > (stdin == subprocess.DEVNULL):
            self.close()
            raise SandboxError("only one descriptor can be passed on into a unit")
        self._name = transient.new_name("tool")
        self._environment = environment
        self._properties = (*SHUT_IN, *place, *limits(sandbox, timeout_s, passed), _TELL)
        # The three streams are what a unit can be given: here they are the status, the output,
        # and what is passed on.
        self.stdin = self._status_end
        self.stderr = passed[0] if passed else stdin
        # Not sh: it knows no descriptors above 9.
        self._streams = f"{passed[0]}>&2 2>&1 </dev/null" if passed else "<&2 2>&1"

    def command(self, argv: Sequence[str]) -> tuple[str, ...]:
        """See Entry."""
        script = f'exec "$@" {self._streams}'
        shell = ("/bin/bash", "--norc", "-c", script, "bash", *argv)
        return transient.command(self._name, self._properties, self._environment, shell)

    def end_command(self) -> tuple[str, ...]:
        """A unit does not die with who has asked for it."""
        return ("systemctl", "stop", self._name)

    def exit_code(self, told: bytes) -> int | None:
        """From the line of ExecStopPost=, which is not written where the program never began."""
        words = told.decode("ascii", "replace").split()
        if len(words) != 2:
            return None
        kind, status = words
        if kind == "exited" and status.isdigit() and int(status) not in _OF_SYSTEMD:
            return int(status)
        if kind in {"killed", "dumped"} and f"SIG{status}" in signal.Signals.__members__:
            return 128 + signal.Signals[f"SIG{status}"]
        return None


def limits(sandbox: Sandbox, timeout_s: float, passed: Sequence[int] = ()) -> Iterator[str]:
    """The properties that this program has of its own."""
    programs = " ".join(("/usr", *(f"-{path}" for path in (*SYSTEM, *SETTINGS))))
    yield f"BindReadOnlyPaths={programs}"
    if sandbox.is_device:
        yield f"BindPaths={transient.quoted(sandbox.device)}"
        # What is written to a device no read-only mount holds, but this does.
        yield f"DeviceAllow={sandbox.device} {'r' if sandbox.readonly else 'rw'}"
    else:
        kind = "BindReadOnlyPaths" if sandbox.readonly else "BindPaths"
        yield f"{kind}={transient.quoted(sandbox.device)}"
    if sandbox.directory is not None:
        yield f"BindPaths={transient.quoted(sandbox.directory)}"
    if sandbox.flushes:
        # xfs_repair takes a mount table that it cannot read for one that has its device in it.
        yield "BindReadOnlyPaths=/dev/null:/etc/mtab"
    # What is passed on keeps its number, and none may be above the limit.
    yield f"LimitNOFILE={max((OPEN_FILES, *(number + 1 for number in passed)))}"
    yield f"LimitAS={sandbox.most_memory}"
    yield f"MemoryMax={sandbox.most_memory}"
    yield f"LimitCPU={max(int(sandbox.cpu_s), 1)}"
    if sandbox.threads:
        yield f"TasksMax={_MOST_THREADS}"
        # xfs_repair keeps what it collects in one, and dies (SIGSEGV) where it gets none.
        yield "SystemCallFilter=memfd_create"
    else:
        # The other one tells how the first has ended, which still counts then: since systemd 255
        # PID 1 forks into the unit. The program itself makes none.
        yield "TasksMax=2"
        yield "SystemCallFilter=~fork vfork clone clone3"
    yield f"RuntimeMaxSec={timeout_s:g}"
