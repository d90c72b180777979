"""One damage put into the image of a running VE, repaired there by the daemon's whole ladder.

A quiet VE is started on a copy of the base; once everything it has is on the disk the damage is
done to its image, and it reads all its files, so that the kernel meets what it can meet. Then the
preview is asked for, and the repair. What the VE is started on is kept: its start
command copies it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from fswatchd.client import ClientError
from fswatchd.kernel import block, cgroup, fs, loop
from tests.system.ves import MiniVe
from tests.zoo import btrfs, ext4, ladder, xfs
from tests.zoo.damage import Damage

OPTIONS = {"ext4": "errors=continue,noinit_itable", "xfs": "", "btrfs": ""}
BASES: dict[str, Callable[[Path], Path]] = {
    "ext4": partial(ext4.base, quota=False),
    "xfs": xfs.base,
    "btrfs": btrfs.base,
}
DAMAGES = [(z, d) for z in (ext4, xfs, btrfs) for d in z.DAMAGES if d.part != "quota"]
SAME = ("changes", "kinds", "dropped_files", "named_files", "unnamed_files")
# What the kernel has in memory and writes again when it is frozen, healing what was on the disk:
# these are damaged once it has stopped writing.
_IN_MEMORY = {
    "ext4": {"superblock", "descriptors", "orphans", "journal"},
    "xfs": {"superblock"},
}
_STOP_WRITING = {"ext4": "abort", "xfs": "shutdown"}
_TIMEOUT_S = 120.0
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the ladder ended: `repaired`, `false-alarm` or `needs-operator`; and how it went.

    `heard` says that the daemon had an incident before anybody asked for a repair.
    """

    ending: str
    heard: bool
    detail: str
    took_s: float


