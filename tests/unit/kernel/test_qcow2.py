"""qcow2 headers as QEMU writes them (docs/interop/qcow2 in its source)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fswatchd.kernel import qcow2


def image(
    backing: bytes = b"",
    form: bytes = b"",
    *,
    version: int = 3,
    features: int = 0,
    data_file: bytes = b"",
) -> bytes:
    """The first cluster of an image of 64 MiB, laid out as qemu-img create does."""
    extensions = b""
    for kind, text in ((0xE2792ACA, form), (0x44415441, data_file)):
        if text:
            extensions += struct.pack(">II", kind, len(text)) + text + bytes(-len(text) % 8)
    # The table of feature names, which qemu-img always writes.
    extensions += struct.pack(">II", 0x6803F857, 48) + bytes(48) + bytes(8)
    length = 104 if version == 3 else 72
    at = length + len(extensions) if backing else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        at,
        len(backing),
        16,
        64 << 20,
        0,
        1,
        3 << 16,
        1 << 16,
        1,
        0,
        0,
    )
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, length)
    return (head + extensions + backing).ljust(1 << 16, b"\0")


def test_an_image_of_its_own_has_nothing_beneath() -> None:
    assert qcow2.parse(image()) == qcow2.Header(version=3)


@pytest.mark.parametrize("version", [2, 3])
def test_the_backing_file_and_its_format_are_read(version: int) -> None:
    found = qcow2.parse(image(b"base-100-disk-0.qcow2", b"qcow2", version=version))
    assert (found.backing, found.backing_format) == ("base-100-disk-0.qcow2", "qcow2")


def test_marks_and_a_data_file_are_read() -> None:
    found = qcow2.parse(image(features=1 | 2 | 4, data_file=b"ve101.data"))
    assert (found.dirty, found.corrupt, found.data_file) == (True, True, "ve101.data")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"QFI\xfb",
        bytes(512),
        image()[:80],
        image(version=4),
        image(b"x" * 1024),
        image(b"a\0b"),
        image(b"cut", b"raw")[:186],
    ],
)
def test_what_cannot_be_right_is_refused(data: bytes) -> None:
    with pytest.raises(qcow2.Qcow2Error):
        qcow2.parse(data)


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(0, 1 << 16))
@settings(deadline=None)
def test_no_content_raises_anything_else(noise: bytes, at: int, cut: int) -> None:
    whole = image(b"/vz/base.qcow2", b"qcow2")
    for data in (noise, b"QFI\xfb" + noise, (whole[:at] + noise + whole[at + len(noise) :])[:cut]):
        try:
            found = qcow2.parse(data)
        except qcow2.Qcow2Error:
            continue
        if found.backing is not None:
            qcow2.file_of(found.backing, "/vz/ve101.qcow2")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/vz/base.raw", "/vz/base.raw"),
        ("base.raw", "/vz/101/base.raw"),
        ("../100/base.qcow2", "/vz/100/base.qcow2"),
        ("file:base.raw", "/vz/101/base.raw"),
        ("file:///vz/base.raw", "/vz/base.raw"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/vz/b"}}', "/vz/b"),
        ('json:{"file.filename": "/vz/b"}', "/vz/b"),
        ("dir/with:colon", "/vz/101/dir/with:colon"),
        ("nbd:unix:/run/x", None),
        ("rbd:pool/base", None),
        ("json:{", None),
        ('json:{"driver":"null-co"}', None),
        ("json:" + '{"file":' * 4000, None),
    ],
)
def test_a_name_leads_to_a_local_file_or_nowhere(name: str, path: str | None) -> None:
    assert qcow2.file_of(name, "/vz/101/ve.qcow2") == path
