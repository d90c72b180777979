from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fswatchd.kernel import cow
from fswatchd.kernel.cow import CowFormatError, CowHeader

# The first 47 bytes of a COW file that User-mode Linux 6.1 of Debian made for a backing file of
# 32 MiB (`linux.uml ubda=my.cow,base.img`), run on Linux 6.18; the rest of the header is zeros.
RECORDED = bytes.fromhex(
    "4f4f4f4d000000036b01a75c0000000002000000000002000000100000000000"
    "2f746d702f6f767a2d756d6c2f626173652e696d67"
)
BASE = b"/srv/uml/base.img"


def padded(data: bytes) -> bytes:
    return data.ljust(cow.HEADER_SIZE, b"\0")


def test_a_header_that_user_mode_linux_wrote() -> None:
    assert cow.parse(padded(RECORDED)) == CowHeader(
        version=3,
        backing_file="/tmp/ovz-uml/base.img",
        modified=0x6B01A75C,
        size=32 << 20,
        sector_size=512,
    )


def early(version: int, order: str, path: int, name: bytes = BASE) -> bytes:
    head = (b"OOOM" if order == ">" else b"MOOO") + struct.pack(f"{order}I", version)
    return head + name.ljust(path, b"\0") + struct.pack(f"{order}IQi", 1000, 4096, 512)


def third(
    name: bytes = BASE, *, packed: bool = True, alignment: int = 4096, form: int = 0
) -> bytes:
    times = ">IQIII" if packed else ">I4xQIII"
    values = struct.pack(times, 1000, 4096, 512, alignment, form)
    return b"OOOM\0\0\0\3" + values + name.ljust(4096, b"\0")


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (early(1, "<", 256), 1),
        (early(1, ">", 256), 1),
        (early(2, ">", 4096), 2),
        (third(), 3),
        (third(packed=False), 3),
    ],
    ids=["v1 little-endian", "v1 big-endian", "v2", "v3", "v3 unpacked"],
)
def test_every_version_names_its_backing_file(data: bytes, version: int) -> None:
    assert cow.parse(data) == CowHeader(
        version=version, backing_file=os.fsdecode(BASE), modified=1000, size=4096, sector_size=512
    )


@pytest.mark.parametrize("data", [b"", b"OOO", b"\x53\xef" * 600, b"QFI\xfb" + bytes(5000)])
def test_what_is_no_cow_file(data: bytes) -> None:
    assert cow.parse(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"OOOM",
        b"OOOM\0\0\0\4" + bytes(5000),
        RECORDED[:30],
        third(b""),
        third(b"x" * 4096),
        third(alignment=0),
        third(form=7),
        early(2, ">", 4096, b"x" * 4096),
        early(1, "<", 256)[:-4] + bytes(4),
    ],
)
def test_a_header_that_the_kernel_would_refuse(data: bytes) -> None:
    with pytest.raises(CowFormatError):
        cow.parse(data)


@given(st.binary(max_size=300), st.sampled_from([b"OOOM", b"MOOO", b""]), st.integers(0, 4))
def test_no_bytes_make_it_fail_otherwise(data: bytes, magic: bytes, version: int) -> None:
    for order in (">", "<"):
        for text in (magic + struct.pack(f"{order}I", version) + data, magic + data):
            for whole in (text, padded(text)):
                try:
                    header = cow.parse(whole)
                except CowFormatError:
                    continue
                assert header is None or (header.backing_file and "\0" not in header.backing_file)
