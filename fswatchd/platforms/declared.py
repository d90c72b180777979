"""VEs declared by hand in `ve.d/*.toml`, for platforms without a driver and for tests.

The keys are the contract's: name, labels, cgroup | pid_file | init, volume, start, stop, kill, and
freeze, thaw, migrate and lock; of a volume image | device, mountpoint, and detach and attach.
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fswatchd import adminfile, process
from fswatchd.adminfile import AdminFileError
from fswatchd.errors import ConfigError
from fswatchd.events import VeState
from fswatchd.inventory.model import Commands, Lock, NamespaceKey, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, mounts, proc
from fswatchd.rules.match import did_you_mean

_INIT_TIMEOUT_S = 2.0
# A file's time comes from the last timer interrupt, up to 10 ms ago (CONFIG_HZ=100).
_FILE_TIME_LAG_S = 0.02
_IN_A_ROW = 16
_NAMED_IN = "`ves` in fswatchd.toml names the directories"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$")]
Argv = Annotated[list[str], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class DeclaredVolume(_Table):
    """One filesystem of the VE: `image` (a file) or `device`.

    `detach` ends what uses it and takes it out of the VE while that runs, `attach` puts it back.
    """

    image: str | None = None
    device: str | None = None
    mountpoint: str = "/"
    detach: Argv | None = None
    attach: Argv | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> DeclaredVolume:
        if (self.image is None) == (self.device is None):
            raise ValueError('a volume needs "image" or "device", one of them')
        path = self.image or self.device or ""
        if not path.startswith("/"):
            raise ValueError(f"{path!r} is not an absolute path")
        return self

    @model_validator(mode="after")
    def _comes_back(self) -> DeclaredVolume:
        if (self.detach is None) != (self.attach is None):
            raise ValueError('"detach" and "attach" go together: what is taken out comes back')
        if self.detach is not None and self.mountpoint == "/":
            raise ValueError('"detach" is for volumes below "/": without that one no VE runs')
        return self


class DeclaredVe(_Table):
    """One `[[ve]]`."""

    name: Name
    labels: dict[str, str] = {}
    cgroup: str | None = None
    pid_file: str | None = None
    init: Argv | None = None
    volume: list[DeclaredVolume] = []
    start: Argv | None = None
    stop: Argv | None = None
    kill: Argv | None = None
    serves: list[str] = []
    freeze: Argv | None = None
    thaw: Argv | None = None
    migrate: Argv | None = None
    lock: str | None = None

    @model_validator(mode="after")
    def _freeze_ends(self) -> DeclaredVe:
        if (self.freeze is None) != (self.thaw is None):
            raise ValueError('"freeze" and "thaw" go together: what is frozen must thaw')
        return self

    @model_validator(mode="after")
    def _lock_is_a_path(self) -> DeclaredVe:
        if self.lock is not None and not self.lock.startswith("/"):
            raise ValueError(f'"lock" must be an absolute path, not {self.lock!r}')
        return self

    @model_validator(mode="after")
    def _can_be_found(self) -> DeclaredVe:
        if not (self.cgroup or self.pid_file or self.init or self.volume):
            raise ValueError('it cannot be found: give "cgroup", "pid_file", "init" or a volume')
        return self


class _File(_Table):
    ve: list[DeclaredVe] = []


# By how deep a key stands: in the file, in a [[ve]], in one of its volumes.
_MODELS: dict[int, type[_Table]] = {1: _File, 3: DeclaredVe, 5: DeclaredVolume}


def load_file(path: Path) -> list[DeclaredVe]:
    """The VEs in one file; raises ConfigError naming file, VE and key of every mistake."""
    try:
        return _File.model_validate(tomllib.loads(adminfile.read(path))).ve
    except AdminFileError as error:
        raise ConfigError(f"{path} {error.message}", hint=error.hint) from None
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            place = ".".join(str(p + 1 if isinstance(p, int) else p) for p in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "extra_forbidden":
                model = _MODELS.get(len(detail["loc"]), _File)
                known = list(model.model_fields)
                close = did_you_mean(str(detail["loc"][-1]), known)
                message = f"unknown key{close or '; known here: ' + ', '.join(known)}"
            lines.append(f"{path}: {place}: {message}")
        raise ConfigError("\n".join(lines)) from error
    except (ValueError, RecursionError) as error:  # a ValueError: an integer of 5000 digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


class DeclaredPlatform:
    """All files of the `ves` directories, read again whenever VEs are listed."""

    name = "declared"

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(directories)
        self._read: dict[str, tuple[tuple[int, int, int], list[DeclaredVe]]] = {}

    def watch_directories(self) -> list[str]:
        """The directories of the declarations, and the cgroup root."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        return [*(str(path) for path in self._directories), *roots]

    def _load(self, path: str) -> list[DeclaredVe]:
        """The VEs of a file, parsed again only when it has changed."""
        signature = _signature(path)
        known = self._read.get(path)
        if known is None or known[0] != signature:
            self._read.pop(path, None)
            known = self._read[path] = (signature, load_file(Path(path)))
        return known[1]

    async def list_ves(self) -> list[Ve]:
        """See Platform. What is wrong with files is reported after the VEs of the others."""
        found: dict[str, Ve] = {}
        problems: list[str] = []
        for directory in self._directories:
            try:
                paths = _files(directory)
            except ConfigError as error:
                problems.append(str(error))
                continue
            for path in paths:
                try:
                    for declared in self._load(path):
                        found[declared.name] = await build(declared, self.name)
                        if len(found) % _IN_A_ROW == 0:
                            await asyncio.sleep(0)  # events do not wait for a thousand VEs
                except (ConfigError, OSError) as error:
                    problems.append(str(error))
        if problems:
            known = "it is read again by itself; the VEs of the other files are known"
            raise PlatformError("\n".join(problems), hint=known, partial=list(found.values()))
        return list(found.values())


