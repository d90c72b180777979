"""Classify one kernel message: is it a problem, of what class, on which device.

Patterns are read from `patterns/*.toml`, one file a family. Each is anchored at both ends of the
message, and what a tenant can choose (a command name, a path, a label) is only ever passed over,
never asked: the device comes from its fixed slot, the class from the kernel's own words before or
after.

A family is read when the first message of it is seen: `fswatch classify` on a quiet log reads
none. What a file says wrong is therefore found by the tests, not at run time.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

from fswatchd.events import EventClass, LostWrite, Severity, usual_severity

# A record of the kernel's log has at most 2048 bytes (kernel/printk/internal.h,
# PRINTKRB_RECORD_MAX), four times that when each is escaped. What is longer is not the kernel's.
MESSAGE_MAX = 8192

# What stands for an expression that many patterns need.
_SLOTS = {
    # Names of devices as the kernel prints them: sda1, nvme0n1p2, dm-4, cciss!c0d0p1, sd(8,1), 8:1.
    "<dev>": r"(?P<dev>[A-Za-z0-9!._:-]{1,64}?(?:\(\d+,\d+\))?)",
    # A journal's name: its device, and the number of its inode unless it is an external journal.
    "<journal>": r"(?P<dev>dm-\d+|[A-Za-z0-9!._:-]{1,64}?(?:\(\d+,\d+\))?)(?:-\d+)?",
    # A command name: any 15 bytes but NUL (include/linux/sched.h, TASK_COMM_LEN).
    "<comm>": r"(?:[^\\]|\\x[0-9a-f]{2}|\\){1,15}?",
    "<uuid>": r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    # The line break inside a record, and as /dev/kmsg and the journal's text outputs show it.
    "<newline>": r"(?:\n|\\x0a)",
    # A backslash: printk escapes it, because it escapes with it (kernel/printk/printk.c).
    "<backslash>": r"(?:\\(?:x5c)?)",
}
# What the kernel says of a process begins with the name that the process has given itself, and that
# can be the begin of any other message: arch/x86/mm/fault.c (segfault), mm/oom_kill.c,
# mm/page_alloc.c (warn_alloc), fs/drop_caches.c, kernel/exit.c (stack depth).
_OF_A_PROCESS = re.compile(
    rf"{_SLOTS['<comm>']}(?:\[\d+\]: (?:segfault at |bad frame )| invoked oom-killer: |"
    r": (?:page allocation failure|vmalloc error): | \(\d+\): drop_caches: |"
    r" \(\d+\) used greatest stack depth: )",
    re.DOTALL | re.ASCII,
)
_SLOT = re.compile(rf"(?<!\?P)(?:{'|'.join(_SLOTS)})")
_GROUP_NAME = re.compile(r"\(\?P<\w+>")
_LETTER_FIRST = re.compile(r"[A-Za-z_][A-Za-z0-9_/: (\[-]")
_LINE_BREAK = re.compile(r"[\n\r]|\\x0[ad]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineClass:
    """What a message says; `device` and `fstype` are None where the line does not name one.

    `server` is the remote server that it is about, in the words of whoever mounted from it, `lost`
    what could not be written, where the message names the file.
    `line_break` is true where the message has one that its pattern does not ask for: the kernel
    did not put it there.
    """

    pattern: str
    problem: bool
    klass: EventClass
    severity: Severity
    fstype: str | None
    device: str | None
    errno: int | None
    line_break: bool = False
    server: str | None = None
    lost: LostWrite | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A real or constructed line beside its pattern, with the result it must give."""

    line: str
    device: str | None
    errno: int | None
    server: str | None = None
    inode: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One form of message; `text` is its expression without the family's head."""

    name: str
    text: str
    klass: EventClass
    severity: Severity
    fstype: str | None
    errno: int | None
    multiline: bool
    samples: tuple[Sample, ...]

    @property
    def problem(self) -> bool:
        """Whether such a message may open an incident."""
        return self.klass.is_problem


