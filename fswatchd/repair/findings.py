"""What a repair changes, by kind and by name, read from what its tool prints. Pure.

e2fsck says what is wrong, asks, and answers itself: everything up to an answer is one change.
xfs_repair says each on a line. What is not known by its words counts as `other`, never as nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fswatchd.events import printable

_NAMES_KEPT = 1000
_TOLD = 8

_ANSWER = re.compile(r"^(.*?)\? (yes|no)\b", re.MULTILINE)
_NOISE = re.compile(r"^(?:Pass \d|e2fsck |.*: \*{5} |\s*$)")
# The first that fits names the kind; the most special ones come first.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("journal", r"journal|\blog\b"),
        ("orphan list", r"orphan"),
        ("quota", r"quota"),
        ("directory index", r"htree"),
        ("extended attributes", r"extended attribute|ea_inode|\battr"),
        ("bitmap", r"bitmap|padding at end"),
        ("counters", r"(?:blocks|inodes|directories) count wrong|\bcounted \d"),
        ("link count", r"ref count|reference count|nlinks|link count"),
        ("unattached inode", r"unattached|unconnected|disconnected"),
        ("directory entry", r"^entry |\bentry\b.* in |junk|duplicate entry"),
        ("directory block", r"directory|missing '\.|\.\.' in"),
        ("superblock or groups", r"superblock|group descriptor|\bag[fi]\b|agfl|\bsb_|group \d"),
        ("space tree", r"btree|bno|cnt|rmap|refcount"),
        ("inode", r"\binode|i_blocks|i_size|extent|multiply-claimed|illegal block"),
    )
)
# What any mounted filesystem has on its disk until it is unmounted.
_NO_DAMAGE = ("counters", "orphan list")
_ENTRY = re.compile(r"Entry '(.*)' in (.*?) \((\d+)\) has .*?(?:inode |\()(\d+)?")
_UNATTACHED = re.compile(r"(?:Unattached inode|Unconnected directory inode) (\d+)")
_INODE = re.compile(r"\bInode (\d+)")
_DROPS = re.compile(r"(?:^|\s)(?:Clear|Clear inode|Delete file|Unlink)$")
_XFS_MOVED = re.compile(r"disconnected (?:dir )?inode (\d+), (?:would move|moving) to ")
_XFS_CLEARED = re.compile(r"(?:would have |)cleared inode (\d+)")
# Headings, what is said of every filesystem, and what verifiers say of a block in whatever thread
# happens to read it; everything else is about something wrong.
XFS_ROUTINE = re.compile(
    r"^\s*(?:- |Phase \d|No modify flag|done$|\.\.\.|$|Note - |cache_node_purge"
    r"|sb_\w+ \d+, counted \d+$|Metadata (?:corruption|CRC error) detected at )"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`changes` is how many things are put right, `kinds` how many of each. Counters in the
    superblock and the list of orphans are not counted: they are no damage.

    `dropped` are the files that are gone afterwards, by name where one is known; `moved` the inodes
    that go to lost+found, whatever becomes of them there.
    """

    changes: int = 0
    kinds: tuple[tuple[str, int], ...] = ()
    dropped: tuple[str, ...] = ()
    moved: tuple[int, ...] = ()

    def summary(self) -> str:
        """One line for people."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds)
        text = f"{self.changes} changes ({kinds})" if self.changes else "no changes"
        if self.dropped:
            shown = ", ".join(self.dropped[:_TOLD])
            more = len(self.dropped) - _TOLD
            text += f"; {len(self.dropped)} files dropped: {shown}"
            text += f" and {more} more" if more > 0 else ""
        if self.moved:
            text += f"; {len(self.moved)} to lost+found"
        return text

    def document(self) -> dict[str, Any]:
        """For JSON; the lists are bounded, the numbers are not."""
        return {
            "changes": self.changes,
            "kinds": dict(self.kinds),
            "dropped": len(self.dropped),
            "dropped_files": list(self.dropped[:_NAMES_KEPT]),
            "moved": len(self.moved),
        }


def of(tool: str, output: str) -> Findings:
    """What a run of `tool` (`e2fsck -fy`, `xfs_repair`) has changed, or would with -n."""
    return _xfs(output) if tool == "xfs_repair" else _ext(output)


def _ext(output: str) -> Findings:
    kinds: Counter[str] = Counter()
    dropped: dict[int, str] = {}
    moved: dict[int, None] = {}
    end = 0
    for answer in _ANSWER.finditer(output):
        said = "\n".join(
            line
            for line in (output[end : answer.start()] + answer[1]).split("\n")
            if not _NOISE.match(line)
        )
        end = answer.end()
        kinds[_kind(said)] += 1
        if answer[1].strip().endswith("Connect to /lost+found"):
            if found := _UNATTACHED.findall(said):
                moved[int(found[-1])] = None
        elif _DROPS.search(answer[1]):
            _note_dropped(said, dropped)
    for inode in moved:
        dropped.pop(inode, None)
    return _findings(kinds, dropped, moved)


def _note_dropped(said: str, dropped: dict[int, str]) -> None:
    """An entry by its name; an inode by its number until an entry tells its name."""
    if entry := _ENTRY.search(said):
        name, directory, parent, inode = entry.groups()
        place = directory if directory.startswith("/") else f"<{parent}>"
        number = int(inode) if inode else -len(dropped) - 1
        dropped[number] = printable(f"{place.rstrip('/')}/{name}")
    elif inode := _INODE.search(said):
        dropped.setdefault(int(inode[1]), f"#{inode[1]}")


def _xfs(output: str) -> Findings:
    kinds: Counter[str] = Counter()
    dropped: dict[int, str] = {}
    moved: dict[int, None] = {}
    for line in dict.fromkeys(output.splitlines()):
        if XFS_ROUTINE.match(line):
            continue
        kinds[_kind(line)] += 1
        if found := _XFS_MOVED.search(line):
            moved[int(found[1])] = None
        elif found := _XFS_CLEARED.search(line):
            dropped.setdefault(int(found[1]), f"#{found[1]}")
    for inode in moved:
        dropped.pop(inode, None)
    return _findings(kinds, dropped, moved)


def _kind(said: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(said)), "other")


def _findings(kinds: Counter[str], dropped: dict[int, str], moved: dict[int, None]) -> Findings:
    for kind in _NO_DAMAGE:
        del kinds[kind]
    return Findings(
        changes=sum(kinds.values()),
        kinds=tuple(kinds.most_common()),
        dropped=tuple(dropped.values()),
        moved=tuple(moved),
    )
