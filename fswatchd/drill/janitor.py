"""Takes away everything a drill has made, when the drill closes the pipe, in whatever way it ended.

A process of its own, so that SIGKILL of the drill leaves nothing behind. It touches only what lies
in the drill's directory or carries its checked name.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import BYSTANDER, TARGET
from fswatchd.kernel import cgroup, loop, proc
from fswatchd.kernel.syscalls import umount

_TIMEOUT_S = 20.0
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from fswatchd.drill.janitor import main; main(sys.argv[2])"
)


def command(paths: ScenePaths) -> list[str]:
    """The argument list of the janitor's process; it works when its standard input ends."""
    parent = str(Path(__file__).parents[2])
    return [sys.executable, "-I", "-S", "-c", _BOOT, parent, str(paths.directory)]


def main(directory: str) -> None:
    """The program behind `command`."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    paths = ScenePaths(Path(directory))
    while sys.stdin.buffer.read(4096):
        pass
    clean(paths)


def clean(paths: ScenePaths) -> None:
    """End processes, unmount, detach, delete; each as far as it is there."""
    _end_daemon(paths)
    for ve in (TARGET, BYSTANDER):
        group = paths.cgroup(ve)
        cgroup.kill(group)
        _wait(lambda group=group: not cgroup.pids(group))  # type: ignore[misc]
        for path in cgroup.directories(group):
            _wait(lambda path=path: _removed(path))  # type: ignore[misc]
    # Guards outlive their daemon by a moment, to thaw what it may have left.
    _wait(lambda: not _processes(paths))
    _wait(lambda: not _image_loops(paths))
    with suppress(OSError):
        _wait(lambda: _unmounted(paths.host))
    _wait(lambda: not _loops_of(paths.host_image))
    if not os.path.ismount(paths.host):
        shutil.rmtree(paths.directory, ignore_errors=True)


def leftovers(paths: ScenePaths) -> list[str]:
    """What is still there, also where its files are gone.

    A mount of one of the images keeps its loop device, in whatever namespace it is.
    """
    within = {pid for ve in (TARGET, BYSTANDER) for pid in cgroup.pids(paths.cgroup(ve))}
    found = [f"process {pid}" for pid in sorted(within | _processes(paths))]
    for ve in (TARGET, BYSTANDER):
        found += [f"cgroup {path}" for path in cgroup.directories(paths.cgroup(ve))]
    if paths.directory.exists():
        found += [f"file {path}" for path in sorted(paths.directory.iterdir())]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if f"/{paths.name}/" in (image := backing.read_text(errors="replace").strip()):
                found.append(f"loop device {backing.parts[3]} on {image}")
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    found += [f"mount {line}" for line in mounts.splitlines() if f"/{paths.name}/" in line]
    return found


def _processes(paths: ScenePaths) -> set[int]:
    """Those that were started with something of the drill's directory: its own daemon."""
    return {
        pid
        for pid in proc.pids()
        if pid != os.getpid() and any(f"/{paths.name}" in word for word in proc.arguments(pid))
    }


def _end_daemon(paths: ScenePaths) -> None:
    with suppress(OSError, ValueError):
        pid, started = (int(word) for word in paths.daemon_pid.read_text().split())
        if proc.is_alive(pid, started):
            os.kill(pid, signal.SIGTERM)
            if not _wait(lambda: not proc.is_alive(pid, started)):
                os.kill(pid, signal.SIGKILL)


def _image_loops(paths: ScenePaths) -> list[str]:
    if not paths.host.is_dir():
        return []
    return [device for image in paths.host.glob("*.img*") for device in _loops_of(image)]


def _loops_of(path: Path) -> list[str]:
    with suppress(OSError):
        status = path.stat()
        return loop.holders(Devno.of(status.st_dev), status.st_ino)
    return []


def _unmounted(path: Path) -> bool:
    if not os.path.ismount(path):
        return True
    with suppress(OSError):
        umount(str(path))
    return not os.path.ismount(path)


def _removed(path: Path) -> bool:
    with suppress(OSError):
        path.rmdir()
    return not path.exists()


def _wait(question: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _TIMEOUT_S
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
