"""The way durations, thresholds and sizes are written in rule files and shown to people."""

import re
from dataclasses import dataclass
from datetime import datetime

# Beyond these a number is a slip of the pen, and no arithmetic has to bear it.
_LONGEST_S = 100 * 365.25 * 86400
_LARGEST = 1 << 60
_MOST = 1_000_000
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])")
_DURATION = re.compile(rf"(?:{_PART.pattern}\s*)+")
_THRESHOLD = re.compile(r"(\d+)\s+in\s+(\S.*)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Threshold:
    """At least `count` errors within `window_s` seconds."""

    count: int
    window_s: float


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `10m`, `1h30m`, `500ms`; raises ValueError with the expected form."""
    if not _DURATION.fullmatch(text.strip()):
        raise ValueError(f'{text!r} is no duration; write it like "30s", "10m" or "1h30m"')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _LONGEST_S:
        raise ValueError("it is longer than 100 years")
    return seconds


def parse_threshold(text: str) -> Threshold:
    """From `3 in 10m`; raises ValueError with the expected form."""
    match = _THRESHOLD.fullmatch(text.strip())
    if not match or not 1 <= float(match[1]) <= _MOST:
        raise ValueError(f'{text!r} is no threshold; write it like "3 in 10m"')
    return Threshold(int(match[1]), parse_duration(match[2]))


def parse_size(text: str) -> int:
    """Bytes from `500M`, `1GiB`, `4096`; raises ValueError with the expected form."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f'{text!r} is no size; write it like "500M" or "2GiB"')
    exponent = " KMGT".index((match[2] or " ").upper())
    size = float(match[1]) * 1024**exponent
    if size > _LARGEST:
        raise ValueError("it is larger than 1 EiB")
    return int(size)


def parse_timestamp(text: str) -> int:
    """Nanoseconds since the epoch from RFC 3339; raises ValueError."""
    moment = datetime.fromisoformat(text)
    return round(moment.timestamp() * 1_000_000) * 1000


def show_duration(seconds: float) -> str:
    """`0.26 s`, `45 s`, `12 min`, `3 h 20 min`, `5 d`: two digits are enough for people."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{seconds / 86400:.0f} d"


def show_size(size_bytes: float) -> str:
    """`512 B`, `3.2 MiB`, `64 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if size_bytes >= 10 else f"{size_bytes:.2g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
