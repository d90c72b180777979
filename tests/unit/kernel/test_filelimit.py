"""How far the limit of open files is raised."""

from __future__ import annotations

import resource

import pytest

from fswatchd.kernel import filelimit

NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        pytest.param(1024, 524288, filelimit.ENOUGH, id="usual"),
        pytest.param(1024, 4096, 4096, id="small"),
        pytest.param(1024, NO_LIMIT, filelimit.ENOUGH, id="no-hard-limit"),
        pytest.param(1 << 20, 1 << 20, 1 << 20, id="more-already"),
        pytest.param(NO_LIMIT, NO_LIMIT, NO_LIMIT, id="no-limit"),
    ],
)
def test_the_soft_limit_is_raised_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert filelimit.allow_many() == then
    assert limits[-1] == (then, hard)
