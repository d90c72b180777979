"""What to write instead, for every mistake in a rule file. Pure."""

from __future__ import annotations

import re

_MANUAL = "fswatchd.rules(5) describes {}"
_TOML = "mostly a quote, a comma or a bracket is missing there or just before"
_PLACE = re.compile(r"\[\d+\]")
# What a message ends with when it says itself what to write.
_TOLD = re.compile(r"; ((?:write it like|did you mean|write) .*)", re.DOTALL)
# A value that is right, by the last part of the key; with the table before it where several tables
# have such a key.
_EXAMPLES = {
    "name": 'name = "ext4-damage"',
    "match": 'match.fstype = "ext4"',
    "class": 'match.class = ["corruption", "readonly"]',
    "severity": 'match.severity = ">= error"',
    "fstype": 'match.fstype = "ext4"',
    "ve": 'match.ve = "web-*"',
    "platform": 'match.platform = ["lxc", "proxmox"]',
    "match.node": 'match.node = "hn1"',
    "match.label": 'match.label.tier = "gold"',
    "role": 'match.role = "rootfs"',
    "cause": 'match.cause = "none"',
    "match.ves": 'match.ves = ">= 3"',
    "ves": "ves = 10",
    "during": 'match.during = "22:00-06:00"',
    "confirmed": "match.confirmed = true",
    "any": 'match.any = [{ fstype = "ext4" }, { role = "rootfs" }]',
    "all": 'match.all = [{ fstype = "ext4" }, { role = "rootfs" }]',
    "not": 'match.not = { ve = "test-*" }',
    "threshold": 'threshold = "3 in 10m"',
    "mode": 'mode = "approve"',
    "approval": 'approval = "4h"',
    "cooldown": 'cooldown = "30m"',
    "backoff": 'backoff = "1d"',
    "flap": 'flap = "1d"',
    "budget": "budget = { node = 2, device = 1 }",
    "budget.node": "budget = { node = 2, device = 1 }",
    "budget.device": "budget = { node = 2, device = 1 }",
    "budget.filesystem": "budget = { node = 2, filesystem = 1 }",
    "budget.label": "budget = { node = 2, label.rack = 1 }",
    "copies": 'copies = "cluster", the name of a label',
    "healthy": 'healthy = "1m"',
    "continue": "continue = true",
    "step": '[[rule.step]], and in it do = "fsck"',
    "do": 'do = "fsck"',
    "to": 'to = ["ops"]',
    "on_failure": 'on_failure = "quarantine"',
    "timeout": 'timeout = "10m"',
    "strategy": 'strategy = "clone"',
    "run": 'run = ["/usr/local/sbin/tell", "--now"]',
    "max_lost_files": "max_lost_files = 0",
    "max_changes": "max_changes = 100",
    "share": 'share = "25%"',
    "window": 'window = "10m"',
    "resume": 'resume = "operator"',
}


def completed(key: str, message: str) -> tuple[str, str]:
    """The message of a mistake at `key` (`step[1].to`; empty: the whole file) and a hint to it."""
    told = _TOLD.search(message)
    if told is not None:
        return message[: told.start()], told[1]
    if like := example(key):
        return message, like
    if message.startswith("not valid TOML"):
        return message, _TOML
    return message, _MANUAL.format(key or "what it may hold")


def example(key: str) -> str:
    """A right value at the key, as a hint; empty where there is none."""
    parts = _PLACE.sub("", key).split(".")
    found = _EXAMPLES.get(f"{parts[0]}.{parts[-1]}") or _EXAMPLES.get(parts[-1])
    return f"like {found}" if found else ""
