"""What is done by itself, what is asked about first, and what a clean clone means."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.incidents import StepRecord, StepState
from fswatchd.repair import consent, first_look, healer, preview, tools
from fswatchd.repair.check import CheckResult
from fswatchd.repair.cure import Cure
from fswatchd.repair.images import Images
from fswatchd.repair.preview import Preview
from fswatchd.repair.volume import ImageFile
from fswatchd.rules.model import FsckStep
from fswatchd.steps import DAMAGED, RECOVERED, ActionSettings, Next, StepEnded, refuse
from tests.unit import builders
from tests.unit.repair.test_outage import VE

CLEAN = CheckResult(returncode=0, output="", duration_s=1.0, clean=True, tool="xfs_repair")
BROKEN = replace(CLEAN, returncode=1, clean=False, damaged=True)
FIXED = replace(CLEAN, returncode=4, clean=False, fixed=True)
STEP = FsckStep(do="fsck")


class Context:
    """A step that keeps its journal."""

    def __init__(self, **journal: Any) -> None:
        self.incident = builders.incident()
        self.record = StepRecord(do="fsck", journal=journal)
        self.settings = ActionSettings()

    async def journal(self, **facts: Any) -> None:
        self.record = replace(self.record, journal={**self.record.journal, **facts})

    def approve(self) -> None:
        """As the executor and `fswatch approve` leave it."""
        self.record = replace(self.record, journal={**self.record.journal, "asked": True})
        self.incident = replace(self.incident, approved_by="root")

    def note(self, _: str) -> None: ...


IMAGE = ImageFile(path="/var/lib/ve101.img", devno=Devno(8, 1), inode=4711)
TARGET: Any = SimpleNamespace(superblock=None, filesystem=builders.filesystem(fstype="xfs"))


async def look(monkeypatch: pytest.MonkeyPatch, context: Any, seen: Preview) -> Any:
    """How the first look at a running filesystem ends."""

    async def looked(*_: object, keep: bool) -> Preview:
        return seen if keep else replace(seen, clone=None)

    monkeypatch.setattr(preview, "look", looked)
    try:
        return await first_look.running(context, STEP, TARGET, IMAGE)
    except StepEnded as ended:
        return ended.result


def resort(fstype: str) -> tools.LastResort:
    found = tools.of(fstype)
    assert found is not None
    assert found.last_resort is not None
    return found.last_resort


HEALTHY = Preview(check=CLEAN, cure=None, seconds=1.0)
CURABLE = Preview(check=BROKEN, cure=Cure(repaired=FIXED, proof=CLEAN), seconds=1.0)


async def test_a_clean_clone_is_a_false_alarm(monkeypatch) -> None:
    found = await look(monkeypatch, Context(), HEALTHY)
    assert (found.next, found.result) == (Next.FINISHED, "false-alarm")


async def test_a_clean_clone_is_none_where_a_scrub_has_left_damage(monkeypatch) -> None:
    context = Context()
    left = StepRecord(do="fsck", state=StepState.FAILED, result=DAMAGED, detail="4 errors")
    context.incident = replace(context.incident, steps=(left,))
    found = await look(monkeypatch, context, HEALTHY)
    assert (found.next, found.result) == (Next.OPERATOR, "data lost")
    assert "4 errors" in found.detail


async def test_a_clean_clone_of_what_was_left_to_the_healer_has_recovered(monkeypatch) -> None:
    context = Context()
    story = f"waits: {healer._WAITS} loop7"
    context.incident = replace(context.incident, log=((builders.NOW_NS, story),))
    found = await look(monkeypatch, context, HEALTHY)
    assert (found.next, found.result) == (Next.FINISHED, RECOVERED)


async def test_what_the_healer_works_on_waits(monkeypatch) -> None:
    ending = refuse("left to the healer", "it has time", Next.WAIT)
    monkeypatch.setattr(healer, "stand_back", lambda *_: ending)
    assert (await look(monkeypatch, Context(), CURABLE)).next is Next.WAIT
    monkeypatch.setattr(healer, "stand_back", lambda *_: None)
    assert (await look(monkeypatch, Context(), CURABLE)).cure == CURABLE.cure


@pytest.mark.parametrize("stays", [True, False])
async def test_what_it_was_seen_on_is_kept_only_where_the_repair_goes_on(
    monkeypatch, stays: bool
) -> None:
    discarded: list[object] = []

    async def discard(_: object, made: object) -> None:
        discarded.append(made)

    monkeypatch.setattr(Images, "discard", discard)
    ending = None if stays else refuse("left to the healer", "it has time", Next.WAIT)
    monkeypatch.setattr(healer, "stand_back", lambda *_: ending)
    seen_on = replace(IMAGE, path=f"{IMAGE.path}.fswatchd-preview-1", inode=4712)
    found = await look(monkeypatch, Context(), replace(CURABLE, clone=seen_on))
    assert discarded == ([] if stays else [seen_on])
    assert getattr(found, "clone", None) == (seen_on if stays else None)


async def test_what_a_sick_device_has_shown_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was misread once would be in memory for the repair, and for its proof."""
    monkeypatch.setattr(healer, "stand_back", lambda *_: None)
    context = Context()
    context.incident = replace(context.incident, device_errors=1)
    seen_on = replace(IMAGE, path=f"{IMAGE.path}.fswatchd-preview-1", inode=4712)
    found = await look(monkeypatch, context, replace(CURABLE, clone=seen_on))
    assert (found.cure, found.clone) == (CURABLE.cure, None)


