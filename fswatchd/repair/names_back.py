"""Names for what e2fsck has put into lost+found as `#inode`.

They stand in old copies of the damaged directory block in the journal, in earlier snapshots of the
image, and in what processes of the VE hold open. Only on a clone, only by debugfs(8) in its
sandbox. To look for them changes nothing; where some are given back the clone is checked once more
afterwards: a name is never worth a filesystem.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fswatchd import process
from fswatchd.errors import FswatchError
from fswatchd.events import printable
from fswatchd.kernel import jbd2
from fswatchd.sandbox import Sandbox

_TOOL_S = 300.0
_MAX_FILES = 100_000
_MAX_DIRECTORIES = 256
_MAX_JOURNAL = 1 << 30
_MAX_SNAPSHOTS = 4
_AT_ONCE = 500
_TOLD = 20
_LOST_FOUND = b"/lost+found"
_JOURNAL = 8  # EXT2_JOURNAL_INO
_ENTRY = re.compile(rb"^/(\d+)/\d{6}/\d*/\d*/([^\n]*)/(\d*)/$", re.MULTILINE)
_DIRECTORY = re.compile(r"[Dd]irectory inode (\d+)|\bin \S.* \((\d+)\)")
_GENERATION = re.compile(r"^Inode: (\d+) .*\nGeneration: (\d+)", re.MULTILINE)
_SIZE = re.compile(rb"^Block size:\s+(\d+)", re.MULTILINE)
_ASKED = re.compile(rb"^debugfs: [^\n]*\n", re.MULTILINE)  # it repeats each command
_PATH_OF = re.compile(r"^(\d+)\t(/.*)$", re.MULTILINE)
# What debugfs would not read as a part of one quoted word.
_UNQUOTABLE = re.compile(rb'["\x00-\x1f\x7f]')


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesBack:
    """What became of the files without a name: inode → path and where it was found.

    `size_bytes` is how much those hold that still have none. `wrote` says that the clone may be
    another one than before.
    """

    named: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    unnamed: tuple[int, ...] = ()
    size_bytes: int = 0
    problem: str = ""
    wrote: bool = False

    def summary(self) -> str:
        """One line for people; empty where nothing has lost its name."""
        if not self.named and not self.unnamed:
            return self.problem
        sources = sorted({source for _, source in self.named.values()})
        text = f"{len(self.named)} names given back"
        if sources:
            text += f" (from {', '.join(sources)})"
        if self.unnamed:
            shown = ", ".join(f"#{inode}" for inode in self.unnamed[:_TOLD])
            more = len(self.unnamed) - _TOLD
            text += f", {len(self.unnamed)} stay in lost+found without: {shown}"
            text += f" and {more} more" if more > 0 else ""
        return text + (f" ({self.problem})" if self.problem else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies in lost+found by its number, inode → bytes, and the names that are known of that.

    `lost` is None where lost+found could not be read. `names` is inode → directory, name, and where
    they stand; a directory is a path, or `<inode>`.
    """

    lost: Mapping[int, int] | None = None
    names: Mapping[int, tuple[bytes, bytes, str]] = field(default_factory=dict)
    problem: str = ""


async def find(clone: str, fsck_output: str, *, image: str, open_files: Mapping[int, str]) -> Found:
    """Look for the names of what e2fsck has numbered in the `clone` of `image`; changes nothing.

    `fsck_output` says which directories were damaged; `open_files` maps inodes to paths from the
    root of the filesystem. Whatever goes wrong, nothing is raised.
    """
    try:
        return await _Search(_Clone(clone)).run(fsck_output, image, open_files)
    except (OSError, ValueError) as error:
        return Found(problem=f"names were not looked for to the end: {error}")


async def give(clone: str, found: Found) -> NamesBack:
    """Give names back in the repaired `clone`, whose lost+found could be read. Whatever goes wrong,
    nothing is raised."""
    names: dict[int, tuple[str, str]] = {}
    left, problem, wrote = found.lost or {}, found.problem, False
    at = _Clone(clone)
    try:
        if found.names:
            wrote = True
            await _link(at, found.names)
            left = await at.numbered()
            names = {
                inode: (printable(os.fsdecode(b"/" + where.strip(b"/") + b"/" + name)), source)
                for inode, (where, name, source) in await _with_paths(at, found.names)
                if inode not in left
            }
        wrote = at.wrote
    except (OSError, ValueError) as error:
        problem = f"names were not given back to the end: {error}"
    return NamesBack(
        named=names,
        unnamed=tuple(sorted(left)),
        size_bytes=sum(left.values()),
        problem=problem,
        wrote=wrote,
    )


