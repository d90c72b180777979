"""kill -9 before, inside and after every rung of the ladder: of the daemon, its tools, or of all.

A VE is damaged again and again, the daemon kills itself at a point (`killed_at`), and another one
is started. Each repair then ends repaired, or rolled back, or with an operator and the VE as it
was; nothing stays frozen, and no device, mount, process or file is left behind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fswatchd.client import ClientError
from fswatchd.kernel import cgroup, loop
from tests.system import killed_at, rules
from tests.system.conftest import DaemonUnderTest, wait_until
from tests.system.ves import MiniVe
from tests.zoo.btrfs import DAMAGES as BTRFS_DAMAGES

STEP = "fswatchd.engine.step_context.StepContext"
FREEZE = "fswatchd.repair.freeze.Freeze"
REPAIR = "fswatchd.repair"
LONG_S = 180.0  # on a machine that is busy; what is awaited comes within seconds
ENDED = ("closed", "needs-operator")


@dataclass(frozen=True, slots=True)
class Point:
    """Where (see `killed_at`), the how many-th time, and who dies."""

    at: str
    n: int = 1
    who: str = "daemon"

    def __str__(self) -> str:
        return f"{self.at} ({self.n}., {self.who})"


def around(*functions: str, n: int = 1, who: str = "daemon") -> list[Point]:
    return [Point(f"{when} {name}", n, who) for name in functions for when in ("before", "after")]


def inside(tool: str, *times: int, who: tuple[str, ...] = ("daemon", "all", "tool")) -> list[Point]:
    return [Point(f"inside {tool}", n, one) for n in times for one in who]


BEGIN = around(f"{STEP}.started", "fswatchd.engine.evidence.EvidenceRoom.take")
BEGIN += around(f"{REPAIR}.scope.resolve", f"{REPAIR}.clone.share", f"{STEP}.lock_ve")
HOLD = around(f"{FREEZE}.prepare", f"{FREEZE}.hold", f"{REPAIR}.clone.sync")
HOLD += around(f"{FREEZE}.hold", f"{REPAIR}.clone.share", who="all", n=1)
HOLD += around(f"{REPAIR}.clone.renew")
STOP = around(f"{STEP}.about_to_stop", f"{REPAIR}.ve_control.send_kill", f"{FREEZE}.seal")
STOP += around(f"{FREEZE}.thaw", f"{REPAIR}.ve_control.clean_up_after_kill")
STOP += around(f"{REPAIR}.ve_control.send_kill", who="all")
SWAP = around(f"{REPAIR}.swap.exchange", f"{REPAIR}.swap.renameat2", f"{REPAIR}.swap.rename")
SWAP += around(f"{REPAIR}.swap.renameat2", n=2)
START = around(f"{REPAIR}.ve_control.start", f"{REPAIR}.verify.find_mounted")
START += around(f"{REPAIR}.verify.healthy", f"{STEP}.ended", "fswatchd.book.IncidentBook.close")
# The journal's replay, then what the preview, the repair and the proof run.
TOOLS = inside("e2fsck", 1, 2, 3, 4) + inside("e2fsck", 5, 6, who=("daemon", "all"))
# Where the kernel has stopped writes there is no preview, and files to be saved.
ABORTED = around(f"{REPAIR}.salvage.Search._look_at_device", f"{REPAIR}.salvage.Search.copy")
ABORTED += around(f"{REPAIR}.salvage.Search._compare")
ABORTED += around(f"{REPAIR}.salvage.Search.copy", who="all") + inside("e2fsck", 3)
BACK = around(f"{REPAIR}.rollback.run", f"{REPAIR}.swap.exchange", f"{REPAIR}.ve_control.stop")
BACK += around(f"{REPAIR}.swap.rename", f"{REPAIR}.ve_control.start")
OFFLINE = inside("e2fsck", 1, 2, who=("daemon", "all"))
OFFLINE += around(f"{REPAIR}.ve_control.stop", f"{REPAIR}.ve_control.start")
XFS = inside("xfs_repair", 1, 2)
XFS += around(f"{REPAIR}.clone.share", f"{REPAIR}.swap.exchange", f"{REPAIR}.ve_control.start")
BTRFS = inside("btrfs", 1) + around(f"{REPAIR}.clone.share")

GROUPS = {
    "begin": BEGIN,
    "hold": HOLD,
    "stop": STOP,
    "swap": SWAP,
    "start": START,
    "inside-e2fsck": TOOLS,
    "aborted": ABORTED,
    "offline": OFFLINE,
    "xfs": XFS,
}
FEW = [
    Point(f"after {REPAIR}.ve_control.send_kill"),
    Point(f"after {REPAIR}.swap.renameat2"),
]


class Crashes:
    """One VE that is damaged again and again, and daemons that die over it."""

    def __init__(
        self, daemon: DaemonUnderTest, ve: MiniVe, work: Path, rule: str, *, writes_on: bool = True
    ) -> None:
        self.daemon, self.ve = daemon, ve
        self._writes_on = writes_on  # while it is damaged
        self._told = work / "told.json"
        self._damages = 0
        daemon.configure(rules=rule)
        ve.declare()
        ve.start()

    def start(self, point: Point | None = None) -> None:
        """A daemon, that dies at the point."""
        self._told.unlink(missing_ok=True)
        self.daemon.program = "fswatchd" if point is None else "tests.system.killed_at"
        wanted = point and {"at": point.at, "n": point.n, "who": point.who}
        self.daemon.environment = (
            {killed_at.VARIABLE: json.dumps(wanted | {"told": str(self._told)})} if wanted else {}
        )
        self.daemon.start()
        self.daemon.wait_until_known(self.ve.name, timeout_s=LONG_S)

    def killed(self, point: Point) -> None:
        """Wait for the kill, and start the next daemon where one died."""
        if point.who == "tool":
            wait_until(self._told.exists, LONG_S, f"the kill {point}")
            return
        self.daemon.wait_killed(LONG_S)
        self.start()

    def damage(self) -> None:
        """Something that the kernel tells by itself."""
        if self.ve.fstype == "xfs":
            # The answer may never come: the daemon that dies may hold or kill the VE by then.
            threading.Thread(target=self._shut_down, daemon=True).start()
            return
        self.ve.damage_directory(f"/data/{self._damages:03d}")
        self._damages += 1

    def _shut_down(self) -> None:
        with suppress(OSError, ValueError):
            self.ve.ask("shutdown")

    def play(self, point: Point) -> None:
        """One repair that is cut off there."""
        before = self.ve.inode
        self.start(point)
        last = self.known()
        self.damage()
        self.killed(point)
        self.ends_well(last, before, str(point))

    def incidents(self) -> list[dict[str, Any]]:
        """The VE's, newest first: other tests break filesystems too."""
        return self.daemon.incidents(self.ve.name)

    def known(self) -> set[str]:
        """The ids of those that there are."""
        return {incident["id"] for incident in self.incidents()}

    def newest(self, but: set[str], *states: str) -> dict[str, Any] | None:
        """The incident that was not there before, when it has ended (or is in such a state)."""
        new = [one for one in self.incidents() if one["id"] not in but]
        return new[0] if new and new[0]["state"] in (states or ENDED) else None

    def ends_well(self, but: set[str], before: object, what: str) -> None:
        """The end of the incident, and nothing is left of it."""
        incident = wait_until(lambda: self.newest(but), LONG_S, f"an end of the incident: {what}")
        why = self._story(what, but)
        if incident["state"] == "needs-operator":
            assert self.ve.inode == before, f"given up, and the image is another one: {why}"
            self.nothing_left(why, writes=self._writes_on)
            # It breaks again and again here: a third repair within a day has to be forced.
            self.daemon.client.post("/v1/repair", {"target": self.ve.name, "force": True})
            incident = wait_until(
                lambda: self.newest(but, "closed"), LONG_S, f"the second repair: {why}"
            )
            why = self._story(what, but)
        assert incident["outcome"] == "repaired", why
        self.nothing_left(why)
        assert self.ve.lost() == ([], []), why
        self.daemon.kill()  # one more, between two repairs
        for path in self.kept():
            path.unlink()

    def _story(self, what: str, but: set[str]) -> str:
        """What is told of all that was not there before."""
        new = [one["id"] for one in self.incidents() if one["id"] not in but]
        return "\n".join((what, *(self.daemon.why(incident) for incident in new)))

    def kept(self) -> list[Path]:
        """The originals of repairs that have succeeded."""
        return list(self.ve.image.parent.glob(f"{self.ve.image.name}.damaged-*"))

    def nothing_left(self, why: str, *, writes: bool = True) -> None:
        """It runs and writes, and what daemons and tools had is gone."""
        assert cgroup.pids(self.ve.cgroup), f"it does not run: {why}"
        assert not writes or self.ve.wait_for_write(30), f"it does not write: {why}"
        assert not cgroup.is_frozen(self.ve.cgroup), why
        allowed = {self.ve.image, *self.kept()}
        left = [
            path.name
            for path in self.ve.image.parent.iterdir()
            if path not in allowed and ".salvaged-" not in path.name
        ]
        assert left == [], f"{left} left behind: {why}"
        assert len(loop.holders(*self.ve.inode)) == 1, why
        for path in self.kept():
            assert loop.holders(self.ve.inode[0], path.stat().st_ino) == [], why
        wait_until(lambda: not self._alive(), 20, f"the end of all that was begun: {why}")

    def _alive(self) -> list[int]:
        """What the daemon that died had started, but for the VE."""
        pids = json.loads(self._told.read_text()) if self._told.exists() else []
        mine = {self.daemon.pid, *killed_at.descendants(self.daemon.pid)}
        ves = set(cgroup.pids(self.ve.cgroup))
        return [pid for pid in pids if os.path.exists(f"/proc/{pid}") and pid not in mine | ves]


