"""What debugfs says of the clone's inodes, and what the salvage helper writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fswatchd.devno import Devno
from fswatchd.helpers import salvage as helper
from fswatchd.process import Completed
from fswatchd.repair import salvage
from fswatchd.repair.volume import ImageFile

# debugfs 1.47.0 on a file of 40000 bytes, an inode that was never used, and one beyond the end.
OUTPUT = """\
debugfs 1.47.0 (5-Feb-2023)
debugfs: inode_dump <12>
0000  a481 0000 409c 0000 d662 016b d662 016b  ....@....b.k.b.k
0020  d662 016b 0000 0000 0000 0100 0200 0000  .b.k............
0040  0000 0800 0000 0000 0af3 0100 0400 0000  ................
0060  0000 0000 0000 0000 0100 0000 2111 0000  ............!...
0100  0000 0000 0000 0000 0000 0000 0000 0000  ................
*
0160  0000 0000 0000 0000 0000 0000 f7ca 0000  ................
0200  2000 890a 0000 0000 0000 0000 0000 0000   ...............
0220  d662 016b 0000 0000 0000 0000 0000 0000  .b.k............
0240  0000 0000 0000 0000 0000 0000 0000 0000  ................
*

debugfs: inode_dump <13>
0000  0000 0000 0000 0000 0000 0000 0000 0000  ................
*

debugfs: inode_dump <99999>
<99999>: File not found by ext2_lookup
"""


def test_the_size_of_a_regular_file_is_read_from_its_inode() -> None:
    assert salvage.sizes_of(OUTPUT) == {12: 40000}


def test_the_upper_half_of_a_size_counts() -> None:
    big = OUTPUT.replace(
        "0160  0000 0000 0000 0000 0000 0000 f7ca", "0140  0000 0000 0000 0000 0000 0000 0100"
    )
    assert salvage.sizes_of(big.replace("*\n0140", "0120  " + "0000 " * 8 + "\n0140")) == {
        12: 40000 + (1 << 32)
    }


async def test_what_has_another_size_in_the_clone_is_not_dumped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple[tuple[str, ...], str]] = []
    commands = tmp_path / "commands"

    async def run(argv: tuple[str, ...], **_: Any) -> Completed:
        ran.append((argv, commands.read_text()))
        return Completed(argv=argv, returncode=0, output=OUTPUT, duration_s=0)

    monkeypatch.setattr(salvage.process, "run", run)
    copy = ImageFile(path="/vz/clone", devno=Devno(8, 1), inode=78)
    await salvage._dump(copy, {12: 40000}, commands, tmp_path)
    assert len(ran) == 2
    assert ran[-1][1] == f"dump <12> {tmp_path}/12\n"
    assert "--fsize=40000" in ran[-1][0]
    ran.clear()
    await salvage._dump(copy, {12: 4096, 13: 0}, commands, tmp_path)
    assert [text for _, text in ran] == ["inode_dump <12>\ninode_dump <13>\n"]


def copy_one(directory: Path, size: int) -> tuple[str, bytes | None]:
    source, target = directory / "file", directory / "salvaged" / "copy"
    source.write_bytes(bytes(range(256)) * 20)
    mount = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        inode = source.stat().st_ino
        known = str(directory / "not-there")
        outcome = helper._copy_one(mount, "file", inode, size, known, str(target))
    finally:
        os.close(mount)
    return outcome, target.read_bytes() if target.exists() else None


def test_a_write_that_takes_only_a_part_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:100])))
    outcome, copied = copy_one(tmp_path, 5120)
    assert outcome == "copied"
    assert copied == bytes(range(256)) * 20


def test_a_file_that_is_longer_than_was_reckoned_is_not_copied(tmp_path: Path) -> None:
    outcome, copied = copy_one(tmp_path, 5000)
    assert outcome.startswith("failed")
    assert copied is None
