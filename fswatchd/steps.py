"""What all steps of a plan have in common: their context, their results, their endings.

An action (a module of `fswatchd.actions`) gets an `ActionContext` and its options, and returns a
`StepResult`; what happens next is a value, not control flow. It writes what it is about to do into
its journal before doing it (`ActionContext.journal`), and can tell from that journal, after the
daemon was killed, what to do about it (`recover`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fswatchd.incidents import Incident, StepRecord
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve
from fswatchd.rules.model import Step
from fswatchd.sources.state import StateSource

# The result of a step that has found what it cannot mend.
DAMAGED = "damaged"
# The result of one that has put damage right while the filesystem was in use.
MENDED = "mended"
# The result of one that finds healed what somebody else had been left to heal.
RECOVERED = "recovered"


class Next(enum.StrEnum):
    """What follows a step."""

    CONTINUE = "continue"
    FINISHED = "finished"  # nothing is wrong (any more): the plan ends well here
    ASK = "ask"  # somebody must approve before it can go on
    FAILED = "failed"  # see `on_failure` of the step
    OPERATOR = "operator"  # no rule may decide what comes next
    CANCELLED = "cancelled"  # what it was about is gone
    WAIT = "wait"  # somebody else is at work there: nothing was done, ask again later


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How a step ended. `result` is a word for tables, `detail` a sentence or more.

    `changed` says that the VE or its volume is not what it was before the step. `undo` is what
    a later rollback needs.
    """

    next: Next
    result: str
    detail: str
    changed: bool = False
    undo: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSettings:
    """Limits that the configuration sets for all actions."""

    node: str = ""
    state_dir: Path = Path("/var/lib/fswatchd")
    reserve_share: float = 0.05
    reserve_bytes: int = 1 << 30
    stop_timeout_s: float = 60.0
    kill_timeout_s: float = 30.0
    start_timeout_s: float = 60.0
    tool_timeout_s: float = 4 * 3600.0


class ActionContext(Protocol):
    """What an action may use. One context serves one step of one incident."""

    inventory: Inventory
    state: StateSource
    settings: ActionSettings

    @property
    def incident(self) -> Incident:
        """The incident as it is now."""
        ...

    @property
    def record(self) -> StepRecord:
        """This step as it is recorded now."""
        ...

    def note(self, text: str) -> None:
        """Add a line to the incident's story."""
        ...

    def progress(self, share: float | None, text: str) -> None:
        """Say what is going on, and how far it is (0..1)."""
        ...

    def reached(self, milestone: str) -> None:
        """Record the time of a milestone."""
        ...

    def filesystem_is_now(self, superblock: Any) -> None:
        """The incident's volume is mounted as this superblock from now on."""
        ...

    async def lock_ve(self, ve: Ve) -> Ve:
        """Keep the platform's own tools away from the VE until the plan ends.

        Returns it with the commands that work while it is locked; locking twice is nothing. Raises
        StepEnded where somebody else is at work on the VE.
        """
        ...

    async def about_to_start(self, ve: Ve) -> None:
        """The VE's start command is about to run: let go of what it would wait for."""
        ...

    async def about_to_stop(self, ve_id: str) -> None:
        """Ask once more before the VE is stopped; `stopping` is in the journal on return.

        Hours may have passed since it was decided. Raises StepEnded when somebody has disarmed the
        VE or the node, but not where the journal says that the stop has begun already.
        """
        ...

    async def journal(self, **facts: Any) -> None:
        """Add to the step's journal; returns when it is on the disk.

        Raises StoreError when it cannot be written: then the action must not go on.
        """
        ...


class Action(Protocol):
    """One kind of step."""

    async def run(self, context: ActionContext, step: Step) -> StepResult:
        """Do it."""
        ...

    async def recover(self, context: ActionContext, step: Step) -> StepResult:
        """Decide from the journal what to do about a run that was cut off, and do it."""
        ...


class StepEnded(Exception):
    """The step ends here; raised where a guard says no, or nothing is left to do."""

    def __init__(self, result: StepResult) -> None:
        super().__init__(result.detail)
        self.result = result


def refuse(result: str, detail: str, following: Next = Next.FAILED) -> StepEnded:
    """The ending of a step that a guard has stopped before it changed anything."""
    return StepEnded(StepResult(next=following, result=result, detail=detail))
