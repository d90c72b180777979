"""The smallest real container: own processes, mount namespace, cgroup, and an image as its root.

`start` attaches the image, mounts it where only the VE sees it, makes it the root, and returns when
the VE's processes run. Run as a program of its own, as a platform's tools would be.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fswatchd.drill import inside
from fswatchd.kernel import cgroup, loop
from fswatchd.kernel.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_NOATIME,
    MS_PRIVATE,
    MS_REC,
    mount,
    pivot_root,
    umount,
    unshare,
)

_READY_TIMEOUT_S = 60.0
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from fswatchd.drill.ve import main; main(sys.argv[2], sys.argv[3])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VeSpec:
    """Everything `start` needs, kept as JSON."""

    name: str
    image: str
    root: str
    cgroup: str
    control: str
    mount_options: str
    read_paths: list[str]
    fstype: str = "ext4"
    direct_io: bool = False
    noatime: bool = False
    roles: tuple[str, ...] = inside.ROLES

    def save(self, path: Path) -> None:
        """Write it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str) -> VeSpec:
        """Read it."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def command(action: str, spec_path: Path) -> list[str]:
    """The argument list that starts, stops or kills the VE."""
    package_parent = str(Path(__file__).parents[2])
    return [sys.executable, "-I", "-S", "-c", _BOOT, package_parent, action, str(spec_path)]


def main(action: str, spec_path: str) -> None:
    """The program behind `command`."""
    spec = VeSpec.load(spec_path)
    if action == "start":
        start(spec)
    elif action == "stop":
        stop(spec, signal.SIGTERM)
    elif action == "kill":
        stop(spec, signal.SIGKILL)
    else:
        raise SystemExit(f"no such action: {action}")


def start(spec: VeSpec) -> None:
    """Start the VE; returns when it runs. Raises SystemExit with the reason when it does not."""
    if cgroup.pids(spec.cgroup):
        raise SystemExit(f"{spec.name} runs already")
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.close(ready)
        os.setsid()
        with suppress(BaseException):
            _container(spec, tell)
        os._exit(1)
    os.close(tell)
    os.set_blocking(ready, False)
    deadline = time.monotonic() + _READY_TIMEOUT_S
    answer = b""
    while time.monotonic() < deadline and not answer.endswith(b"\n"):
        try:
            chunk = os.read(ready, 4096)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        if not chunk:
            break
        answer += chunk
    if answer != b"ready\n":
        raise SystemExit(f"{spec.name} did not start: {answer.decode() or 'no reason given'}")


def stop(spec: VeSpec, number: int) -> None:
    """Signal the VE's processes and wait until they are gone."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while members := cgroup.pids(spec.cgroup):
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            raise SystemExit(f"{spec.name} did not stop: {members}")
        time.sleep(0.005)


def _container(spec: VeSpec, tell: int) -> None:
    try:
        _join_cgroup(spec.cgroup)
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)
        if os.fork() != 0:
            os._exit(0)
        connections = inside.connect(spec.control, spec.name, spec.roles)
        _enter_root(spec)
    except OSError as error:
        os.write(tell, f"{error}\n".encode())
        raise
    inside.init(connections, spec.read_paths, tell)


def _join_cgroup(path: str) -> None:
    directory = cgroup.hierarchies()[0] / path.lstrip("/")
    directory.mkdir(exist_ok=True)
    (directory / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def _enter_root(spec: VeSpec) -> None:
    mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    image = os.open(spec.image, os.O_RDWR | os.O_CLOEXEC)
    device, fd = loop.attach(image, autoclear=True, direct_io=spec.direct_io)
    os.close(image)
    os.makedirs(spec.root, exist_ok=True)
    mount(device, spec.root, spec.fstype, MS_NOATIME if spec.noatime else 0, spec.mount_options)
    os.close(fd)
    old = os.path.join(spec.root, "old-root")
    os.makedirs(old, exist_ok=True)
    pivot_root(spec.root, old)
    os.chdir("/")
    umount("/old-root", MNT_DETACH)
    with suppress(OSError):
        os.rmdir("/old-root")
