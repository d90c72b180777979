"""A plan goes on where it has asked, as long as its rule still wants that plan."""

from __future__ import annotations

from typing import Any

import pytest

from fswatchd.engine.plan_record import goes_on
from fswatchd.incidents import StepRecord, StepState


def plan(*, journal: dict[str, Any] | None = None, to: str = "ops", **options: Any) -> Any:
    return (
        StepRecord(do="notify", options={"do": "notify", "to": [to]}, state=StepState.DONE),
        StepRecord(do="fsck", options={"do": "fsck", **options}, journal=journal or {}),
    )


ASKED = plan(journal={"asked": True}, strategy="clone", max_write_pause=5.0)


@pytest.mark.parametrize(
    ("wanted", "does"),
    [
        (plan(strategy="clone", max_write_pause=5.0), True),
        (plan(strategy="clone", max_write_pause=5.0, to="night"), True),
        (plan(strategy="clone", max_write_pause=5.0, of_a_later_version=None), True),
        (plan(strategy="offline", max_write_pause=5.0), False),
        (plan(strategy="clone", max_write_pause=600.0), False),
        (plan(strategy="clone", max_write_pause=5.0)[1:], False),
    ],
    ids=["same", "told to others", "another version", "way", "bound", "fewer"],
)
def test_a_plan_that_has_asked_goes_on_with_the_steps_that_it_asked_about(
    wanted: tuple[StepRecord, ...], *, does: bool
) -> None:
    assert goes_on(ASKED, wanted) is does
