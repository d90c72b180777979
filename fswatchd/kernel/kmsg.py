r"""Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

A record is `prefix,sequence,microseconds,flags[,more];text` and, on lines of their own that start
with a space, `KEY=value` pairs. The prefix is `facility << 3 | level`. What user space writes to
/dev/kmsg can have any facility but 0 (kernel/printk/printk.c, `devkmsg_write`), so facility 0 is
the kernel's own voice. Characters outside printable ASCII arrive as `\xHH`.
"""

from dataclasses import dataclass


class KmsgFormatError(ValueError):
    """The bytes are not a record of /dev/kmsg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsgRecord:
    """One record. `time_us` counts microseconds of the kernel's log clock since boot."""

    facility: int
    level: int
    sequence: int
    time_us: int
    continued: bool
    text: str


def parse(record: bytes) -> KmsgRecord:
    """One record as one read(2) returns it; raises KmsgFormatError."""
    head, separator, body = record.partition(b";")
    fields = head.split(b",")
    if not separator or len(fields) < 4:
        raise KmsgFormatError(f"no kmsg record: {record[:80]!r}")
    try:
        prefix, sequence, time_us = (int(field) for field in fields[:3])
    except ValueError:
        raise KmsgFormatError(f"no kmsg record: {record[:80]!r}") from None
    if prefix < 0 or sequence < 0 or time_us < 0:
        raise KmsgFormatError(f"no kmsg record: {record[:80]!r}")
    return KmsgRecord(
        facility=prefix >> 3,
        level=prefix & 7,
        sequence=sequence,
        time_us=time_us,
        continued=fields[3] == b"c",
        text=body.split(b"\n", 1)[0].decode("utf-8", "backslashreplace"),
    )
