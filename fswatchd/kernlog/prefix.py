"""Find the kernel's messages in a text log.

Knows dmesg in all its time styles (also `-x`, `-r`, `-H`), syslog, journalctl's text outputs,
RFC 5424, the records of /dev/kmsg, and lines without any prefix. A line that another program than
the kernel wrote is no kernel message, whatever it quotes; nor is a record with a facility other
than 0.

A log is searched as a whole, for lines that start like a message some family knows; the others
are only counted. Bytes are taken as Latin-1: nothing that is asked for in a message is outside
ASCII, and so no byte can be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from fswatchd.kernlog.grammar import MESSAGE_MAX, Grammar, LineClass

# What is kept of a line that is too long for a message: enough to know that it is.
_LINE_MAX = 2 * MESSAGE_MAX
_WHITE = " \t\r\n\v\f\0"

_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?:\ ?Z|\ ?[+-]\d\d(?::?\d\d)?|\ (?:UTC|MSK|[A-Z]{2,4}T)(?=\ ))?"
_DAY = r"[A-Z][a-z][a-z]\ (?:[A-Z][a-z][a-z]\ )?[\ \d]\d?\ "
_STAMP = rf"""
    (?: {_DAY}(?:\d{{4}}\ )?{_CLOCK}(?:\ \d{{4}}\b)?
      | (?:[A-Z][a-z][a-z]\ )?\d{{4}}[-/]\d\d[-/]\d\d[T\ ]{_CLOCK}{_ZONE}
      | (?:\d\d-\d\d\ )?{_CLOCK}
      | \d{{4}}\ {_DAY}{_CLOCK}
      | \d{{10}}\.\d{{6}}(?=\ )
    )"""
_BRACKETS = r"(?:\[[^\]\n]{1,40}\]:?\ {0,16}){0,3}"
_LEVEL = r"(?:emerg|alert|crit|err|error|warn|warning|notice|info|debug)"
_BEFORE = rf"""
    (?: <[0-7]>(?:1\ (?:-\ (?=[^\s]{{1,255}}\ kernel\ ))?)?
      | 1\ (?=\d{{4}}-)
      | [0-7],\d{{1,20}},\d{{1,20}},[^;\n]{{1,60}};
      | kern\ *:{_LEVEL}\ {{0,8}}:\ {{1,2}}
    )?
    {_BRACKETS}
    (?:(?P<stamp>{_STAMP})\ {{0,16}}{_BRACKETS})?
"""
# Structured data of RFC 5424: elements follow one another, and a value may hold an escaped bracket.
_DATA = r"(?:-|(?:\[(?:[^\]\\\n]|\\[^\n]){0,255}\]){1,8})"
_BOM = r"(?:\ufeff|\xef\xbb\xbf)?"
_TAG = rf"(?:(?:kern\.)?{_LEVEL}\ {{1,8}})?kernel(?:\[\d{{1,9}}\])?:\ {{0,4}}"
# What may stand between time and message: the kernel's tag, before it a host; or a host alone, but
# only behind a time, else any word would do.
_SENDER = rf"""
    (?: {_TAG}
      | \d{{1,7}}\ {{1,8}}\d{{1,7}}\ [VDIWEF]\ {{1,2}}
      | [^:\s]{{1,255}}+
        (?: \ {{1,16}}
            (?: {_TAG}
              | kernel\ [^\s]{{1,128}}\ [^\s]{{1,32}}\ {_DATA}\ {_BOM}
              | (?(stamp)|(?!))
            )
          | :\ kern:\ {{1,8}}{_LEVEL}:\ {{1,8}}
        )
      | [0-9a-fA-F:.]{{3,45}}+\ {{1,16}}{_TAG}
    )"""


class Finder:
    """Where the messages of a grammar start in text."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._message = re.compile(
            rf"\n(?x:(?>{_BEFORE})(?>{_SENDER}{_BRACKETS})??)(?={grammar.start})",
            re.ASCII | re.MULTILINE,
        )

    def classify_line(self, line: str) -> LineClass | None:
        """The class of one line; None when it is no kernel message that a pattern knows."""
        start = self._message.match(f"\n{line}")
        if start is None:
            return None
        return self._grammar.classify(line[start.end() - 1 :].rstrip(_WHITE))

    def scan(
        self, chunks: Iterable[bytes], *, problems_only: bool = False
    ) -> Iterator[tuple[int, LineClass | None]]:
        """All messages in a log that is read piece by piece, with their line numbers from 1.

        After each piece, and at the end, comes the number of the last whole line, with None.
        """
        count = 0
        for text in _whole_lines(chunks):
            position = 0
            for start in self._message.finditer(text):
                count += text.count("\n", position, start.start() + 1)
                position = start.start() + 1
                end = text.find("\n", start.end())
                message = text[start.end() : end if end >= 0 else len(text)].rstrip(_WHITE)
                found = self._grammar.classify(message, problems_only=problems_only)
                if found:
                    yield count, found
            count += text.count("\n", position)
            yield count, None
        yield count, None


@lru_cache(maxsize=4)
def finder(grammar: Grammar) -> Finder:
    """The finder of a grammar; building one takes milliseconds."""
    return Finder(grammar)


def classify_line(grammar: Grammar, line: str) -> LineClass | None:
    """Classify a line of a text log; None when it is no kernel message that a pattern knows."""
    return finder(grammar).classify_line(line)


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The same text in pieces of whole lines, each line with its line feed in front of it."""
    rest = b""
    for chunk in chunks:
        end = chunk.rfind(b"\n")
        if end < 0:
            # What is cut off stays longer than any message: it was none and becomes none.
            rest = (rest + chunk[:_LINE_MAX])[:_LINE_MAX]
            continue
        yield f"\n{(rest + chunk[:end]).decode('latin-1')}"
        rest = chunk[end + 1 :][:_LINE_MAX]
    if rest:
        yield f"\n{rest.decode('latin-1')}"
