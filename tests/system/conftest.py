"""Real things for tests: a scratch host filesystem, containers, a daemon, a webhook receiver.

Everything carries a checked name, and only what carries it is cleaned up.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fswatchd.client import Client, ClientError
from fswatchd.devno import Devno
from fswatchd.drill.receiver import Receiver
from fswatchd.kernel import cgroup, loop
from tests.conftest import can_do_everything
from tests.system.ves import MiniVe, mount_new_ext4

PREFIX = "fswatchd-test-"
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{8}}")
PROJECT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = None if can_do_everything() else "needs root and loop devices"
    for item in items:
        if missing and "tests/system" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=missing))


def wait_until(question: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """The first true answer; fails the test when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {what or question}")
        time.sleep(0.01)


@pytest.fixture
def work(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on a disk (not tmpfs), gone afterwards with all that is mounted below it."""
    path = Path("/var/tmp") / f"{PREFIX}{secrets.token_hex(4)}"
    path.mkdir(mode=0o700)
    yield path
    clean(path)
    left = leftovers(path)
    assert not left, left


def clean(path: Path) -> None:
    """Take away everything below a test's directory, and the cgroups of its name."""
    assert _NAME.fullmatch(path.name), path
    for directory in cgroup.hierarchies()[0].glob(f"{path.name}*"):
        name = f"/{directory.name}"
        cgroup.kill(name)
        wait_until(lambda name=name: not cgroup.pids(name), what=f"the end of {name}")
        with suppress(OSError):
            directory.rmdir()
    for point in reversed(_mount_points(path)):
        _retried(["umount", point])
    for image in path.rglob("*"):
        with suppress(OSError):
            if image.is_file() and image.stat().st_size > 1 << 20:
                _detach_all(image)
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(MEMORY / path.name, ignore_errors=True)


def leftovers(path: Path) -> list[str]:
    """What a test has left behind."""
    found = [str(entry) for entry in path.rglob("*")][:20] if path.exists() else []
    found += _mount_points(path)
    found += [str(entry) for entry in cgroup.hierarchies()[0].glob(f"{path.name}*")]
    return found


def _mount_points(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4] for line in lines]
    return [point for point in points if point.startswith(f"{path}/")]


def _retried(argv: list[str]) -> None:
    wait_until(
        lambda: subprocess.run(argv, capture_output=True, check=False).returncode == 0,
        what=" ".join(argv),
    )


def _detach_all(image: Path) -> None:
    status = image.stat()
    for device in loop.holders(Devno.of(status.st_dev), status.st_ino):
        with suppress(OSError):
            loop.detach(device)


def make_host(work: Path, kind: str = "xfs", size: int = 6 << 30) -> Path:
    """A scratch host filesystem of its own; XFS and btrfs share blocks, ext4 does not."""
    image, point = work / f"host-{kind}.img", work / f"host-{kind}"
    with image.open("xb") as file:
        file.truncate(size)
    command = {
        "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
        "ext4": ["mke2fs", "-q", "-t", "ext4"],
        "btrfs": ["mkfs.btrfs", "-q"],
    }
    subprocess.run([*command[kind], str(image)], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    return point


@pytest.fixture
def host(work: Path) -> Path:
    """A scratch XFS with reflinks."""
    return make_host(work)


@pytest.fixture
def make_ve(work: Path, host: Path) -> Iterator[Callable[..., MiniVe]]:
    """Containers of the smallest real kind, declared by hand."""
    made: list[MiniVe] = []

    def make(name: str = "ve101", *, on: Path | None = None, **options: Any) -> MiniVe:
        ve = MiniVe(work, on or host, name, **options)
        made.append(ve)
        return ve

    yield make
    for ve in made:
        ve.close()


@pytest.fixture
def node_mounted(work: Path) -> Path:
    """Where the node has mounted the image of a declared VE, below what is shared as systemd does.

    `work` is in its cgroup's name, and `ve.d` of it the directory to read.
    """
    image, shared = work / "ve101.img", work / "vz"
    (work / "ve.d").mkdir()
    (work / "ve.d" / "ve101.toml").write_text(
        f'[[ve]]\nname = "ve101"\ncgroup = "/{work.name}"\n'
        f'volume = [{{ image = "{image}", mountpoint = "/" }}]\n'
    )
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "vz", shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)
    mount_new_ext4(image, shared / "ve101")
    return shared / "ve101"