async def test_a_log_half_on_the_disk_is_no_reason_to_throw_it_away(monkeypatch) -> None:
    """A clone of what is still written to has one: the last resort is not even asked about."""
    unread = replace(CLEAN, clean=False, last_resort=True, what="cannot be replayed")
    done = replace(CURABLE.cure or Cure(repaired=FIXED, proof=CLEAN), by=resort("xfs"))
    found = await look(monkeypatch, Context(), Preview(check=unread, cure=done, seconds=1.0))
    assert (found.next, found.result) == (Next.FAILED, "cannot check")


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
async def test_the_last_resort_takes_a_yes_to_that_very_question(fstype: str) -> None:
    by = resort(fstype)
    done = Cure(repaired=FIXED, proof=CLEAN, by=by)
    context: Any = Context()
    with pytest.raises(StepEnded, match="nothing but") as asked:
        await consent.within_bounds(context, STEP, done, 1.0)
    assert asked.value.result.next is Next.ASK
    assert by.command in asked.value.result.detail
    assert by.price in asked.value.result.detail
    context.approve()
    await consent.within_bounds(context, STEP, done, 1.0)


@pytest.mark.parametrize(
    "asked_about",
    [
        None,
        {"lost_files": 9, "changes": 99, "last_resort": None},
        {"lost_files": 9, "changes": 99},
        {"lost_files": 9, "changes": 99, "last_resort": "btrfs check --repair"},
    ],
    ids=["a long pause", "lost files", "an older version", "another tool"],
)
async def test_a_yes_to_another_question_is_none(asked_about: dict[str, Any] | None) -> None:
    journal: dict[str, Any] = {"question": "bounds", "asked_about": asked_about}
    if asked_about is None:
        journal = {"question": "pause", "asked_pause_s": 3600.0}
    context: Any = Context(**journal)
    context.approve()
    done = Cure(repaired=FIXED, proof=CLEAN, by=resort("xfs"))
    with pytest.raises(StepEnded) as asked:
        await consent.within_bounds(context, STEP, done, 1.0)
    assert asked.value.result.next is Next.ASK


