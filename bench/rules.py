"""What many rules, and many incidents that wait, cost a decision. Needs neither root nor a kernel.

The rules are of all kinds: for one VE by its name, for a label, with groups, times of day and
globs; most are for the class, severity and filesystem type that is asked about. Times are those of
the processor (CLOCK_THREAD_CPUTIME_ID): who else runs on the machine is not what is measured.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.bench import PARENT, summary, table
from fswatchd.devno import Devno
from fswatchd.events import Domain, EventClass, Severity
from fswatchd.incidents import Filesystem, Incident, Load
from fswatchd.policy import Verdict, decide
from fswatchd.rules import files
from fswatchd.rules.model import Budget, RuleSet
from fswatchd.situation import PolicyState, RunningRepair, Scope, VeFacts
from fswatchd.turns import Turns

_A_FILE = 20
_ROUNDS = 5
_KINDS = (
    'match.ve = "ve{n}"',
    'match.label.tenant = "t{n}"',
    'match.ve = "web-{n}-*"\nmatch.severity = ">= error"',
    'match.any = [{{ label.rack = "r{n}" }}, {{ ve = "x{n}" }}]\nmatch.during = "02:00-06:00"',
    'match.role = "data"\nmatch.label.tier = "t{n}"\nmatch.not = {{ ve = "db{n}" }}',
)

_INCIDENT = Incident(
    incident_id="20261121-abcde",
    node="hn1",
    domain=Domain.DAMAGE,
    filesystem=Filesystem(devno=Devno(7, 1), device="loop1", fstype="ext4"),
    opened_ns=2,
    updated_ns=2,
    classes=frozenset({EventClass.CORRUPTION}),
    severity=Severity.CRITICAL,
    confirmed=True,
    ves=("lxc:a1",),
    counts={"fanotify": 1},
    recent=((1, "fanotify", 1),),
)


def run(rules: int = 1000, decisions: int = 20_000) -> tuple[dict[str, Any], str]:
    """Numbers and a table."""
    with tempfile.TemporaryDirectory(dir=PARENT) as directory:
        _write(Path(directory), rules)
        loads = [_load(Path(directory)) for _ in range(_ROUNDS)]
    found = loads[-1][0]
    assert len(found.rules) == rules + 1
    load_s = sorted(seconds for _, seconds in loads)[len(loads) // 2]
    first = _decisions(found, PolicyState(mode="auto", local_s=0), 1)
    alone = _decisions(found, PolicyState(mode="auto", local_s=0), decisions)
    crowd = _decisions(found, _crowd(10_000), decisions)
    result = {
        "rules": rules,
        "load_ms": round(load_s * 1000, 1),
        "first_us": summary(first, 1e6),
        "decision_us": summary(alone, 1e6),
        "decision_with_10000_waiting_us": summary(crowd, 1e6),
    }
    rows = [
        (f"{rules} rules read and checked", f"{load_s * 1000:.0f} ms", ""),
        ("the first decision after that", f"{first[0] * 1e6:.0f} µs", ""),
        *(
            (what, f"{numbers['median']:.0f} µs", f"{numbers['p99']:.0f} µs")
            for what, numbers in (
                ("a decision", result["decision_us"]),
                ("… with 10,000 that wait", result["decision_with_10000_waiting_us"]),
            )
        ),
    ]
    return result, table(f"Deciding with {rules} rules (one core)", ("", "median", "p99"), rows)


def _write(directory: Path, count: int) -> None:
    for start in range(0, count, _A_FILE):
        text = "".join(_rule(number) for number in range(start, min(start + _A_FILE, count)))
        (directory / f"{start:05}.toml").write_text(text)
    text = (
        '[[rule]]\nname = "last"\nmode = "auto"\nbudget = { node = 9, device = 1 }\n'
        '[[rule.step]]\ndo = "fsck"\n'
    )
    (directory / "99999.toml").write_text(text)


def _rule(number: int) -> str:
    match = _KINDS[number % len(_KINDS)].format(n=number)
    return (
        f'[[rule]]\nname = "rule-{number}"\ndescription = "one of many"\n{match}\n'
        'match.class = ["corruption", "readonly"]\nmatch.fstype = ["ext3", "ext4"]\n'
        'threshold = "1 in 10m"\nmode = "approve"\n'
        '[[rule.step]]\ndo = "fsck"\n[[rule.step]]\ndo = "notify"\nto = ["ops"]\n'
    )


def _load(directory: Path) -> tuple[RuleSet, float]:
    begin = time.thread_time()
    found, problems = files.load([directory])
    seconds = time.thread_time() - begin
    if problems:
        raise ValueError(problems[0])
    return found, seconds


def _decisions(rules: RuleSet, state: PolicyState, count: int) -> Sequence[float]:
    """Of VEs that none of the many rules is for: all of them are asked, and the last one acts."""
    scopes = [
        Scope(
            ves=(VeFacts(ve_id=f"lxc:a{n}", name=f"a{n}", platform="lxc"),),
            devices=("7:1", "8:0"),
            role="rootfs",
        )
        for n in range(200)
    ]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times = []
    gc.collect()
    for number in range(count):
        scope = scopes[number % len(scopes)]
        begin = time.thread_time()
        decision = decide(rules, _INCIDENT, scope, state, 3)
        times.append(time.thread_time() - begin)
        if decision.rule != "last" or decision.verdict not in {Verdict.ACT, Verdict.WAIT}:
            raise ValueError(decision)
    return times


def _crowd(count: int) -> PolicyState:
    """So many wait for one of three busy disks, and are all ahead."""
    disks = [f"8:{16 * (n + 1)}" for n in range(3)]
    running = tuple(
        RunningRepair(incident_id=f"run{n}", load=Load(devices=(disk,)))
        for n, disk in enumerate(disks)
    )
    turns = Turns({})
    budget = Budget(node=9, device=1)
    for n in range(count):
        load = Load(devices=(f"9:{n}", disks[n % 3]))
        turns.waits(replace(_INCIDENT, incident_id=f"{n:05}", opened_ns=1), f"w{n}", budget, load)
    return PolicyState(mode="auto", local_s=0, running=running, queue=turns.queue)
