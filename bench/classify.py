"""How fast `fswatch classify` reads a log, beside a loop that knows one pattern.

Both are processes of their own on one core, with their start-up, reading the same file. The log is
made up: mostly what other programs and other parts of the kernel say, some lines of filesystems
that are well, one line in a hundred a problem. The loop does what a short script would: one
`re.match` a line, one kind of problem, one form of prefix.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.bench import PARENT, PROJECT, table

_LINES = 2_000_000
_SHARE = 0.01
_ROUNDS = 3

_OTHERS = (
    "sshd[{}]: Accepted publickey for root from 10.0.{}.{} port 51022 ssh2",
    "systemd[1]: Started Session {} of user u{} ({}).",
    "CRON[{}]: (root) CMD (run-parts /etc/cron.hourly) {} {}",
    'nginx[{}]: 10.1.2.{} - - "GET /index.html HTTP/1.1" 200 {} "-" "curl/8.5.0"',
    "kernel: [{:5d}.{:06d}] usb 1-{}: new high-speed USB device using xhci_hcd",
    "kernel: [{:5d}.{:06d}] IPv6: ADDRCONF(NETDEV_CHANGE): veth{}: link becomes ready",
    'kernel: [{:5d}.{:06d}] audit: type=1400 audit({}): apparmor="DENIED" operation="open"',
)
_WELL = (
    "kernel: [{:5d}.{:06d}] EXT4-fs (dm-{}): mounted filesystem with ordered data mode",
    "kernel: [{:5d}.{:06d}] XFS (dm-{}): Ending clean mount",
)
_PROBLEMS = (
    "kernel: [{:5d}.{:06d}] EXT4-fs error (device dm-{}): ext4_iget:4223: inode #12: comm x: bad",
    "kernel: [{:5d}.{:06d}] blk_update_request: I/O error, dev sd{}, sector 28751848",
    'kernel: [{:5d}.{:06d}] XFS (dm-{}): metadata I/O error: block 0x6 ("xlog") error 5 numblks 8',
    "kernel: [{:5d}.{:06d}] BTRFS error (device dm-{}): bad tree block start, want 30408704 have 0",
)
_ONE_PATTERN = r"""
import re, sys
match = re.compile(
    rb"\w{3} [ \d]\d \d\d:\d\d:\d\d \S+ kernel: \[ *\d+\.\d+\] EXT4-fs error \(device (\S+)\): (.*)"
).match
number = 0
for line in open(sys.argv[1], "rb"):
    number += 1
    if found := match(line):
        sys.stdout.write(f"{number} {found[1].decode()}\n")
"""


def run(lines: int = _LINES) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    with tempfile.TemporaryDirectory(dir=PARENT) as directory:
        log = Path(directory) / "log"
        problems = _write(log, lines)
        ours = [str(Path(sys.executable).with_name("fswatch")), "classify"]
        times = {
            "classify --problems": _seconds([*ours, "--problems", str(log)], rows=problems),
            "classify": _seconds([*ours, str(log)], rows=lines),
            "one re.match a line": _seconds([sys.executable, "-c", _ONE_PATTERN, str(log)]),
        }
        empty = Path(directory) / "empty"
        empty.touch()
        start = _seconds([*ours, "--problems", str(empty)], rows=0)
        size = log.stat().st_size
    rates = {name: round(lines / seconds) for name, seconds in times.items()}
    result = {
        "lines": lines,
        "bytes": size,
        "problems": problems,
        "lines_per_s": rates,
        "start_s": round(start, 3),
    }
    rows = [(name, f"{rate:,}", f"{size / times[name] / 1e6:.0f}") for name, rate in rates.items()]
    text = table(
        f"Reading a log of {lines:,} lines, {problems:,} of them problems (one core)",
        ("", "lines/s", "MB/s"),
        rows,
    )
    return result, f"{text}\nOf which start-up: {start:.2f} s\n"


def _write(log: Path, lines: int) -> int:
    choice = random.Random(1)
    problems = 0
    with log.open("w", encoding="ascii") as file:
        for number in range(lines):
            if choice.random() < _SHARE:
                form = choice.choice(_PROBLEMS)
                problems += 1
            else:
                form = choice.choice(_WELL if choice.random() < 0.05 else _OTHERS)
            values = (choice.randrange(1, 99999) for _ in range(3))
            clock = f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"
            file.write(f"Nov {number % 28 + 1:2d} {clock} node7 {form.format(*values)}\n")
    return problems


def _seconds(command: list[str], rows: int | None = None) -> float:
    """The shortest of a few runs on one core; raises ValueError when the rows are not right."""
    times = []
    core = min(os.sched_getaffinity(0))
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        done = subprocess.run(
            ["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, check=True, cwd=PROJECT
        )
        times.append(time.perf_counter() - begin)
        if rows is not None and done.stdout.count(b"\n") != rows:
            raise ValueError(f"{command}: not {rows} rows")
    return min(times)