class _Clone:
    """A clone as debugfs shows it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.wrote = False

    async def numbered(self) -> dict[int, int]:
        """What lies in lost+found by its number: inode → bytes."""
        entries = await self.entries(_LOST_FOUND)
        found = {inode: size for inode, name, size in entries if name == b"#%d" % inode}
        return dict(sorted(found.items())[:_MAX_FILES])

    async def entries(self, directory: bytes) -> list[tuple[int, bytes, int]]:
        """Inodes, names and sizes."""
        raw = await self.debugfs([b'ls -p "%s"' % directory])
        found = [entry for entry in _ENTRY.findall(raw) if int(entry[0])]
        return [(int(inode), name, int(size or 0)) for inode, name, size in found]

    async def blocks(self, inodes: list[int], at: str | None = None) -> list[list[int]]:
        """The blocks of each of these inodes."""
        found = []
        for begin in range(0, len(inodes), _AT_ONCE):
            batch = inodes[begin : begin + _AT_ONCE]
            raw = await self.debugfs([b"blocks <%d>" % inode for inode in batch], at)
            answers = _ASKED.split(raw)[1:]
            if len(answers) != len(batch):
                raise ValueError("debugfs did not answer each question")
            found += [[int(word) for word in one.split() if word.isdigit()] for one in answers]
        return found

    async def block_size(self) -> int:
        """In bytes; zero where it is not told."""
        found = _SIZE.search(await self.debugfs([b"stats -h"]))
        return int(found[1]) if found else 0

    async def write(self, commands: list[bytes]) -> None:
        """Run commands that change the clone."""
        for begin in range(0, len(commands), _AT_ONCE):
            self.wrote = True
            await self.debugfs(commands[begin : begin + _AT_ONCE], write=True)

    async def debugfs(
        self, lines: list[bytes], at: str | None = None, *, write: bool = False
    ) -> bytes:
        """What debugfs prints for these commands. Raises OSError where it does not run."""
        device = at or self.path
        # Nothing is left of it when the daemon is killed, and a sandbox needs no place for it.
        commands = os.memfd_create("fswatchd-names")
        try:
            with open(commands, "wb", closefd=False) as file:
                file.writelines(line + b"\n" for line in lines)
            os.lseek(commands, 0, os.SEEK_SET)
            done = await process.run(
                ("debugfs", *(("-w",) if write else ()), "-f", "-", device),
                timeout_s=_TOOL_S,
                heavy=True,
                sandbox=Sandbox(device=device, readonly=not write),
                stdin=commands,
                max_output=64 << 20,
            )
        except FswatchError as error:
            raise OSError(str(error)) from None
        finally:
            os.close(commands)
        if not done.succeeded:
            raise OSError(done.describe())
        return done.output.encode("utf-8", "surrogateescape")


class _Search:
    def __init__(self, at: _Clone) -> None:
        self._at = at
        self._found: dict[int, tuple[bytes, bytes, str]] = {}

    async def run(self, fsck_output: str, image: str, open_files: Mapping[int, str]) -> Found:
        lost = await self._at.numbered()
        problem = ""
        try:
            await self._look(set(lost), fsck_output, image, open_files)
        except (OSError, ValueError) as error:
            problem = f"names were not looked for to the end: {error}"
        return Found(lost=lost, names=self._found, problem=problem)

    async def _look(
        self, lost: set[int], fsck_output: str, image: str, open_files: Mapping[int, str]
    ) -> None:
        if not lost:
            return
        await self._from_journal(lost, damaged_directories(fsck_output), image)
        for snapshot in earlier(image)[:_MAX_SNAPSHOTS]:
            if missing := lost - self._found.keys():
                await self._from_snapshot(missing, snapshot)
        for inode in lost - self._found.keys():
            self._note_path(inode, open_files.get(inode, ""), "what processes hold open")

    async def _from_journal(self, lost: set[int], directories: list[int], image: str) -> None:
        owner: dict[int, int] = {}
        *now, journal = await self._at.blocks([*directories, _JOURNAL])
        # Of a directory that e2fsck has built anew only the image knows the blocks it had.
        before = await self._at.blocks(directories, image)
        for directory, *blocks in zip(directories, before, now, strict=True):
            owner.update((block, directory) for some in blocks for block in some)
        size = await self._at.block_size()
        if not owner or not journal or not size or len(journal) * size > _MAX_JOURNAL:
            return
        found = await asyncio.to_thread(_read_journal, self._at.path, journal, size, owner)
        for inode in lost & found.keys():
            directory, name = found[inode]
            self._found[inode] = (b"<%d>" % directory, name, "the journal")

    async def _from_snapshot(self, lost: set[int], snapshot: str) -> None:
        inodes = sorted(lost)
        for begin in range(0, len(inodes), _AT_ONCE):
            batch = inodes[begin : begin + _AT_ONCE]
            then = await self._generations(batch, snapshot)
            now = await self._generations(batch, None)
            # An inode that was used again since then is another file.
            same = [inode for inode in batch if then.get(inode, "") == now.get(inode)]
            if same:
                numbers = b" ".join(b"%d" % inode for inode in same)
                text = await self._at.debugfs([b"ncheck " + numbers], snapshot)
                for inode, path in _PATH_OF.findall(text.decode("utf-8", "surrogateescape")):
                    if int(inode) in lost:
                        self._note_path(int(inode), path, "a snapshot")

    async def _generations(self, inodes: list[int], at: str | None) -> dict[int, str]:
        raw = await self._at.debugfs([b"stat <%d>" % inode for inode in inodes], at)
        found = _GENERATION.findall(raw.decode("utf-8", "replace"))
        return {int(inode): generation for inode, generation in found}

    def _note_path(self, inode: int, path: str, source: str) -> None:
        directory, _, name = os.fsencode(path).rpartition(b"/")
        if name and inode not in self._found and not directory.startswith(_LOST_FOUND):
            self._found[inode] = (directory or b"/", name, source)


async def _link(at: _Clone, found: Mapping[int, tuple[bytes, bytes, str]]) -> None:
    """Give each its name where nobody else has it, and take the number away."""
    wanted: dict[bytes, dict[bytes, int]] = {}  # directory → name → inode
    for inode, (directory, name, _) in sorted(found.items()):
        if not _UNQUOTABLE.search(directory + name):
            wanted.setdefault(directory, {}).setdefault(name, inode)
    named: list[int] = []
    for directory, names in wanted.items():
        there = {name for _, name, _ in await at.entries(directory)}
        missing = {n: i for n, i in names.items() if n not in there} if there else {}
        await _link_in(at, directory, missing)
        if missing and (left := await _not_in(at, directory, missing)):
            # debugfs does not make room by itself.
            room = sum(len(name) + 12 for name in left)
            blocks = room // await at.block_size() + 2
            await at.write([b'expand_dir "%s"' % directory] * blocks)
            await _link_in(at, directory, left)
        left = await _not_in(at, directory, missing) if missing else {}
        named += [inode for name, inode in missing.items() if name not in left]
    # Only what has a name now loses its number.
    await at.write([b'unlink "%s/#%d"' % (_LOST_FOUND, inode) for inode in named])


async def _link_in(at: _Clone, directory: bytes, names: Mapping[bytes, int]) -> None:
    place = directory.rstrip(b"/")
    await at.write([b'link <%d> "%s/%s"' % (i, place, n) for n, i in names.items()])


async def _not_in(at: _Clone, directory: bytes, names: Mapping[bytes, int]) -> dict[bytes, int]:
    there = {(name, inode) for inode, name, _ in await at.entries(directory)}
    return {name: inode for name, inode in names.items() if (name, inode) not in there}


async def _with_paths(
    at: _Clone, found: Mapping[int, tuple[bytes, bytes, str]]
) -> list[tuple[int, tuple[bytes, bytes, str]]]:
    """What was found, with paths for directories that are known by inode only."""
    wanted = {where for where, _, _ in found.values() if where.startswith(b"<")}
    paths: dict[bytes, bytes] = {}
    if wanted:
        text = await at.debugfs([b"ncheck " + b" ".join(one[1:-1] for one in wanted)])
        for inode, path in _PATH_OF.findall(text.decode("utf-8", "surrogateescape")):
            paths[b"<%d>" % int(inode)] = os.fsencode(path)
    return [
        (inode, (paths.get(where, where), name, source))
        for inode, (where, name, source) in found.items()
    ]


def damaged_directories(fsck_output: str) -> list[int]:
    """The directories that e2fsck says something of, each once."""
    found = {int(a or b): None for a, b in _DIRECTORY.findall(fsck_output)}
    return list(found)[:_MAX_DIRECTORIES]


def earlier(image: str) -> list[str]:
    """Snapshots of the image, the newest first."""
    return sorted(glob.glob(f"{glob.escape(image)}.snapshot-*"), key=os.path.getmtime, reverse=True)


def _read_journal(
    path: str, blocks: list[int], size: int, owner: Mapping[int, int]
) -> dict[int, tuple[int, bytes]]:
    """Inode → (directory, name), of the newest copy of a block that has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read(position: int) -> bytes:
            return os.pread(fd, size, blocks[position] * size)

        found: dict[int, tuple[int, bytes]] = {}
        for copy in jbd2.copies(read, len(blocks)):
            if copy.target in owner:
                for inode, name in jbd2.directory_entries(read(copy.position)):
                    found[inode] = (owner[copy.target], name)
        return found
    finally:
        os.close(fd)
