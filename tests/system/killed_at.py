"""The daemon, which kills itself at a point that FSWATCHD_TEST_KILL names: for `test_crash_points`.

`{"at": "before fswatchd.repair.swap.exchange", "n": 1, "who": "daemon"}` is before the first call
of a function, `after …` when it has returned, `inside e2fsck` while a program of this name runs,
which is stopped first so that it cannot end meanwhile. `who` dies: the `daemon`, `all` (with every
process it has started), or only the `tool`. The processes that it had at that moment are written to
the file `told` before.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fswatchd import process
from fswatchd.daemon import main
from fswatchd.kernel import proc

VARIABLE = "FSWATCHD_TEST_KILL"
_LOOK_EVERY_S = 0.0005


def descendants(of: int) -> list[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for pid in proc.pids():
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(stat[1]), []).append(pid)
    found, todo = [], [of]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


class Killer:
    """Kills at the n-th time that the point is reached."""

    def __init__(self, n: int, who: str, told: Path) -> None:
        self._left = n
        self._who = who
        self._told = told
        self._lock = threading.Lock()

    def reached(self, tool: int | None = None) -> None:
        """The point was reached; does not return where the daemon dies."""
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
            mine = descendants(os.getpid())
            self._told.write_text(json.dumps(mine))
            if self._who == "tool" and tool is not None:
                os.kill(tool, signal.SIGKILL)
                return
            for pid in mine if self._who == "all" else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(self, tool: str, below: int) -> None:
        """Wait until a program of this name runs below a process, and stop it there."""
        while os.path.exists(f"/proc/{below}"):
            for pid in (below, *descendants(below)):
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == tool:
                        os.kill(pid, signal.SIGSTOP)
                        self.reached(pid)
                        os.kill(pid, signal.SIGCONT)
                        return
            time.sleep(_LOOK_EVERY_S)


def _owner(name: str) -> tuple[Any, str]:
    """Module or class, and the name of what is in it."""
    path, _, last = name.rpartition(".")
    try:
        return importlib.import_module(path), last
    except ImportError:
        module, _, inner = path.rpartition(".")
        return getattr(importlib.import_module(module), inner), last


def watch_function(killer: Killer, when: str, name: str) -> None:
    """Put the point before or after every call of a function."""
    owner, last = _owner(name)
    real = getattr(owner, last)

    @functools.wraps(real)
    async def waits(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            killer.reached()
        result = await real(*arguments, **named)
        if when == "after":
            killer.reached()
        return result

    @functools.wraps(real)
    def calls(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            killer.reached()
        result = real(*arguments, **named)
        if when == "after":
            killer.reached()
        return result

    setattr(owner, last, waits if inspect.iscoroutinefunction(real) else calls)


def watch_tool(killer: Killer, tool: str) -> None:
    """Put the point inside every run of a program."""
    real = process.run

    @functools.wraps(real)
    async def run(argv: Any, **options: Any) -> Any:
        if argv[0] == tool:
            told = options.get("on_start")

            def started(pid: int) -> None:
                if told:
                    told(pid)
                threading.Thread(target=killer.inside, args=(tool, pid), daemon=True).start()

            options["on_start"] = started
        return await real(argv, **options)

    process.run = run


if __name__ == "__main__":
    wanted = json.loads(os.environ[VARIABLE])
    made = Killer(wanted["n"], wanted["who"], Path(wanted["told"]))
    when, _, name = wanted["at"].partition(" ")
    if when == "inside":
        watch_tool(made, name)
    else:
        watch_function(made, when, name)
    raise SystemExit(main())
