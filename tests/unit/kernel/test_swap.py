"""What the node swaps to; the table as proc_swaps(5) shows it."""

from __future__ import annotations

from pathlib import Path

from fswatchd.devno import Devno
from fswatchd.kernel import swap


def test_files_devices_and_what_is_gone(tmp_path: Path) -> None:
    area = tmp_path / "swap file"
    area.touch()
    table = tmp_path / "swaps"
    table.write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/gone                               partition\t8388604\t\t0\t\t-2\n"
        f"{str(area).replace(' ', chr(92) + '040')} file\t\t524284\t\t0\t\t-3\n"
    )
    here = Devno.of(tmp_path.stat().st_dev)
    assert swap.areas(str(table)) == [("/dev/gone", None), (str(area), here)]
