"""Names for what e2fsck has put into lost+found as `#inode`.

They stand in old copies of the damaged directory block in the journal, in earlier snapshots of the
image, and in what processes of the VE hold open. Only on a clone, only by debugfs(8) in its
sandbox, and the clone is checked once more afterwards: a name is never worth a filesystem.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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
_ENTRY = re.compile(rb"^/(\d+)/\d{6}/\d*/\d*/([^\n]*)/(\d*)/$", re.MULTILINE)
_DIRECTORY = re.compile(r"[Dd]irectory inode (\d+)|\bin \S.* \((\d+)\)")
_GENERATION = re.compile(r"^Inode: (\d+) .*\nGeneration: (\d+)", re.MULTILINE)
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
        """One line for people; empty where nothing had lost its name."""
        if not self.named and not self.unnamed:
            return ""
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


async def restore(
    clone: str, fsck_output: str, *, image: str, open_files: Mapping[int, str]
) -> NamesBack:
    """Give names back in the repaired `clone` of `image`. Whatever goes wrong, nothing is raised.

    `fsck_output` says which directories were damaged; `open_files` maps inodes to paths from the
    root of the filesystem.
    """
    search = _Search(clone)
    try:
        with tempfile.TemporaryDirectory(prefix="fswatchd-names-") as scratch:
            found = await search.run(Path(scratch), fsck_output, image, open_files)
    except (OSError, ValueError) as error:
        found = NamesBack(problem=f"names were not looked for to the end: {error}")
    return replace(found, wrote=search.wrote)


class _Search:
    def __init__(self, clone: str) -> None:
        self._clone = clone
        self._scratch = Path()
        self.wrote = False
        self._found: dict[int, tuple[bytes, bytes, str]] = {}  # inode → directory, name, source

    async def run(
        self, scratch: Path, fsck_output: str, image: str, open_files: Mapping[int, str]
    ) -> NamesBack:
        self._scratch = scratch
        lost = await self._numbered()
        if not lost:
            return NamesBack()
        await self._from_journal(lost, damaged_directories(fsck_output), image)
        for snapshot in earlier(image)[:_MAX_SNAPSHOTS]:
            if missing := lost - self._found.keys():
                await self._from_snapshot(missing, snapshot)
        for inode in lost - self._found.keys():
            self._note_path(inode, open_files.get(inode, ""), "what processes hold open")
        await self._link()
        sizes: dict[int, int] = {}
        left = await self._numbered(sizes)
        named = {
            inode: (printable(os.fsdecode(b"/" + where.strip(b"/") + b"/" + name)), source)
            for inode, (where, name, source) in await self._with_paths()
            if inode not in left
        }
        size = sum(sizes[inode] for inode in left)
        return NamesBack(named=named, unnamed=tuple(sorted(left)), size_bytes=size)

    async def _numbered(self, sizes: dict[int, int] | None = None) -> set[int]:
        """The inodes that lie in lost+found by their number; `sizes` takes their sizes."""
        entries = await self._entries(_LOST_FOUND, sizes)
        found = {inode for inode, name in entries if name == b"#%d" % inode}
        return set(sorted(found)[:_MAX_FILES])

    async def _entries(
        self, directory: bytes, sizes: dict[int, int] | None = None
    ) -> list[tuple[int, bytes]]:
        raw = await self._debugfs([b'ls -p "%s"' % directory])
        found = [entry for entry in _ENTRY.findall(raw) if int(entry[0])]
        if sizes is not None:
            sizes.update((int(inode), int(size or 0)) for inode, _, size in found)
        return [(int(inode), name) for inode, name, _ in found]

    async def _from_journal(self, lost: set[int], directories: Iterable[int], image: str) -> None:
        owner: dict[int, int] = {}
        for directory in directories:
            # Of a directory that e2fsck has built anew only the image knows the blocks it had.
            for block in [*await self._blocks(directory, image), *await self._blocks(directory)]:
                owner[block] = directory
        journal = await self._blocks(8)
        size = await self._block_size()
        if not owner or not journal or not size or len(journal) * size > _MAX_JOURNAL:
            return
        found = await asyncio.to_thread(_read_journal, self._clone, journal, size, owner)
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
                text = await self._debugfs([b"ncheck " + numbers], snapshot)
                for inode, path in _PATH_OF.findall(text.decode("utf-8", "surrogateescape")):
                    if int(inode) in lost:
                        self._note_path(int(inode), path, "a snapshot")

    async def _generations(self, inodes: list[int], at: str | None) -> dict[int, str]:
        raw = await self._debugfs([b"stat <%d>" % inode for inode in inodes], at)
        found = _GENERATION.findall(raw.decode("utf-8", "replace"))
        return {int(inode): generation for inode, generation in found}

    def _note_path(self, inode: int, path: str, source: str) -> None:
        directory, _, name = os.fsencode(path).rpartition(b"/")
        if name and inode not in self._found and not directory.startswith(_LOST_FOUND):
            self._found[inode] = (directory or b"/", name, source)

    async def _link(self) -> None:
        """Give each its name where nobody else has it, and take the number away."""
        wanted: dict[bytes, dict[bytes, int]] = {}  # directory → name → inode
        for inode, (directory, name, _) in sorted(self._found.items()):
            if not _UNQUOTABLE.search(directory + name):
                wanted.setdefault(directory, {}).setdefault(name, inode)
        named: list[int] = []
        for directory, names in wanted.items():
            there = {name: inode for inode, name in await self._entries(directory)}
            missing = {n: i for n, i in names.items() if n not in there} if there else {}
            await self._link_in(directory, missing)
            if missing and (left := await self._not_in(directory, missing)):
                # debugfs does not make room by itself.
                room = sum(len(name) + 12 for name in left)
                blocks = room // await self._block_size() + 2
                await self._run([b'expand_dir "%s"' % directory] * blocks)
                await self._link_in(directory, left)
            left = await self._not_in(directory, missing) if missing else {}
            named += [inode for name, inode in missing.items() if name not in left]
        # Only what has a name now loses its number.
        await self._run([b'unlink "%s/#%d"' % (_LOST_FOUND, inode) for inode in named])

    async def _link_in(self, directory: bytes, names: Mapping[bytes, int]) -> None:
        place = directory.rstrip(b"/")
        await self._run([b'link <%d> "%s/%s"' % (i, place, n) for n, i in names.items()])

    async def _not_in(self, directory: bytes, names: Mapping[bytes, int]) -> dict[bytes, int]:
        there = {(name, inode) for inode, name in await self._entries(directory)}
        return {name: inode for name, inode in names.items() if (name, inode) not in there}

    async def _run(self, commands: list[bytes]) -> None:
        for begin in range(0, len(commands), _AT_ONCE):
            await self._debugfs(commands[begin : begin + _AT_ONCE], write=True)

    async def _with_paths(self) -> list[tuple[int, tuple[bytes, bytes, str]]]:
        """What was found, with paths for directories that are known by inode only."""
        wanted = {where for where, _, _ in self._found.values() if where.startswith(b"<")}
        paths: dict[bytes, bytes] = {}
        if wanted:
            text = await self._debugfs([b"ncheck " + b" ".join(one[1:-1] for one in wanted)])
            for inode, path in _PATH_OF.findall(text.decode("utf-8", "surrogateescape")):
                paths[b"<%d>" % int(inode)] = os.fsencode(path)
        return [
            (inode, (paths.get(where, where), name, source))
            for inode, (where, name, source) in self._found.items()
        ]

    async def _blocks(self, inode: int, at: str | None = None) -> list[int]:
        raw = await self._debugfs([b"blocks <%d>" % inode], at)
        lines = [line for line in raw.split(b"\n") if not line.startswith(b"debugfs")]
        return [int(word) for word in b" ".join(lines).split() if word.isdigit()]

    async def _block_size(self) -> int:
        raw = await self._debugfs([b"stats -h"])
        found = re.search(rb"Block size:\s+(\d+)", raw)
        return int(found[1]) if found else 0

    async def _debugfs(
        self, lines: list[bytes], at: str | None = None, *, write: bool = False
    ) -> bytes:
        """What debugfs prints for these commands. Raises OSError where it does not run."""
        commands = self._scratch / "commands"
        commands.write_bytes(b"".join(line + b"\n" for line in lines))
        device = at or self._clone
        self.wrote = self.wrote or write
        argv = ("debugfs", *(("-w",) if write else ()), "-f", str(commands), device)
        sandbox = Sandbox(device=device, readonly=not write, directory=str(self._scratch))
        try:
            done = await process.run(
                argv, timeout_s=_TOOL_S, heavy=True, sandbox=sandbox, max_output=64 << 20
            )
        except FswatchError as error:
            raise OSError(str(error)) from None
        if not done.succeeded:
            raise OSError(done.describe())
        return done.output.encode("utf-8", "surrogateescape")


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
