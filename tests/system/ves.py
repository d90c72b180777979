"""The smallest real containers, declared to the daemon as an admin would."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from fswatchd.devno import Devno
from fswatchd.drill import inside, measure, ve
from fswatchd.drill.control import ControlServer, Record
from fswatchd.kernel import block, loop


def mount_new_ext4(image: Path, point: Path) -> None:
    """Make a small ext4 in a new image, and mount it at a new directory of the node."""
    with image.open("xb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True, capture_output=True)
    point.mkdir()
    subprocess.run(["mount", "-o", "loop", image, point], check=True)


class MiniVe:
    """A container on an image: writes, reads, and does as it is told; a `quiet` one only obeys.

    `before` maps an action (start, stop, kill) to a shell line that runs before it. With `base` its
    image is a copy of that one, whose files are not its `paths`.
    """

    def __init__(
        self,
        work: Path,
        host: Path,
        name: str,
        *,
        size: int = 256 << 20,
        files: int = 300,
        fstype: str = "ext4",
        options: str | None = None,
        quiet: bool = False,
        mkfs: tuple[str, ...] = (),
        before: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        base: Path | None = None,
        noatime: bool = False,
    ) -> None:
        self.name = name
        self.work = work
        self.image = host / f"{name}.img"
        self.cgroup = f"/{work.name}-{name}"
        self._spec = work / f"{name}.json"
        self._before = before or {}
        self._labels = labels or {}
        self.fstype = fstype
        self._quiet = quiet
        self._mkfs = mkfs
        if options is None:
            options = "errors=continue" if fstype == "ext4" else ""
        self.paths: list[str] = []
        if base is None:
            self.paths = self._build(size, files)
        else:
            argv = ["cp", "--sparse=always", "--reflink=auto", base, self.image]
            subprocess.run(argv, check=True)
        control = work / f"{name}.sock"
        self._root = work / f"root-{name}"
        self._root.mkdir()
        ve.VeSpec(
            name=name,
            image=str(self.image),
            root=str(self._root),
            cgroup=self.cgroup,
            control=str(control),
            mount_options=options,
            read_paths=self.paths[100:],
            fstype=fstype,
            noatime=noatime,
            roles=("hand",) if quiet else inside.ROLES,
        ).save(self._spec)
        self.control = ControlServer(control)
        self._closed = False

    def _build(self, size: int, files: int) -> list[str]:
        tree = self.work / f"tree-{self.name}"
        paths = [f"/victim/file-{n:04d}" for n in range(100)]
        paths += [f"/data/{n // 200:03d}/file-{n:06d}" for n in range(files)]
        for path in paths:
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(inside.content(path))
        with self.image.open("xb") as file:
            file.truncate(size)
        if self.fstype == "ext4":
            argv = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", *self._mkfs, "-d", str(tree)]
            subprocess.run([*argv, str(self.image)], check=True, capture_output=True)
        else:
            subprocess.run([f"mkfs.{self.fstype}", "-q", *self._mkfs, self.image], check=True)
            self._copy(tree)
        subprocess.run(["rm", "-r", str(tree)], check=True)
        return paths

    def _copy(self, tree: Path) -> None:
        point = self.work / f"copy-{self.name}"
        point.mkdir()
        subprocess.run(["mount", "-o", "loop", self.image, point], check=True)
        subprocess.run(["cp", "-a", f"{tree}/.", point], check=True)
        subprocess.run(["umount", point], check=True)

    def declaration(self) -> str:
        """The VE for ve.d."""
        lines = [f'[[ve]]\nname = "{self.name}"', f'cgroup = "{self.cgroup}"']
        if self._labels:
            pairs = ", ".join(f'{key} = "{value}"' for key, value in self._labels.items())
            lines.append(f"labels = {{ {pairs} }}")
        lines.append(f'volume = [{{ image = "{self.image}", mountpoint = "/" }}]')
        lines += [
            f"{action} = {json.dumps(self.command(action))}" for action in ("start", "stop", "kill")
        ]
        return "\n".join(lines) + "\n"

    def declare(self) -> None:
        """Write it where the daemon looks."""
        directory = self.work / "ve.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{self.name}.toml").write_text(self.declaration())

    def command(self, action: str) -> list[str]:
        """The argument list of an action, with what a test puts before it."""
        argv = ve.command(action, self._spec)
        if action not in self._before:
            return argv
        return ["/bin/sh", "-c", f"{self._before[action]}\nexec {shlex.join(argv)}"]

    def start(self) -> None:
        """Start it and wait until it reads and writes."""
        subprocess.run(ve.command("start", self._spec), check=True, timeout=60)
        if self._quiet:
            assert self.control.wait_for_hand(self.name, 60), "it does not obey"
        else:
            assert self.control.wait_for(self.name, 15), "it does not read and write"

    def kill(self) -> None:
        """Kill it."""
        subprocess.run(ve.command("kill", self._spec), check=True, timeout=30)

    def close(self) -> None:
        """Kill it and stop listening, once."""
        if self._closed:
            return
        self._closed = True
        with suppress(subprocess.CalledProcessError, OSError):
            self.kill()
        self.control.close()

    @property
    def record(self) -> Record:
        """What it has reported."""
        return self.control.records[self.name]

    @property
    def inode(self) -> tuple[Devno, int]:
        """(device, inode) of the file that has the image's name now."""
        status = self.image.stat()
        return Devno.of(status.st_dev), status.st_ino

    @property
    def device(self) -> str:
        """Its loop device."""
        (found,) = loop.holders(*self.inode)
        return found

    def ask(self, op: str, **arguments: str) -> list[dict[str, Any]]:
        """Let it do something."""
        return self.control.ask(self.name, op, **arguments)

    def overwrite(self, offset: int, data: bytes) -> None:
        """Damage its device, and make the kernel forget what it has read of it."""
        fd = os.open(self.device, os.O_RDWR)
        try:
            os.pwrite(fd, data, offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        block.drop_buffers(self.device)

    def damage_directory(self, path: str = "/victim") -> None:
        """Random bytes over the block of a directory, and somebody who looks at it."""
        inode = self.ask("stat", path=path)[0]["inode"]
        names = self.ask("list", path=path)[0]["names"]
        argv = ["debugfs", "-R", f"blocks <{inode}>", self.device]
        blocks: list[str] = []
        while not blocks:  # a superblock that is being written does not match its checksum
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            blocks = done.stdout.split()
        self.overwrite(int(blocks[0]) * self.block_size(), os.urandom(self.block_size()))
        answer = self.ask("list", path=path)
        assert answer[-1].get("errno") or answer[0]["names"] != names, answer

    def block_size(self) -> int:
        """Of its filesystem."""
        argv = ["dumpe2fs", "-h", self.device]
        text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        (line,) = [line for line in text.splitlines() if line.startswith("Block size:")]
        return int(line.split()[-1])

    def wait_for_write(self, timeout_s: float = 15) -> bool:
        """Until it has synced something after now."""
        import time

        return self.control.wait_for_ack_after(self.name, time.monotonic_ns(), timeout_s)

    def manifest(self) -> dict[str, str]:
        """Digest → path of every file that can be read in it now."""
        answers = self.ask("manifest")
        return {a["digest"]: a["path"] for a in answers if "digest" in a}

    def lost(self) -> tuple[list[str], list[str]]:
        """Files of the image, and acknowledged files, whose content is nowhere any more.

        What the kernel acknowledged while it aborted the journal may be salvaged beside the image.
        """
        block.drop_buffers(self.device)
        acked = list(self.record.acked)
        contents = self.manifest().keys() | measure.salvaged(self.image)

        def missing(paths: list[str]) -> list[str]:
            return [
                p for p in paths if hashlib.sha256(inside.content(p)).hexdigest() not in contents
            ]

        return missing(self.paths), missing(acked)

    def digest(self) -> str:
        """Of the whole image file."""
        with self.image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