async def test_a_repair_by_root_is_no_yes_to_the_last_resort() -> None:
    context: Any = Context()
    context.incident = replace(context.incident, requested_by="root", forced=True)
    with pytest.raises(StepEnded):
        await consent.within_bounds(
            context, STEP, Cure(repaired=FIXED, proof=CLEAN, by=resort("xfs")), 1.0
        )


@pytest.mark.parametrize(
    ("by", "pause_s", "may"), [("root", 600, True), ("root", 601, False), (None, 1, False)]
)
def test_who_asks_for_a_repair_has_approved_a_pause_but_no_outage(
    by: str | None, pause_s: float, *, may: bool
) -> None:
    context: Any = Context()
    context.incident = replace(context.incident, requested_by=by)
    assert consent.may_hold_writers(context, pause_s) is may


MANY = Cure(repaired=FIXED, proof=CLEAN, by=resort("xfs"))
PAUSED: Any = SimpleNamespace(ve=VE)


async def asked_about_pause(context: Any, pause_s: float) -> None:
    ended = await consent.long_pause(context, STEP, PAUSED, pause_s)
    assert (ended.result.next, ended.result.result) == (Next.ASK, "long pause")


async def asked_about_bounds(context: Any) -> None:
    with pytest.raises(StepEnded) as asked:
        await consent.within_bounds(context, STEP, MANY, 1.0)
    assert asked.value.result.next is Next.ASK


async def test_a_yes_to_what_is_lost_is_none_to_a_pause() -> None:
    context: Any = Context()
    await asked_about_bounds(context)
    context.approve()
    assert not consent.may_hold_writers(context, 3600.0)


async def test_a_yes_to_a_pause_is_for_about_that_long() -> None:
    context: Any = Context()
    await asked_about_pause(context, 3600.0)
    assert not consent.may_hold_writers(context, 3600.0)
    context.approve()
    assert consent.may_hold_writers(context, 3600.0 * 1.4)
    assert not consent.may_hold_writers(context, 3600.0 * 1.6)


async def test_who_has_said_yes_to_both_questions_is_not_asked_again() -> None:
    context: Any = Context()
    await asked_about_bounds(context)
    context.approve()
    await asked_about_pause(context, 3600.0)
    context.incident = replace(context.incident, approved_by=None)
    assert not consent.may_hold_writers(context, 3600.0)
    context.approve()
    assert consent.may_hold_writers(context, 3600.0)
    await consent.within_bounds(context, STEP, MANY, 1.0)


async def test_a_daemon_that_is_killed_before_it_has_asked_asks_again() -> None:
    """The yes that still stands there was to the question before."""
    context: Any = Context()
    await asked_about_bounds(context)
    context.approve()
    await asked_about_pause(context, 3600.0)
    assert not consent.may_hold_writers(context, 3600.0)


@pytest.mark.parametrize(
    ("asks", "pause", "bounds"),
    [
        ("lxc:a could not write for about 45 s, more than max_write_pause (10 s) allows", 1, 0),
        ("lxc:a could not write for about 12 min, more than max_write_pause (10 s) allows", 1, 0),
        ("3 files would be lost. A repair would do: a lot", 0, 1),
        ("", 0, 0),
    ],
    ids=["pause", "longer-pause", "bounds", "not-known"],
)
async def test_what_an_earlier_version_has_asked_its_text_tells(
    asks: str, pause: int, bounds: int
) -> None:
    context: Any = Context(asked_about=MANY.document())
    context.incident = replace(context.incident, asks=asks)
    context.approve()
    assert consent.may_hold_writers(context, 60.0) is bool(pause)
    assert not consent.may_hold_writers(context, 3600.0)
    if bounds:
        await consent.within_bounds(context, STEP, MANY, 1.0)
    else:
        await asked_about_bounds(context)


async def test_what_is_within_bounds_is_not_asked_about() -> None:
    context: Any = Context()
    await consent.within_bounds(context, STEP, Cure(repaired=FIXED, proof=CLEAN), 1.0)