@pytest.fixture
def crashes(daemon, make_ve, work: Path) -> Callable[..., Crashes]:
    def make(
        fstype: str = "ext4",
        strategy: str = "clone",
        name: str = "ve101",
        files: int = 6000,
        options: str | None = None,
    ) -> Crashes:
        ve = make_ve(name, size=1 << 30, files=files, fstype=fstype, options=options)
        writes_on = fstype != "xfs" and options is None
        return Crashes(daemon, ve, work, rules.repair(strategy), writes_on=writes_on)

    return make


@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_killed_at_every_rung_it_ends_well(crashes: Callable[..., Crashes], group: str) -> None:
    crash = crashes(
        "xfs" if group == "xfs" else "ext4",
        group if group == "offline" else "clone",
        options="errors=remount-ro" if group == "aborted" else None,
    )
    for point in GROUPS[group]:
        begin = time.monotonic()
        crash.play(point)
        print(f"{point}: {time.monotonic() - begin:.1f} s", flush=True)


@pytest.mark.timeout(600)
def test_killed_at_the_rungs_between_freeze_and_start_it_ends_well(
    crashes: Callable[..., Crashes],
) -> None:
    crash = crashes()
    for point in FEW:
        crash.play(point)


def test_killed_when_a_repair_in_place_has_started_its_ve_it_ends_well(
    crashes: Callable[..., Crashes],
) -> None:
    crashes(strategy="offline", files=400).play(Point(f"after {REPAIR}.ve_control.start"))