class DaemonUnderTest:
    """A real daemon in a process of its own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.run_dir = MEMORY / work.name  # as /run on a node
        self.socket = self.run_dir / "api.sock"
        self.client = Client(str(self.socket))
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = work / "daemon.log"
        self.run_by: list[str] = []  # a program that runs it, such as nsenter
        self.program = "fswatchd"
        self.environment: dict[str, str] = {}

    def configure(
        self,
        *,
        mode: str = "auto",
        rules: str = "",
        channels: str = "",
        sources: str = "",
        daemon: str = "",
        more: str = "",
    ) -> None:
        """Write its configuration; `rules` come in addition to nothing.

        The hosts of tests are small, and so is the reserve on them.
        """
        if "reserve =" not in more:
            table, _, rest = more.partition("[repair]\n")
            more = f'{table}\n[repair]\nreserve = "256M"\n{rest}'
        (self.work / "rules.d").mkdir(exist_ok=True)
        (self.work / "ve.d").mkdir(exist_ok=True)
        if rules:
            (self.work / "rules.d" / "50-test.toml").write_text(rules)
        self.config = self.work / "fswatchd.toml"
        self.config.write_text(
            f'[daemon]\nnode = "hn1"\nmode = "{mode}"\nstate_dir = "{self.work}/state"\n'
            f'runtime_dir = "{self.run_dir}"\nrules = ["{self.work}/rules.d"]\n'
            f'ves = ["{self.work}/ve.d"]\n{daemon}\n[sources]\n{sources}\n{channels}\n{more}\n'
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log_path.open("ab") as log:
            python = [*self.run_by, sys.executable, "-W", "error"]
            self._process = subprocess.Popen(
                [*python, "-m", self.program, "--config", str(self.config)],
                stdout=log,
                stderr=log,
                cwd=str(PROJECT),
                env=os.environ | self.environment,
            )
        wait_until(self.answers, 60, f"an answer of the daemon: {self.log()}")

    def answers(self) -> bool:
        """Whether it answers; fails at once when it has ended."""
        assert self._process is None or self._process.poll() is None, self.log()
        try:
            self.client.get("/v1/status")
        except ClientError:
            return False
        return True

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_killed(self, timeout_s: float = 90) -> None:
        """Until it has killed itself (`tests.system.killed_at`)."""
        assert self._process is not None
        try:
            ending = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it was never killed: {self.log()}")
        assert ending == -signal.SIGKILL, self.log()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(90)

    def log(self) -> str:
        """Everything it has logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def incidents(self, ve: str | None = None) -> list[dict[str, Any]]:
        """All incidents, newest first."""
        return list(self.client.get("/v1/incidents", all="1", ve=ve)["incidents"])

    def wait_for_incident(self, *states: str, ve: str = "ve101", timeout_s: float = 60) -> dict:
        """The newest incident of the VE, when it is in one of these states."""

        def found() -> Any:
            newest = self.incidents(ve)[:1]
            return newest and newest[0]["state"] in (states or (newest[0]["state"],)) and newest[0]

        try:
            return dict(wait_until(found, timeout_s, f"an incident that is {states}"))
        except BaseException:
            print(self.log())
            for incident in self.incidents():
                print(self.why(incident["id"]))
            raise

    def why(self, incident_id: str) -> str:
        """Its story."""
        return str(self.client.get(f"/v1/incidents/{incident_id}/why")["text"])

    def status(self) -> dict[str, Any]:
        """The whole status."""
        return dict(self.client.get("/v1/status"))

    def wait_until_known(self, *names: str, timeout_s: float = 20) -> None:
        """Until these VEs and their filesystems are known."""

        def known() -> bool:
            ves = {ve["name"]: ve for ve in self.status()["ves"]}
            return all(name in ves and ves[name]["filesystems"] for name in names)

        wait_until(known, timeout_s, f"{names} to be known")


@pytest.fixture
def daemon(work: Path) -> Iterator[DaemonUnderTest]:
    """A daemon that is configured and started by the test."""
    under_test = DaemonUnderTest(work)
    yield under_test
    under_test.stop()
    log = under_test.log()
    assert "Traceback" not in log, log
    assert "unexpectedly" not in log, log


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver."""
    made = Receiver()
    yield made
    made.close()


def fswatch(
    daemon: DaemonUnderTest, *arguments: str, user: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The command against this daemon; `user` is whom it runs as."""
    script = "import sys; from fswatchd.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "--socket", str(daemon.socket), *arguments],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
        user=user,
        group=grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name if user else None,
        extra_groups=[] if user else None,
        timeout=60,
    )
