"""A node without a kernel: plays a scenario against the policy, with a clock of its own.

A scenario is a table in a TOML file: what is expected in prose and as the log of all decisions
(`log`), the rules, a node with VEs and disks, and what happens when. Decisions, history and turns
are the daemon's own code; the simulator adds time, faults, and plans that take a while.
"""

from __future__ import annotations

from tests.simulator.clock import Clock
from tests.simulator.happenings import Simulator
from tests.simulator.scenario import load, wanted

__all__ = ["Clock", "Simulator", "load", "wanted"]
