"""What `dmsetup status` says of a thin pool, and of the paths of a multipath device. Pure.

Of a pool (device-mapper/thin-provisioning.rst):

    0 41943040 thin-pool 4 245/4096 160/163840 - rw discard_passdown queue_if_no_space - 1024

start, length and target; transaction id; used/total metadata blocks; used/total data blocks; held
metadata root; `rw`, `ro` or `out_of_data_space`; options in any order; `needs_check` or `-` (Linux
4.0); the metadata low water mark (Linux 4.19). A pool that has given up says only `Fail`, one whose
status cannot be read `Error`.

Of a multipath device (drivers/md/dm-mpath.c, `multipath_status`), each path by its numbers, `A` or
`F`, and how often it has failed:

    0 409600 multipath 2 0 0 0 1 1 A 0 2 0 8:16 A 0 8:32 F 1
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?:^|: |\n)\d+ (\d+) thin-pool (\S[^\n]*)")
_PATHS = re.compile(r"(?:^|: |\n)\d+ \d+ multipath (\S[^\n]*)")
_PATH = re.compile(r" \d+:\d+ ([AF])\b")
_SECTOR = 512
_USE = re.compile(r"(\d+)/(\d+)")
_FULL_PERCENT = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinPool:
    """How full a thin pool of `size_bytes` is, in percent.

    `mode` is `rw`, `ro`, `out_of_data_space`, `Fail` or `Error`.
    """

    mode: str
    size_bytes: int = 0
    data_percent: float = 0.0
    metadata_percent: float = 0.0
    needs_check: bool = False

    @property
    def lacks(self) -> str:
        """What there is no room for any more, in words; empty where there is room.

        From 99 % on: the last of it goes faster than anybody can look.
        """
        if self.mode == "out_of_data_space" or self.data_percent >= _FULL_PERCENT:
            return f"its data is {self.data_percent:.1f} % full"
        if self.metadata_percent >= _FULL_PERCENT:
            return f"its metadata is {self.metadata_percent:.1f} % full"
        return ""

    @property
    def broken(self) -> str:
        """What is wrong with the pool itself, in words; empty where nothing is."""
        if self.mode in {"Fail", "Error"}:
            return f"a thin pool that has failed ({self.mode})"
        if self.needs_check:
            return "a thin pool that needs a check of its metadata"
        return ""

    @property
    def readonly(self) -> bool:
        """Whether it has stopped writing."""
        return self.mode == "ro"


def thin_pool(status: str) -> ThinPool | None:
    """From the output of dmsetup status of one device; None where it is no thin pool."""
    match = _LINE.search(status)
    if match is None:
        return None
    words = match[2].split()
    if words[0] in {"Fail", "Error"}:
        return ThinPool(mode=words[0])
    if len(words) < 5 or not (_USE.fullmatch(words[1]) and _USE.fullmatch(words[2])):
        return None
    mode = next((word for word in words[4:] if word in {"rw", "ro", "out_of_data_space"}), None)
    if mode is None:
        return None
    return ThinPool(
        mode=mode,
        size_bytes=int(match[1]) * _SECTOR,
        metadata_percent=_percent(words[1]),
        data_percent=_percent(words[2]),
        needs_check="needs_check" in words[5:],
    )


def paths(status: str) -> tuple[int, int]:
    """How many paths the kernel uses, and how many it does not for now; none where it is no
    multipath device."""
    match = _PATHS.search(status)
    states = _PATH.findall(match[1]) if match is not None else []
    return states.count("A"), states.count("F")


def _percent(used_of_total: str) -> float:
    used, total = (int(number) for number in used_of_total.split("/"))
    return 100 * used / total if total else 100.0
