from __future__ import annotations

import pytest

from fswatchd.process import oom_score_prefix


@pytest.mark.parametrize(
    ("own", "wanted", "given"),
    [(-900, 0, "0"), (-900, 500, "500"), (0, 500, "500"), (0, 0, None), (700, 0, None)],
)
def test_a_program_never_gets_the_protection_of_the_service(
    own: int, wanted: int, given: str | None
) -> None:
    prefix = oom_score_prefix(wanted, own=own)
    assert prefix == (("choom", "-n", given, "--") if given else ())
