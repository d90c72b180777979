"""Who keeps a VE's volume busy is found before the VE is stopped, and nobody else is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import VeId
from fswatchd.kernel import cgroup
from fswatchd.platforms.declared import DeclaredPlatform
from fswatchd.repair.outsiders import holding, require_none
from fswatchd.steps import ActionContext, Next, StepEnded

READY = "echo; exec sleep 1000"


@pytest.fixture
def point(node_mounted: Path) -> Path:
    """Where the node has mounted the VE's volume."""
    (node_mounted / "file").write_text("content")
    return node_mounted


@contextmanager
def running(*argv: str, cwd: Path | None = None) -> Iterator[int]:
    """A process that has said that it is ready; its id."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=cwd) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"\n"
            yield started.pid
        finally:
            started.kill()


async def look(work: Path) -> list[tuple[int, str, str]]:
    seen = Inventory([DeclaredPlatform([work / "ve.d"])])
    try:
        await seen.refresh()
        ve = seen.view.ves[VeId("declared:ve101")]
        return [(hold.pid, hold.by, hold.path) for hold in holding(seen.view, ve)]
    finally:
        await seen.close()


async def waited_for(work: Path, pid: int, patience_s: float) -> list[str]:
    """What is said while somebody is waited for, who lets go when that is said the first time."""
    said: list[str] = []
    seen = Inventory([DeclaredPlatform([work / "ve.d"])])

    def progress(_share: float | None, text: str) -> None:
        said.append(text)
        os.kill(pid, signal.SIGKILL)

    context = cast("ActionContext", SimpleNamespace(inventory=seen, progress=progress))
    try:
        await seen.refresh()
        ve = seen.view.ves[VeId("declared:ve101")]
        await require_none(context, ve, None, patience_s=patience_s)
    finally:
        await seen.close()
    return said


async def test_with_patience_who_looks_in_is_waited_for(work: Path, point: Path) -> None:
    with running("sh", "-c", f"exec 7<{point}/file; {READY}") as pid:
        assert await waited_for(work, pid, 60) == [
            f"sleep (pid {pid}) has {point}/file open; that is waited for"
        ]


async def test_without_it_the_step_is_asked_again_later(work: Path, point: Path) -> None:
    with running("sh", "-c", f"exec 7<{point}/file; {READY}") as pid:
        with pytest.raises(StepEnded) as caught:
            await waited_for(work, pid, 0)
        os.kill(pid, 0)
    assert (caught.value.result.next, caught.value.result.result) == (Next.WAIT, "in use")
    assert f"has {point}/file open; declared:ve101 is not stopped" in caught.value.result.detail


async def test_nobody(work: Path, point: Path) -> None:
    with running("sh", "-c", READY, cwd=point.parent):  # beside it
        assert await look(work) == []


async def test_an_open_file(work: Path, point: Path) -> None:
    with running("sh", "-c", f"exec 7<{point}/file; {READY}") as pid:
        assert await look(work) == [(pid, "7", f"{point}/file")]


async def test_a_file_that_has_no_name_any_more(work: Path, point: Path) -> None:
    with running("sh", "-c", f"exec 7<{point}/file; rm {point}/file; {READY}") as pid:
        assert await look(work) == [(pid, "7", f"{point}/file")]


async def test_a_directory_that_somebody_stands_in(work: Path, point: Path) -> None:
    with running("sh", "-c", READY, cwd=point) as pid:
        assert await look(work) == [(pid, "cwd", str(point))]


async def test_a_program_that_runs_from_it(work: Path, point: Path) -> None:
    shutil.copy("/bin/sleep", point / "sleep")
    with running("sh", "-c", f"echo; exec {point}/sleep 1000") as pid:
        while os.readlink(f"/proc/{pid}/exe") != f"{point}/sleep":
            pass
        assert await look(work) == [(pid, "exe", f"{point}/sleep")]


@pytest.mark.parametrize("propagation", ["slave", "private"])
async def test_a_service_with_a_copy_of_the_mount(
    work: Path, point: Path, propagation: str
) -> None:
    """A private copy makes the service another user, whom `scope` tells: here it is not counted."""
    argv = ("unshare", "-m", "--propagation", propagation, "sh", "-c")
    with running(*argv, f"exec 7<{point}/file; {READY}") as pid:
        expected = [(pid, "7", f"{point}/file")] if propagation == "slave" else []
        assert await look(work) == expected


async def test_the_ve_itself_holds_what_it_likes(work: Path, point: Path) -> None:
    place = cgroup.hierarchies()[0] / work.name
    place.mkdir()
    with running("sh", "-c", f"exec 7<{point}/file; {READY}", cwd=point) as pid:
        (place / "cgroup.procs").write_text(str(pid))
        assert await look(work) == []
