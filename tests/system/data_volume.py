"""A data volume of a running VE, and what its admin would write to take it out and put it back.

`python data_volume.py attach SPEC` mounts it where only the VE sees it, and starts a service there
that writes. `detach SPEC` ends that and unmounts it. Run as a program of its own, as an admin's
script would be.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fswatchd.drill import inside
from fswatchd.kernel import cgroup, loop
from fswatchd.kernel.syscalls import CLONE_NEWNS, mount, setns, umount

POINT = "/srv"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """`acked` takes the names of what the service has synced, `service` is its pid file.

    `broken` names an action that fails before it has done anything, `fails` one that does so at its
    end; `fixes` makes `detach` leave a directory in which nothing can be renamed.
    """

    image: str
    cgroup: str
    options: str
    acked: str
    service: str
    fstype: str = "ext4"
    broken: str = ""
    fails: str = ""
    fixes: bool = False


def command(action: str, spec: Path) -> list[str]:
    """The argument list of an action."""
    boot = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r});"
    boot += "from tests.system.data_volume import main; main(*sys.argv[1:])"
    return [sys.executable, "-c", boot, action, str(spec)]


def write(spec: Spec, path: Path) -> None:
    """Where the commands read it."""
    path.write_text(json.dumps(asdict(spec)), encoding="utf-8")


def main(action: str, path: str) -> None:
    """The program behind `command`."""
    spec = Spec(**json.loads(Path(path).read_text(encoding="utf-8")))
    if spec.broken == action:
        raise SystemExit(f"{action} does not work today")
    attach(spec) if action == "attach" else detach(spec)
    if spec.fails == action:
        raise SystemExit("the database does not start")


def attach(spec: Spec) -> None:
    """Mount it in the VE, and start the service."""
    acked = os.open(spec.acked, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = os.open(spec.service, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    join = cgroup.hierarchies()[0] / spec.cgroup.lstrip("/") / "cgroup.procs"
    procs = os.open(join, os.O_WRONLY)
    image = os.open(spec.image, os.O_RDWR)
    device, fd = loop.attach(image, autoclear=True)
    os.close(image)
    _enter(spec)
    os.makedirs(POINT, exist_ok=True)
    node = f"/{os.path.basename(device)}"  # it has no /dev
    os.mknod(node, stat.S_IFBLK | 0o600, os.fstat(fd).st_rdev)
    mount(node, POINT, spec.fstype, 0, spec.options)
    os.unlink(node)
    os.close(fd)
    if os.fork() == 0:
        os.setsid()
        with suppress(BaseException):
            os.write(procs, str(os.getpid()).encode())
            os.write(file, str(os.getpid()).encode())
            _serve(acked)
        os._exit(1)


def detach(spec: Spec) -> None:
    """End the service, and unmount it."""
    pid = int(Path(spec.service).read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if spec.fixes:
        subprocess.run(["chattr", "+i", os.path.dirname(spec.image)], check=True)
    _enter(spec)
    deadline = time.monotonic() + 20
    while True:
        try:
            return umount(POINT)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _enter(spec: Spec) -> None:
    first = min(cgroup.pids(spec.cgroup))
    fd = os.open(f"/proc/{first}/ns/mnt", os.O_RDONLY)
    setns(fd, CLONE_NEWNS)
    os.close(fd)


def _serve(acked: int) -> None:
    """Write and sync one file after the other, as long as that is possible."""
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    number = time.time_ns()
    while True:
        name = f"w{number}"
        number += 1
        with suppress(OSError), open(f"{POINT}/{name}", "wb", buffering=0) as file:
            file.write(inside.content(name))
            os.fsync(file.fileno())
            os.write(acked, f"{name}\n".encode())
        time.sleep(0.01)
