from __future__ import annotations

import pytest

from fswatchd.doctor import _source
from fswatchd.events import SourceState
from fswatchd.sources import SourceStatus


@pytest.mark.parametrize(
    ("name", "switch", "level"),
    [
        ("vzevent", "auto", "ok"),
        ("xfs_health", "auto", "ok"),
        ("vzevent", True, "warning"),
        ("quota", "auto", "warning"),
        ("kmsg", "auto", "critical"),
    ],
)
def test_a_source_that_cannot_work_matters_where_it_should(name, switch, level) -> None:
    status = SourceStatus(name=name, state=SourceState.UNAVAILABLE, detail="not here")
    found = _source(status, switch)
    assert (found.level, found.text) == (level, "unavailable: not here")