class Family:
    """Patterns whose messages start alike, tried in their order.

    `starts` find a message's start in a log; `head` is the part all its messages share and is
    passed once, before the patterns.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        # The table before the first pattern is a document of its own.
        header = tomllib.loads(text.partition("\n[[pattern]]")[0])
        self.starts: list[str] = header["start"]
        self._head: str = header.get("head", "")
        self._fstype: str | None = header.get("fstype")

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """All of the file; raises ValueError or KeyError where it is wrong."""
        return tuple(
            _pattern(table, self._fstype) for table in tomllib.loads(self._text)["pattern"]
        )

    @cached_property
    def _head_expression(self) -> re.Pattern[str]:
        return _compile(self._head)

    @cached_property
    def _which(self) -> re.Pattern[str]:
        # One expression for all, each in a group of its own: the group tells which one it was.
        texts = (_GROUP_NAME.sub("(?:", _expanded(pattern.text)) for pattern in self.patterns)
        return re.compile("|".join(f"({text})" for text in texts), re.DOTALL | re.ASCII)

    @cached_property
    def _expressions(self) -> dict[int, re.Pattern[str]]:
        return {}

    @cached_property
    def _problems(self) -> tuple[bool, ...]:
        return tuple(pattern.problem for pattern in self.patterns)

    def classify(self, message: str, *, problems_only: bool = False) -> LineClass | None:
        """The class of a message of this family; None when no pattern knows it.

        With `problems_only` also None for what is none, which is found out sooner.
        """
        head = self._head_expression.match(message)
        if head is None:
            return None
        which = self._which.fullmatch(message, head.end())
        if which is None or which.lastindex is None:
            return None
        number = which.lastindex - 1
        if problems_only and not self._problems[number]:
            return None
        pattern = self.patterns[number]
        expression = self._expressions.get(number)
        if expression is None:
            expression = self._expressions[number] = _compile(pattern.text)
        match = expression.fullmatch(message, head.end())
        groups = head.groupdict() | (match.groupdict() if match else {})
        return _result(pattern, groups, message)


class Grammar:
    """All families, behind one expression that most lines of a log fail at once."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    @property
    def start(self) -> str:
        """An expression for the start of any message; has no groups of its own."""
        by_letter: dict[str, list[str]] = {}
        for start in (start for family in self.families for start in family.starts):
            # One look at a letter instead of many: this is tried on every line of a log.
            letter = start[0] if _LETTER_FIRST.match(start) else ""
            by_letter.setdefault(letter, []).append(start[len(letter) :])
        return "|".join(
            f"{letter}(?:{'|'.join(rests)})" for letter, rests in sorted(by_letter.items())[::-1]
        )

    @cached_property
    def _first(self) -> re.Pattern[str]:
        families = (f"({'|'.join(family.starts)})" for family in self.families)
        return re.compile("|".join(families), re.ASCII)

    def classify(self, message: str, *, problems_only: bool = False) -> LineClass | None:
        """The class of one message without any log prefix; None when no pattern knows it.

        With `problems_only` also None for what is none, which is found out sooner.
        """
        if len(message) > MESSAGE_MAX:
            return None
        first = self._first.match(message)
        if first is None or first.lastindex is None or _OF_A_PROCESS.match(message):
            return None
        family = self.families[first.lastindex - 1]
        return family.classify(message, problems_only=problems_only)


def _expanded(text: str) -> str:
    return _SLOT.sub(lambda slot: _SLOTS[slot[0]], text)


def _compile(text: str) -> re.Pattern[str]:
    return re.compile(_expanded(text), re.DOTALL | re.ASCII)


def _result(pattern: Pattern, groups: dict[str, str | None], message: str) -> LineClass:
    fstype, errno = pattern.fstype, pattern.errno
    if version := groups.get("ext"):
        fstype = f"ext{version}"
    if number := groups.get("errno"):
        errno = abs(int(number[-9:])) or None
    return LineClass(
        pattern=pattern.name,
        problem=pattern.problem,
        klass=pattern.klass,
        severity=pattern.severity,
        fstype=fstype,
        device=groups.get("dev"),
        errno=errno,
        server=groups.get("host") or groups.get("server"),
        line_break=not pattern.multiline and _LINE_BREAK.search(message) is not None,
        lost=_lost(groups),
    )


def _lost(groups: dict[str, str | None]) -> LostWrite | None:
    """From the groups `inode`, `offset`, `size` and `blocks`; only lines about lost data have
    them."""
    inode = groups.get("inode")
    if inode is None:
        return None
    offset, size, blocks = (
        int(text) if (text := groups.get(name)) else None for name in ("offset", "size", "blocks")
    )
    # XFS prints some in hexadecimal.
    return LostWrite(inode=int(inode, 0), offset=offset, size=size, blocks=blocks)


def _pattern(table: dict[str, object], fstype: str | None) -> Pattern:
    document: dict[str, object] = {"fstype": fstype, **table}
    klass = EventClass(str(table["class"]))
    severity = document.get("severity")
    samples = table.get("samples", [])
    if not isinstance(samples, list):
        raise ValueError(f"{table['name']}: samples is no list")
    return Pattern(
        name=str(table["name"]),
        text=str(table["regex"]),
        klass=klass,
        severity=Severity.parse(str(severity)) if severity else usual_severity(klass),
        fstype=None if document["fstype"] in {None, ""} else str(document["fstype"]),
        errno=_number(document.get("errno")),
        multiline=document.get("multiline", False) is True,
        samples=tuple(
            Sample(
                line=sample["line"],
                device=sample.get("dev"),
                errno=_number(sample.get("errno")),
                server=sample.get("server"),
                inode=_number(sample.get("inode")),
            )
            for sample in samples
        ),
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


@cache
def shipped() -> Grammar:
    """The grammar of this version."""
    folder = resources.files("fswatchd.kernlog") / "patterns"
    files = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".toml")),
        key=lambda entry: entry.name,
    )
    return Grammar([Family(entry.read_text(encoding="utf-8")) for entry in files])
