"""A helper's deadline is for its work; how long its interpreter takes to start is no failure."""

from __future__ import annotations

import pytest

from fswatchd.helpers.client import Helper, HelperError

_SLOW = "tests.system.slow_helper"
_LESS_THAN_ITS_IMPORT_S = 2.0


async def test_a_helper_that_starts_slowly_answers_all_the_same() -> None:
    helper = Helper(_SLOW)
    try:
        answer, _ = await helper.request({"op": "work"}, timeout_s=_LESS_THAN_ITS_IMPORT_S)
        assert answer["heard"] == "work"
        with pytest.raises(HelperError, match="did not answer"):
            await helper.request({"op": "nothing"}, timeout_s=0.2)
    finally:
        await helper.close(kill=True)


async def test_a_helper_that_cannot_start_is_not_waited_for() -> None:
    helper = Helper("tests.system.no_such_helper")
    try:
        with pytest.raises(HelperError, match="ended"):
            await helper.request({"op": "work"}, timeout_s=_LESS_THAN_ITS_IMPORT_S)
    finally:
        await helper.close(kill=True)
