"""A disk as slow as those that nodes are rented with.

The kernel counts what a block device is asked for and lets the rest wait: blkio.throttle of cgroup
v1 (Documentation/admin-guide/cgroup-v1/blkio-controller.rst). Reads and writes have a limit each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fswatchd.devno import Devno

_KNOBS = Path("/sys/fs/cgroup/blkio")


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests and bytes a second."""

    requests: int
    bytes: int


# What volumes of the large clouds have unless more is paid for (gp3: 3,000 requests, 125 MiB/s).
RENTED = Limit(3000, 125 << 20)


@contextmanager
def limited(device: Devno, limit: Limit | None) -> Iterator[None]:
    """Slow this device down. Raises RuntimeError where the kernel cannot."""
    if limit is None:
        yield
        return
    if not (_KNOBS / "blkio.throttle.read_iops_device").exists():
        raise RuntimeError(f"a slow disk needs the blkio controller of cgroup v1 at {_KNOBS}")
    try:
        _set(device, limit)
        yield
    finally:
        _set(device, Limit(0, 0))  # zero is without a limit


def _set(device: Devno, limit: Limit) -> None:
    for direction in ("read", "write"):
        for knob, value in (("iops", limit.requests), ("bps", limit.bytes)):
            path = _KNOBS / f"blkio.throttle.{direction}_{knob}_device"
            path.write_text(f"{device} {value}")
