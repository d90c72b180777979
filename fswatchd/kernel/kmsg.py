r"""Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

A record is `prefix,sequence,microseconds,flags[,more];text` and, on lines of their own that start
with a space, `KEY=value` pairs. The prefix is `facility << 3 | level`. What user space writes to
/dev/kmsg can have any facility but 0 (kernel/printk/printk.c, `devkmsg_write`), so facility 0 is
the kernel's own voice. Characters outside printable ASCII arrive as `\xHH`.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SIZE = 8192
# set_capacity_and_notify() of block/genhd.c, since Linux 5.11, ten in five seconds at most: what
# had no size is attached. Disks are left out: theirs also comes and goes with their connection.
_ATTACHED = re.compile(r"((?:loop|nbd|dm-)\d+): detected capacity change from 0 to \d+")
_PARTITION = re.compile(r"((?:loop|nbd)\d+)p\d+")


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


def buffer(path: str = "/dev/kmsg") -> Iterator[bytes]:
    """Every record that the kernel still has; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield from records(fd)
    finally:
        os.close(fd)


def records(fd: int) -> Iterator[bytes]:
    """Every record from where the open log is read to its end; raises OSError."""
    while True:
        try:
            yield os.read(fd, _SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EPIPE:  # overwritten meanwhile: the next one is there
                raise


def attachments(records: Iterable[bytes]) -> dict[str, int]:
    """Since when (`time_us`) devices are attached to what they have now, as far as records tell."""
    found = {}
    for raw in records:
        if b": detected capacity change from 0 to " in raw:
            record = parse(raw)
            match = _ATTACHED.fullmatch(record.text)
            if match is not None and record.facility == 0:
                found[match[1]] = record.time_us
    return found


def disk(device: str) -> str:
    """The device that is attached, of a partition on it too."""
    match = _PARTITION.fullmatch(device)
    return device if match is None else match[1]
