"""What an LXC container's configuration says without the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.platforms.lxc import configured_labels


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# fswatch: approve\n", {"fswatch": "approve"}),
        ("  #fswatch = auto\nlxc.uts.name = a\n", {"fswatch": "auto"}),
        ("# fswatch: auto\n# fswatch: observe\n", {"fswatch": "observe"}),
        ("# fswatch: sometimes\n", {"fswatch": "observe"}),
        ("# fswatchful: auto\nlxc.uts.name = fswatch: auto\n", {}),
    ],
)
def test_a_comment_says_what_the_owner_wishes(
    tmp_path: Path, text: str, wanted: dict[str, str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config").write_text(text)
    assert configured_labels(str(tmp_path), "a") == wanted


def test_without_a_configuration_nobody_knows_what_he_wishes(tmp_path: Path) -> None:
    assert configured_labels(str(tmp_path), "a") is None