def _files(directory: Path) -> list[str]:
    """Its files, in the order in which they are read; raises ConfigError.

    A directory need not exist (doctor tells of one that was named). One that cannot be listed is
    not empty: its VEs are not known.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        text = f"{directory}: cannot be listed: {error.strerror}"
        raise ConfigError(text, hint=_NAMED_IN) from None
    return sorted(f"{directory}/{name}" for name in names if name.endswith(".toml"))


def _signature(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


async def build(declared: DeclaredVe, platform: str) -> Ve:
    """The VE as it is now."""
    members, frozen = cgroup.look(declared.cgroup) if declared.cgroup else ([], False)
    init, started = await _find_init(declared, members)
    inode, namespace_id = (mounts.namespace_of(init) if init is not None else None) or (None, None)
    if inode == proc.own_mount_namespace():
        inode = namespace_id = None  # the node's: mounts there say nothing about this VE
    state = VeState.STOPPED
    if init is not None:
        state = VeState.FROZEN if frozen else VeState.RUNNING
    return Ve(
        ve_id=VeId(f"{platform}:{declared.name}"),
        platform=platform,
        native_id=declared.name,
        name=declared.name,
        state=state,
        labels=dict(declared.labels),
        init_pid=init,
        init_started=started,
        namespace=NamespaceKey(inode) if inode is not None else None,
        namespace_id=namespace_id,
        cgroup=declared.cgroup,
        volumes=tuple(
            Volume(
                image=volume.image,
                device=volume.device,
                mountpoint=volume.mountpoint,
                detach=tuple(volume.detach or ()),
                attach=tuple(volume.attach or ()),
            )
            for volume in declared.volume
        ),
        commands=Commands(
            start=tuple(declared.start or ()),
            stop=tuple(declared.stop or ()),
            kill=tuple(declared.kill or ()),
            freeze=tuple(declared.freeze or ()),
            thaw=tuple(declared.thaw or ()),
            migrate=tuple(declared.migrate or ()),
        ),
        lock=Lock(file=declared.lock) if declared.lock else None,
        node_mounts=True,
        serves=tuple(declared.serves),
    )


async def _find_init(declared: DeclaredVe, members: list[int]) -> tuple[int | None, int | None]:
    """The first process and its start time; (None, None) where it does not run.

    `members` are the processes in its cgroup.
    """
    ages = {
        pid: (started, pid)  # numbers alone begin anew after the largest one
        for pid in members
        if (started := proc.living_since(pid)) is not None
    }
    if ages:
        inits = [pid for pid in ages if len(ages) > 1 and proc.is_container_init(pid)]
        started, first = min(ages[pid] for pid in inits or ages)
        return first, started
    if declared.pid_file:
        pid = read_pid_file(declared.pid_file)
        if pid is not None:
            return pid, proc.start_time(pid)
    if declared.init:
        try:
            answer = await process.run(declared.init, timeout_s=_INIT_TIMEOUT_S)
        except process.ProcessError:
            return None, None
        word = (answer.output.split() or [""])[0]
        if answer.succeeded and word.isdecimal() and os.path.exists(f"/proc/{word}"):
            return int(word), proc.start_time(int(word))
    return None, None


def read_pid_file(path: str) -> int | None:
    """The process that the file names, if it is older than the file.

    A younger one has only got the number of the process that was meant. Where the clock was set
    back or forth in between this cannot be told: then the file is not believed either.
    """
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(64).split()[0])
            written = os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError, IndexError):
        return None
    started = proc.started_at(pid) if pid > 1 else None
    if started is None or started > written + _FILE_TIME_LAG_S:
        return None
    return pid