class Stage:
    """One daemon, and beside the VE that is damaged a bystander that runs all the while."""

    def __init__(self, daemon: Any, host: Path, make_ve: Callable[..., MiniVe]) -> None:
        self._daemon = daemon
        self._make_ve = make_ve
        self._host = host
        self._started = host / "started"
        self._work = host / "work"
        for directory in (self._started, self._work):
            directory.mkdir()
        self._bystander = make_ve("bystander", quiet=True, options=OPTIONS["ext4"])
        self._bystander.declare()
        self._bystander.start()
        _settle(self._bystander)

    def play(self, zoo: ModuleType, base: Path, damage: Damage) -> Outcome:
        """Damage, repair, compare. Raises AssertionError where a promise was broken."""
        begin = time.monotonic()
        name = f"{zoo.FSTYPE}-{damage.name}"
        copy = shlex.quote(str(self._started))
        image = self._host / f"{name}.img"
        ve = self._make_ve(
            name,
            base=base,
            fstype=zoo.FSTYPE,
            quiet=True,
            options=OPTIONS[zoo.FSTYPE],
            noatime=True,  # a time of access would make the kernel write a damaged inode anew
            before={"start": f"cp --reflink=always {image} {copy}/$(date +%s%N)"},
        )
        bystander = self._bystander.digest()
        try:
            ve.declare()
            ve.start()
            self._daemon.wait_until_known(name, timeout_s=_TIMEOUT_S)
            outcome = self._damaged(zoo, ve, damage)
            assert self._bystander.digest() == bystander, "the bystander's image was written to"
            left = [path.name for path in self._beside(ve) if ".damaged-" not in path.name]
            assert not [name for name in left if ".salvaged-" not in name], f"{left} left behind"
            return Outcome(**outcome, took_s=time.monotonic() - begin)
        finally:
            self._clear(ve)

    def _damaged(self, zoo: ModuleType, ve: MiniVe, damage: Damage) -> dict[str, Any]:
        _settle(ve)
        if damage.part in _IN_MEMORY.get(zoo.FSTYPE, {}):
            ve.ask(_STOP_WRITING[zoo.FSTYPE])
        damage.harm(ve.image)
        block.drop_buffers(ve.device)
        with suppress(OSError):
            ve.ask("manifest")
        heard = bool(self._daemon.incidents(ve.name))
        shown = self._preview(ve)
        before, inode = ladder.clone(ve.image, self._work / "before.img"), ve.inode
        incident = self._repair(ve)
        ending = incident["outcome"] or incident["state"]
        if ending == "verifying":  # repaired, and now watched for a minute
            ending = "repaired"
        why = self._daemon.why(incident["id"])
        # Nothing it was started on may be unproven, unless it is what it was.
        digest = ladder.digest(before)
        for started in sorted(self._started.iterdir()):
            whole = subprocess.run([*zoo.CHECK, started], capture_output=True, check=False)
            unproven = whole.returncode != 0 and ladder.digest(started) != digest
            assert not unproven, f"started on what is not proven: {why}"
        alone = ladder.alone(zoo, before, self._work)
        step = next((s for s in incident["steps"] if s["do"] == "fsck"), {})
        detail = step.get("detail") or ""
        if ending == "repaired":
            assert ve.inode != inode, why
            self._as_previewed(shown, step, why)
            (started,) = self._started.iterdir()
            self._not_worse(alone, ladder.files(zoo, started, self._work))
        else:
            assert ve.inode == inode, f"not repaired, and another image: {why}"
            assert ending == "false-alarm" or alone.ending != "cured", (
                f"the tool alone cures it, the ladder does not: {why}"
            )
            if ending == "false-alarm" and damage.part != "dup":
                _was_whole(zoo, before)
            assert cgroup.pids(ve.cgroup), f"it does not run any more: {why}"
        assert len(loop.holders(*ve.inode)) == 1, why
        return {"ending": ending, "heard": heard, "detail": detail}

    def _preview(self, ve: MiniVe) -> dict[str, Any] | str:
        """What a dry run shows, or why it shows nothing."""
        try:
            answer = self._daemon.client.post("/v1/repair", {"target": ve.name, "dry_run": True})
        except ClientError as error:
            return str(error)
        return dict(answer)

    def _repair(self, ve: MiniVe) -> dict[str, Any]:
        self._daemon.client.post("/v1/repair", {"target": ve.name})
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            (incident, *_) = self._daemon.incidents(ve.name)
            if incident["state"] in {"verifying", "closed", "needs-operator"}:
                return dict(incident)
            if incident["waiting_for"] == "approval" and incident["requested_by"]:
                # A machine that is busy makes writers wait longer than is done unasked.
                with suppress(ClientError):
                    self._daemon.client.post(f"/v1/incidents/{incident['id']}/approve")
            late = time.monotonic() > deadline
            assert not late, f"still {incident['state']}: {self._daemon.why(incident['id'])}"
            time.sleep(_LOOK_EVERY_S)

    def _as_previewed(self, shown: dict[str, Any] | str, step: dict[str, Any], why: str) -> None:
        assert isinstance(shown, dict), f"repaired, and the preview said {shown}: {why}"
        did = step.get("preview")
        assert did is not None, f"the step does not say what it did: {why}"
        for key in SAME:
            same = _unordered(did[key]) == _unordered(shown[key])
            assert same, f"{key}: shown {shown[key]}, done {did[key]}: {why}"

    @staticmethod
    def _not_worse(alone: ladder.Result, done: dict[str, str]) -> None:
        if alone.ending != "cured":
            return
        lost = set(alone.files.values()) - set(done.values())
        assert not lost, f"{len(lost)} contents are lost that the tool alone keeps"
        same = {path for path, content in alone.files.items() if done.get(path) == content}
        assert same == set(alone.files), "names are lost that the tool alone keeps"

    def _clear(self, ve: MiniVe) -> None:
        ve.close()
        for incident in self._daemon.incidents(ve.name):
            with suppress(ClientError):
                self._daemon.client.post(f"/v1/incidents/{incident['id']}/ack")
        for path in self._beside(ve):
            subprocess.run(["rm", "-rf", path], check=True)
        for path in (ve.image, *self._started.iterdir(), *self._work.iterdir()):
            path.unlink(missing_ok=True)

    def _beside(self, ve: MiniVe) -> list[Path]:
        """What has been made beside its image."""
        return list(self._host.glob(f"{ve.image.name}.*"))


def _unordered(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value


def _settle(ve: MiniVe) -> None:
    """Everything it has is on the disk, the journal empty: the kernel writes nothing by itself."""
    root = os.open(f"/proc/{cgroup.pids(ve.cgroup)[-1]}/root", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fs.freeze(root)
        fs.thaw(root)
    finally:
        os.close(root)


def _was_whole(zoo: ModuleType, image: Path) -> None:
    """By the tool, once what its journal holds is replayed."""
    if zoo.FSTYPE == "ext4":
        subprocess.run(["e2fsck", "-E", "journal_only", "-p", image], capture_output=True)
    elif zoo.FSTYPE == "xfs":
        xfs.replay(image)
    done = subprocess.run([*zoo.CHECK, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the damage was overlooked: {done.stdout[-500:]}"
