"""Which inodes and paths are read out of the words of the kernel and the tools."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fswatchd.engine import naming
from fswatchd.engine.naming import Naming
from fswatchd.steps import ActionSettings
from tests.unit.builders import event
from tests.unit.inventory.test_lookup import NODE, superblock

READ = "I/O error, dev loop3, sector 524280 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2"
WRITE = "I/O error, dev loop3, sector 524280 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """debugfs(8) as it answers; what it was asked is returned."""
    asked: list[str] = []

    async def debugfs(_device: str, request: str) -> str:
        asked.append(request)
        if request.startswith("icheck"):
            return "Block\tInode number\n65535\t13\n65536\t<block not found>\n"
        return "Inode\tPathname\n13\t/io/named file\n"

    monkeypatch.setattr(naming, "_debugfs", debugfs)
    monkeypatch.setattr(naming.extfs, "block_size", lambda _: 4096)
    monkeypatch.setattr(naming, "missing_bytes", lambda _: 0)
    return asked


async def test_a_sector_that_cannot_be_read_leads_to_a_name(tables: list[str]) -> None:
    found = await naming._on_ext(superblock(3, (NODE, "/")), {READ})
    assert [(file.inode, file.path) for file in found] == [(13, "/io/named file")]
    assert tables == ["icheck 65535", "ncheck 13"]


@pytest.mark.parametrize("line", [WRITE, "I/O error, dev loop3", "comm x, sector 5 op 0x0"])
async def test_other_lines_lead_to_none(tables: list[str], line: str) -> None:
    assert await naming._on_ext(superblock(3, (NODE, "/")), {line}) == []
    assert tables == []


class _NoBook:
    def subscribe(self, _listener: object) -> None: ...

    def get(self, _: str) -> None:
        return None


async def test_a_line_about_another_device_or_another_kind_of_fault_is_not_looked_into() -> None:
    book = Naming(_NoBook(), None, ActionSettings())  # type: ignore[arg-type]
    found = replace(superblock(3, (NODE, "/")), device="loop3")
    book.heard(event("kmsg", "corruption"), "one", found)
    book.heard(event("kmsg", "io_error", device="sda"), "one", found)
    assert not book._heard
    book.heard(event("kmsg", "io_error"), "one", found)
    assert book._heard
    await asyncio.sleep(naming._SETTLE_S * 3)
    assert not book._heard
