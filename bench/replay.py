"""How long `fswatch rules replay` takes for a recorded past, from the daemon's own record.

The whole command is timed: its start, reading the events and the decisions over the API, playing
them under the shipped rules in mode auto, and printing the difference. It is run twice, and both
outputs are compared byte for byte.
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import time
from typing import Any

from bench import recorded
from bench.bench import PROJECT, daemon, scene, table
from fswatchd.rules import files

_INCIDENTS = 2_000
_VES = 200
_TARGET_S = 10.0


def _cpu_s() -> float:
    """CPU time of the processes that have ended: on a busy machine the wall clock says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(events: int = 100_000) -> tuple[dict[str, Any], str]:
    """The figures, and a table."""
    rules, problems = files.load([files.embedded_rules()])
    if problems:
        raise RuntimeError(problems)
    incidents = min(_INCIDENTS, events // 10)
    with scene() as paths:
        paths.directory.mkdir(exist_ok=True)
        state = paths.directory / "state"
        state.mkdir()
        recorded.fill(state / "fswatchd.db", rules, events=events, incidents=incidents, ves=_VES)
        shipped = files.embedded_rules()
        config = (
            f'node = "hn1"\nrules = ["{shipped}"]\nves = []\n'
            "[sources]\nfanotify = false\nkmsg = false\njournal = false\nstate = false\n"
        )
        seconds, cpu, outputs = [], [], []
        with daemon(paths, config) as (client, _):
            for _round in range(2):
                begun, used = time.monotonic(), _cpu_s()
                done = subprocess.run(
                    [
                        sys.executable,
                        *("-c", "from fswatchd.cli.main import main; raise SystemExit(main())"),
                        *("--socket", client.path, "--json"),
                        *("rules", "replay", "--since", "30d", "--mode", "auto"),
                    ],
                    cwd=PROJECT,
                    capture_output=True,
                    check=True,
                )
                seconds.append(round(time.monotonic() - begun, 2))
                cpu.append(round(_cpu_s() - used, 2))
                outputs.append(hashlib.sha256(done.stdout).hexdigest())
    result = {
        "events": events,
        "incidents": incidents,
        "seconds": seconds,
        "cpu_s": cpu,
        "target_s": _TARGET_S,
        "identical": outputs[0] == outputs[1],
        "sha256": outputs[0],
    }
    same = "yes" if result["identical"] else "NO"
    rows = [(f"{events:,}", f"{incidents:,}", *seconds, max(cpu), same)]
    heads = ("events", "incidents", "first run, s", "second run, s", "CPU, s", "same bytes")
    return result, table("rules replay", heads, rows)