@pytest.mark.long
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_killed_at_random_times_it_ends_well(crashes: Callable[..., Crashes], fstype: str) -> None:
    seed = int(os.environ.get("FSWATCHD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"FSWATCHD_TEST_SEED={seed}")
    chance = random.Random(seed)
    crash = crashes(fstype)
    crash.start()
    begin = time.monotonic()
    before = crash.ve.inode
    crash.damage()
    crash.ends_well(set(), before, "no kill at all")
    whole_s = time.monotonic() - begin
    for _ in range(10):
        before = crash.ve.inode
        crash.start()
        last = crash.known()
        crash.damage()
        delay_s, everything = chance.uniform(0, whole_s), chance.random() < 0.5
        time.sleep(delay_s)  # the random time is what is tried here
        if everything:
            for pid in killed_at.descendants(crash.daemon.pid):
                os.kill(pid, signal.SIGKILL)
        crash.daemon.kill()
        crash.start()
        what = f"{delay_s:.2f} s after the damage, {'all' if everything else 'the daemon'}"
        crash.ends_well(last, before, what)


@pytest.mark.long
def test_killed_while_a_damaged_btrfs_is_looked_at_nothing_is_changed(
    daemon, make_ve, work: Path
) -> None:
    """What has no repair is left as it is, whoever dies over it."""
    (harm,) = [damage.harm for damage in BTRFS_DAMAGES if damage.name == "fs-tree"]
    for number, point in enumerate(BTRFS):
        # Each time another VE: one is asked about until somebody has answered.
        options = ("-d", "single", "-m", "dup")
        ve = make_ve(f"ve{number}", size=300 << 20, fstype="btrfs", mkfs=options, quiet=True)
        crash = Crashes(daemon, ve, work, rules.repair())
        inode = ve.inode
        crash.start(point)
        harm(ve.image)
        daemon.client.post("/v1/repair", {"target": ve.name})
        crash.killed(point)
        # What it was that the kernel had not written since decides whether `--repair` would help.
        incident = daemon.wait_for_incident("waiting", "needs-operator", ve=ve.name)
        why = daemon.why(incident["id"])
        assert incident["waiting_for"] in {"approval", None}, why
        assert ve.inode == inode, why
        assert cgroup.pids(ve.cgroup), why
        assert list(ve.image.parent.glob(f"{ve.image.name}?*")) == [], why
        daemon.stop()


@pytest.mark.long
def test_a_rollback_that_is_killed_ends_with_one_of_the_two_images(
    crashes: Callable[..., Crashes],
) -> None:
    for number, point in enumerate(BACK):
        # Each time another VE: one that is rolled back is damaged again.
        crash = crashes(name=f"ve{number}", files=400)
        daemon, ve = crash.daemon, crash.ve
        crash.start()
        crash.damage()
        incident = wait_until(lambda now=crash: now.newest(set()), LONG_S, "the repair")
        assert incident["outcome"] == "repaired", daemon.why(incident["id"])
        daemon.kill()
        crash.start(point)
        story = f"/v1/incidents/{incident['id']}"
        try:
            daemon.client.post(f"{story}/rollback", {"discard_newer": True})
        except ClientError as error:
            known = daemon.client.get("/v1/incidents", all="1", ve=ve.name)["incidents"]
            pytest.fail("\n".join([str(error), *(daemon.why(one["id"]) for one in known)]))
        crash.killed(point)
        wait_until(
            lambda now=daemon, path=story: now.client.get(path)["state"] in ENDED,
            LONG_S,
            f"the end of the rollback: {point}",
        )
        why = f"{point}\n{daemon.why(incident['id'])}"
        assert "rolled back" in why
        assert ve.wait_for_write(30), why
        assert len(list(ve.image.parent.glob(f"{ve.image.name}.*"))) == 1, why
        daemon.kill()
        ve.close()
