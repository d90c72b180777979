"""What `kmsg` and `journal` share: from a kernel record to an event.

A record counts only when the kernel itself wrote it (facility 0), and when it matches a pattern
from its first to its last character. Records with a line break are refused but for the patterns
that know of the kernel's own two-line messages: nothing else has one.
"""

from __future__ import annotations

import re

from fswatchd.events import EventClass, printable, usual_severity
from fswatchd.kernel.logclock import log_clock
from fswatchd.kernlog.grammar import Grammar
from fswatchd.sources import Sink, Source

CANARY = "fswatchd canary "

# After a line like this the kernel's log is known to be incomplete.
_SUPPRESSED = EventClass.LOST
# What /dev/kmsg escapes and the journal gives back as it was: to be left out of a comparison.
_UNLIKE = re.compile(r"(?:\\(?:x[0-9a-f]{2})?|[^\x20-\x7e])+")


class KernelLineSource(Source):
    """A source of kernel messages."""

    def __init__(self, sink: Sink, grammar: Grammar) -> None:
        super().__init__(sink)
        self._grammar = grammar
        self._canary: str | None = None

    def expect_canary(self, token: str) -> None:
        """See Source."""
        self._canary = token

    def _take(
        self, text: str, time_us: int | None, *, facility: int, past: str | None = None
    ) -> bool:
        """Handle one message; whether an event came of it.

        `past` says when it was written, for people, where that was before this boot.
        """
        if facility != 0:
            if self._canary is not None and text == CANARY + self._canary:
                if time_us is not None:
                    log_clock.read(self._canary, time_us)
                self._sink.canary(self.name, self._canary)
            return False
        found = self._grammar.classify(text)
        if found is None:
            return False
        if found.line_break:
            return False
        if found.klass is _SUPPRESSED and past is None:
            self._report_loss(printable(text, 120))
            return False
        if not found.problem and found.klass not in {EventClass.RECOVERED, _SUPPRESSED}:
            return False
        # What is lost counts for more than why it could not be written.
        klass = found.klass if found.lost is None else EventClass.DATA_LOSS
        self._emit(
            klass,
            _told(text, past),
            confirms=False,
            severity=max(found.severity, usual_severity(klass)) if found.lost else found.severity,
            device=found.device,
            fstype=found.fstype,
            errno=found.errno,
            server=found.server,
            lost=found.lost,
            record=None if time_us is None else f"{time_us}:{_UNLIKE.sub('?', text)}",
            past=past is not None,
        )
        return True


def _told(text: str, past: str | None) -> str:
    return printable(text) if past is None else f"{past}: {printable(text)}"
