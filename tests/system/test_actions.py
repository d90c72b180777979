"""Steps of their own: trim, exec, evacuate by a daemon, scrub on a real btrfs."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fswatchd.actions import scrub, trim
from fswatchd.kernel import block, cgroup, syscalls
from fswatchd.repair.condition import Condition
from fswatchd.rules.model import PlainStep
from fswatchd.steps import Next
from tests.system.test_steps import rule, start, steps_of, trigger


def test_trim_waits_for_the_repair(daemon, make_ve) -> None:
    ve = make_ve()
    start(daemon, ve, 'do = "trim"\non_failure = "continue"', 'do = "fsck"', 'do = "trim"')
    ve.ask("abort")
    refused, fsck, trimmed = steps_of(daemon)
    assert refused["result"] == "refused", refused
    assert fsck["result"] == "repaired", fsck
    assert trimmed["result"] == "trimmed", trimmed
    assert ve.wait_for_write()


async def test_trim_gives_back_what_is_free_unless_an_error_is_recorded(work, monkeypatch) -> None:
    image, point = work / "ext4.img", work / "ext4"
    with image.open("xb") as file:
        file.truncate(300 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop,nodiscard", image, point], check=True)
    (point / "file").write_bytes(os.urandom(64 << 20))
    (point / "kept").write_bytes(b"kept" * 100_000)
    os.sync()
    (point / "file").unlink()
    subprocess.run(["sync", "-f", point], check=True)
    before = image.stat().st_blocks * 512
    refused = await step_on(monkeypatch, trim, point, "ext4", Condition.WRITABLE, errors=1)
    assert refused.result == "refused"
    assert image.stat().st_blocks * 512 == before
    done = await step_on(monkeypatch, trim, point, "ext4", Condition.WRITABLE)
    assert done.result == "trimmed", done
    assert before - image.stat().st_blocks * 512 > 32 << 20
    assert (point / "kept").read_bytes() == b"kept" * 100_000


def test_exec_gets_what_is_documented_and_nothing_else(daemon, make_ve) -> None:
    ve = make_ve()
    show = "echo $FSWATCH_VES $FSWATCH_FSTYPE $FSWATCH_CLASS; ls -x /proc/self/fd; ulimit -v"
    step = f'do = "exec"\nrun = ["/bin/sh", "-c", {json.dumps(show)}]\nmemory = "256M"'
    program = f'do = "exec"\nrun = ["{ve.work}/program"]\non_failure = "continue"'
    slow = 'do = "exec"\nrun = ["/bin/sleep", "100"]\ntimeout = "2s"\non_failure = "continue"'
    marker = ve.work / "was-run"
    (ve.work / "program").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (ve.work / "program").chmod(0o777)
    start(daemon, ve, step, program, slow)
    trigger(ve)
    shown, refused, late = steps_of(daemon)
    assert shown["result"] == "done", shown
    said = shown["detail"].replace(";", " ").split()
    assert said[:3] == ["declared:ve101", "ext4", "corruption"]
    # Beside the three its own descriptor on the directory.
    assert [word for word in said[3:] if len(word) == 1] == ["0", "1", "2", "3"], said
    assert said[-1] == str((256 << 20) // 1024)
    assert refused["result"] == "refused"
    assert not marker.exists()
    assert late["result"] == "failed"
    assert "took too long" in late["detail"]


def test_evacuate_believes_only_that_the_ve_is_gone(daemon, make_ve) -> None:
    stays, goes = make_ve("ve101", quiet=True), make_ve("ve102", quiet=True)
    daemon.configure(rules=rule('do = "evacuate"\nto = "hn2"'))
    for ve, argv in ((stays, ["/bin/true", "{to}"]), (goes, goes.command("kill"))):
        ve.declare()
        file = ve.work / "ve.d" / f"{ve.name}.toml"
        file.write_text(f"{file.read_text()}migrate = {json.dumps(argv)}\n")
        ve.start()
    daemon.start()
    daemon.wait_until_known("ve101", "ve102")
    trigger(stays)
    incident = daemon.wait_for_incident("needs-operator")
    assert incident["steps"][0]["result"] == "not moved", incident["steps"]
    assert cgroup.pids(stays.cgroup)
    trigger(goes)
    incident = daemon.wait_for_incident("closed", "needs-operator", ve="ve102")
    assert incident["steps"][0]["result"] == "moved", daemon.why(incident["id"])
    assert incident["outcome"] == "dismissed", daemon.why(incident["id"])


async def step_on(
    monkeypatch,
    module: Any,
    point: Path,
    fstype: str,
    condition: Condition,
    *,
    errors: int = 0,
    told: list[str] | None = None,
) -> Any:
    """A step on a filesystem that is mounted at `point`; `told` gets the milestones it reached."""
    superblock = SimpleNamespace(fstype=fstype, device="loop", devno=None)

    async def resolve(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(superblock=superblock, image=None)

    async def of(*_: Any) -> Condition:
        return condition

    @asynccontextmanager
    async def opened(_: Any):
        place = os.open(point, os.O_PATH | os.O_CLOEXEC)
        mount = syscalls.open_tree_clone(place)
        os.close(place)
        yield mount
        os.close(mount)

    monkeypatch.setattr(module.scope, "resolve", resolve)
    monkeypatch.setattr(module.condition, "of", of)
    state = SimpleNamespace(check=lambda _: None, errors=lambda _: errors)
    inventory = SimpleNamespace(opened=opened, current_options=lambda _: ("rw",))
    milestones: list[str] = [] if told is None else told
    context = SimpleNamespace(
        inventory=inventory, state=state, progress=lambda *_: None, reached=milestones.append
    )
    action = trim.TrimAction() if module is trim else scrub.ScrubAction()
    return await action.run(cast("Any", context), PlainStep(do="scrub"))


async def test_scrub_mends_from_the_second_copy_and_says_what_it_cannot(work, monkeypatch) -> None:
    image, point = work / "btrfs.img", work / "btrfs"
    with image.open("xb") as file:
        file.truncate(300 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-d", "dup", "-m", "dup", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    content = b"fswatchd scrub " * 70_000
    (point / "file").write_bytes(content)
    os.sync()
    told: list[str] = []
    clean = await step_on(monkeypatch, scrub, point, "btrfs", Condition.WRITABLE, told=told)
    assert (clean.next, clean.result) == (Next.CONTINUE, "clean"), clean
    assert told == []
    refused = await step_on(monkeypatch, scrub, point, "btrfs", Condition.ABORTED)
    assert refused.result == "refused"
    refused = await step_on(monkeypatch, scrub, point, "ext4", Condition.WRITABLE)
    assert refused.result == "refused"
    places = copies(image, content[:4096])
    assert len(places) >= 2, places
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", point], capture_output=True, text=True, check=True
    ).stdout.strip()
    damage(device, places[:1])
    mended = await step_on(monkeypatch, scrub, point, "btrfs", Condition.WRITABLE, told=told)
    assert (mended.result, mended.changed) == ("mended", True), mended
    assert told == ["repaired"]
    damage(device, places)
    left = await step_on(monkeypatch, scrub, point, "btrfs", Condition.WRITABLE, told=told)
    assert (left.next, left.result) == (Next.FAILED, "damaged"), left
    assert told == ["repaired"]


def copies(image, block_: bytes) -> list[int]:
    """Where in the image this block is."""
    data = image.read_bytes()
    return [place for place in range(0, len(data), 4096) if data[place : place + 4096] == block_]


def damage(device: str, places: list[int]) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        for place in places:
            os.pwrite(fd, os.urandom(4096), place)
        os.fsync(fd)
    finally:
        os.close(fd)
    block.drop_buffers(device)


async def test_scrub_of_an_xfs_whose_kernel_cannot_is_no_verdict(work, monkeypatch) -> None:
    """Kernels without CONFIG_XFS_ONLINE_SCRUB; others find it clean."""
    image, point = work / "xfs.img", work / "xfs"
    with image.open("xb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    result = await step_on(monkeypatch, scrub, point, "xfs", Condition.WRITABLE)
    assert result.result in {"failed", "clean"}, result
    if result.result == "failed":
        assert "xfs_scrub" in result.detail
