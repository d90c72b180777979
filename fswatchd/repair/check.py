"""What one run of a filesystem's tool has said about a volume, and when it has said nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from fswatchd import process
from fswatchd.events import printable

# A few ten thousand files that would be lost; what has more to say is for a person to read.
MOST_OUTPUT = 4 << 20


def no_answer(ended: process.Completed, not_read: re.Pattern[str]) -> str | None:
    """Why a run says nothing about the filesystem, whatever its exit code; None where it may.

    `not_read` is how the tool says that its disk has failed. Tools take what they cannot read for
    damage, and their repair writes zeros there or drops what it belongs to; but the disk may give
    it back at the next attempt, or to who recovers it. Where not all of what was said is known,
    neither is whether that was said, nor how much a repair would lose.
    """
    if found := not_read.search(ended.output):
        return (
            f"what it works on cannot be read or written ({printable(found[0].strip())}), which "
            "is no damage of the filesystem: look after the device"
        )
    if ended.cut:
        return f"{ended.command}: it says more than can be judged here, see for yourself"
    return ended.describe() if ended.timed_out or ended.returncode < 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one run of a checking or repairing program said.

    `clean` means that it found nothing, `fixed` that everything it found is corrected, `damaged`
    that something is left. When none of them is true it could not do its work (`what` says why),
    which says nothing about the filesystem. `last_resort` says that no safe tool goes on from here,
    and one that takes a person's word might (`tools.LastResort`). `proof` is the check that was
    made after a repair and found nothing; it holds until something is written.
    """

    returncode: int
    output: str
    duration_s: float
    clean: bool = False
    fixed: bool = False
    damaged: bool = False
    questions: int = 0
    reconnected: int = 0
    cleared: int = 0
    tool: str = "e2fsck"
    what: str = field(default="")
    last_resort: bool = False
    proof: CheckResult | None = None

    @property
    def usable(self) -> bool:
        """Whether the answer is about the filesystem at all."""
        return self.clean or self.fixed or self.damaged

    def shown(self, limit: int) -> str:
        """The last `limit` characters of the output, as a terminal may get them.

        Tools quote names that a tenant has chosen, and not all of them escape what is in these.
        """
        return "\n".join(printable(line, limit) for line in self.output[-limit:].splitlines())

    def plus(self, more: CheckResult) -> CheckResult:
        """This run and the one after it: what both have done, and how it ended."""
        return replace(
            more,
            output=self.output + more.output,
            duration_s=self.duration_s + more.duration_s,
            fixed=more.fixed or more.clean,
            clean=False,
            questions=self.questions + more.questions,
            reconnected=self.reconnected + more.reconnected,
            cleared=self.cleared + more.cleared,
        )

    def summary(self) -> str:
        """One line for people."""
        if self.clean:
            return "clean"
        if not self.usable:
            return f"{self.tool} failed: {self.what}"
        parts = [f"{self.questions} problems"]
        if self.cleared:
            parts.append(f"{self.cleared} cleared")
        if self.reconnected:
            parts.append(f"{self.reconnected} to lost+found")
        return ", ".join(parts) + (" fixed" if self.fixed else " found")
