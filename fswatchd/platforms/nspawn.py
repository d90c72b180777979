"""Containers of systemd-nspawn(1), registered with systemd-machined or not.

A running one has a directory below /run/systemd/nspawn/propagate (src/nspawn/nspawn.c,
setup_propagate); only where there is one, anything else is looked at. Its first process is told by
machined's state file (/run/systemd/machines/NAME; src/machine/machine.c, machine_save), else it is
the child of a systemd-nspawn of that name. That program is believed to be the node's own where it
belongs to root, in the node's namespaces, and runs from the node's file.

Those that do not run are the images and directories of /var/lib/machines (machinectl(1)), which
`systemd-nspawn@NAME.service` starts. One that somebody has started by hand has no command that
starts it as it was: it can be watched, not repaired, unless ve.d declares its `start`.

Not here: machines that are not systemd-nspawn's (libvirt registers its guests too).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fswatchd.inventory.model import Commands, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup, proc
from fswatchd.platforms import seen
from fswatchd.platforms.beside import Beside
from fswatchd.platforms.kinds import Kind, Kinds
from fswatchd.platforms.seen import Seen

_RUN = "/run/systemd"
_MACHINES = "/var/lib/machines"
_PROGRAMS = frozenset({"/usr/bin/systemd-nspawn", "/bin/systemd-nspawn"})
_COMMAND_NAME = "systemd-nspawn"
_LOOK_AGAIN_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|([0-7]{3})|(.))")
# Long options whose argument may stand in the next word (systemd-nspawn(1)).
# fmt: off
_SEPARATE = frozenset({
    "--settings", "--directory", "--template", "--image", "--oci-bundle", "--root-hash",
    "--root-hash-sig", "--verity-data", "--pivot-root", "--chdir", "--setenv", "--user",
    "--kill-signal", "--notify-ready", "--suppress-sync", "--machine", "--hostname", "--uuid",
    "--slice", "--property", "--register", "--private-users-ownership", "--network-interface",
    "--network-macvlan", "--network-ipvlan", "--network-veth-extra", "--network-bridge",
    "--network-zone", "--network-namespace-path", "--port", "--capability",
    "--drop-capability", "--ambient-capability", "--no-new-privileges",
    "--system-call-filter", "--selinux-context", "--selinux-apifs-context", "--rlimit",
    "--oom-score-adjust", "--cpu-affinity", "--personality", "--resolv-conf", "--timezone",
    "--link-journal", "--bind", "--bind-ro", "--inaccessible", "--tmpfs", "--overlay",
    "--overlay-ro", "--bind-user", "--console", "--set-credential", "--load-credential",
})
# fmt: on
_SHORT_SEPARATE = "DuLMSZiEp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a command line of systemd-nspawn says about its container."""

    machine: str | None = None
    directory: str | None = None
    image: str | None = None
    ephemeral: bool = False

    @property
    def name(self) -> str | None:
        """The machine's name, as nspawn chooses it (determine_names)."""
        if self.machine is not None:
            return self.machine
        path = self.image or self.directory
        return os.path.basename(path.rstrip("/")).removesuffix(".raw") or None if path else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A registered machine; `unit` is its scope or service."""

    name: str
    service: str
    leader: int | None
    unit: str | None
    root: str | None


@dataclass(frozen=True, slots=True)
class _Supervisor:
    pid: int
    started: int | None
    options: Options
    directory: str

    @property
    def path(self) -> str | None:
        """What it was told to run, None for what it finds by the machine's name."""
        told = self.options.image or self.options.directory
        return os.path.join(self.directory, told) if told else None


class NspawnPlatform:
    """Containers of systemd-nspawn on this node."""

    name = "nspawn"

    def __init__(self, run: str = _RUN, machines: str = _MACHINES) -> None:
        self._propagate = f"{run}/nspawn/propagate"
        self._states = f"{run}/machines"
        self._machines = machines
        self._kinds = Kinds()
        self._stored: Beside[dict[str, str]] = Beside({})
        self._supervisors: dict[str, _Supervisor] = {}
        # Names that nobody was found for, and when.
        self._without: dict[str, object] = {}
        self._looked = 0.0

    def watch_directories(self) -> list[str]:
        """Where machines are marked as running, registered, and stored; and where their cgroups
        come and go."""
        roots = [str(root) for root in cgroup.hierarchies()[:1]]
        slices = [f"{root}/machine.slice" for root in roots]
        return [self._propagate, self._states, self._machines, *roots, *slices]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        marked = [name for name in _entries(self._propagate) if _NAME.fullmatch(name)]
        stored, problems = await self._stored.ask(lambda: _images(self._machines), self._machines)
        if not marked and not stored and not problems:
            return []
        late = problems[0] if problems else None
        problems += self._find_supervisors(set(marked))
        running = {name: self._first_process(name) for name in marked}
        names = {*stored, *(name for name, found in running.items() if found)}
        paths = {name: self._path(name, running.get(name), stored.get(name)) for name in names}
        looked = await self._kinds.look(path for path in paths.values() if path is not None)
        problems += looked.problems
        ves = [
            self._describe(name, running.get(name), _volume(path, looked.get(path or "")))
            for name, path in sorted(paths.items())
        ]
        if late is not None:  # it could not be started again
            ves = [replace(ve, busy=f"systemd-nspawn: {late}") for ve in ves]
        if problems:
            raise PlatformError("\n".join(problems), partial=ves)
        return ves

    def _first_process(self, name: str) -> Seen | None:
        machine = read_state(f"{self._states}/{name}")
        if machine is not None and machine.service == _COMMAND_NAME:
            found = _registered(machine)
            if found is not None:
                return found
        supervisor = self._supervisors.get(name)
        return _child_of(supervisor) if supervisor else None

    def _path(self, name: str, found: Seen | None, stored: str | None) -> str | None:
        """Where it has its root filesystem, as far as anybody says."""
        supervisor = self._supervisors.get(name)
        told = supervisor.path if supervisor and found else None
        return told or stored

    def _describe(self, name: str, found: Seen | None, volume: Volume | None) -> Ve:
        supervisor = self._supervisors.get(name)
        unit: str | None = (
            f"systemd-nspawn@{unit_escaped(name)}.service"  # what starts a stored one
        )
        if found is not None:
            unit = _unit_of(found.pid, name)
        if supervisor and supervisor.options.ephemeral:
            volume = None  # it runs on a copy that goes with it
        return Ve(
            ve_id=VeId(f"{self.name}:{name}"),
            platform=self.name,
            native_id=name,
            name=name,
            volumes=(volume,) if volume else (),
            commands=_commands(unit),
            **seen.running(found),
        )

    def _find_supervisors(self, wanted: set[str]) -> list[str]:
        """Remember the systemd-nspawn of each name; returns what is wrong with them.

        All processes are looked at only for one that is not known yet, and for a mark that one has
        left behind at its death only from time to time.
        """
        self._supervisors = {
            name: known
            for name, known in self._supervisors.items()
            if name in wanted and proc.is_alive(known.pid, known.started)
        }
        unknown = {name: seen.stamp(f"{self._propagate}/{name}") for name in wanted}
        unknown = {n: found for n, found in unknown.items() if n not in self._supervisors}
        now = time.monotonic()
        if unknown == self._without and now - self._looked < _LOOK_AGAIN_S:
            return []
        problems = []
        for name, several in _supervisors(unknown.keys()).items():
            if len(several) == 1:
                self._supervisors[name] = several[0]
            else:
                pids = ", ".join(str(one.pid) for one in several)
                problems.append(f"{name}: processes {pids} are systemd-nspawn of this name")
        self._without = {n: s for n, s in unknown.items() if n not in self._supervisors}
        self._looked = now
        return problems


def _images(machines: str) -> dict[str, str]:
    """Name → path of every image and directory that is stored; hidden ones nobody starts."""
    found = {}
    for entry in _entries(machines):
        name = entry.removesuffix(".raw")
        if _NAME.fullmatch(name):
            found[name] = os.path.join(machines, entry)
    return found


def parse(argv: list[str]) -> Options:
    """Read a command line; what follows the options is the container's own program."""
    machine = directory = image = None
    ephemeral = False
    words = iter(argv[1:])
    for word in words:
        if word == "--" or not word.startswith("-") or word == "-":
            break
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            if not equals and option in _SEPARATE:
                value = next(words, "")
        else:
            option, value = _short(word, words)
            ephemeral = ephemeral or "x" in word.partition(option)[0]
        if option in {"--machine", "M"}:
            machine = value
        elif option in {"--directory", "D"}:
            directory = value
        elif option in {"--image", "i"}:
            image = value
        ephemeral = ephemeral or option == "--ephemeral" or (word[1] != "-" and "x" in option)
    return Options(machine=machine, directory=directory, image=image, ephemeral=ephemeral)


def read_state(path: str) -> Machine | None:
    """A state file of machined, None where there is none or it is not root's."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if os.fstat(file.fileno()).st_uid != 0:
                return None
            pairs = [line.rstrip("\n").partition("=") for line in file]
    except OSError:
        return None
    values = {key: _unescaped(value.strip('"')) for key, _, value in pairs}
    leader = values.get("LEADER", "")
    return Machine(
        name=values.get("NAME", ""),
        service=values.get("SERVICE", ""),
        leader=int(leader) if leader.isdecimal() else None,
        unit=values.get("SCOPE") or values.get("UNIT") or None,
        root=values.get("ROOT"),
    )


def unit_escaped(name: str) -> str:
    """The name as part of a unit's name (systemd.unit(5), systemd-escape(1))."""
    kept = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_."
    return "".join(c if c in kept else f"\\x{ord(c):02x}" for c in name)


def _registered(machine: Machine | None) -> Seen | None:
    if machine is None or machine.leader is None or machine.unit is None:
        return None
    if not seen.is_first_process(machine.leader):
        return None
    group = _group(machine.leader, machine.unit)
    return Seen(machine.leader, group) if group else None


def _child_of(supervisor: _Supervisor) -> Seen | None:
    for pid in proc.children(supervisor.pid):
        if seen.is_first_process(pid):
            name = supervisor.options.name or ""
            unit = _unit_of(pid, name)
            # Started by hand it shares a cgroup with whatever else its shell has started.
            return Seen(pid, _group(pid, unit) if unit else None)
    return None


def _unit_of(pid: int, name: str) -> str | None:
    """The unit that has its name from this machine, if the process is in it."""
    escaped = {name, unit_escaped(name)}
    units = [f"systemd-nspawn@{e}.service" for e in escaped]
    units += [f"machine-{e}.scope" for e in escaped]
    return next((unit for unit in units if _group(pid, unit)), None)


def _group(pid: int, unit: str) -> str | None:
    # Without the supervisor beside the payload: that has to clean up after a kill.
    whole = f"{seen.SLICES}/{re.escape(unit)}"
    return seen.group_of(pid, f"{whole}/payload") or seen.group_of(pid, whole)


def _is_the_nodes_own(pid: int) -> bool:
    """Whether root runs the node's systemd-nspawn as this process.

    A container's root could give a program of his the same name and path: his would be in other
    namespaces.
    """
    same = all(
        _link(f"/proc/{pid}/ns/{kind}") == _link(f"/proc/self/ns/{kind}")
        for kind in ("mnt", "pid", "user")
    )
    return same and _link(f"/proc/{pid}/exe") in _PROGRAMS and os.stat(f"/proc/{pid}").st_uid == 0


def _supervisors(wanted: Collection[str]) -> dict[str, list[_Supervisor]]:
    found: dict[str, list[_Supervisor]] = {}
    if not wanted:
        return found
    for pid in proc.pids():
        if proc.command_name(pid) == _COMMAND_NAME and _is_the_nodes_own(pid):
            options = parse(_arguments(pid))
            if options.name is not None and options.name in wanted:
                place = _link(f"/proc/{pid}/cwd") or "/"
                one = _Supervisor(pid, proc.start_time(pid), options, place)
                found.setdefault(options.name, []).append(one)
    return found


def _volume(path: str | None, kind: Kind | None) -> Volume | None:
    """The image or block device at the path; a directory is no filesystem of its own."""
    if kind is Kind.FILE:
        return Volume(image=path)
    return Volume(device=path) if kind is Kind.DEVICE else None


def _commands(unit: str | None) -> Commands:
    if unit is None:
        return Commands()
    if unit.endswith(".scope"):
        return Commands(stop=("systemctl", "stop", unit), kill=("systemctl", "stop", unit))
    service = unit
    return Commands(
        start=("systemctl", "start", service),
        stop=("systemctl", "stop", service),
        kill=("systemctl", "stop", service),
    )


def _short(word: str, words: Iterator[str]) -> tuple[str, str]:
    """The option of a word as `-qbD` that takes an argument, and that; else all its letters."""
    for place, letter in enumerate(word[1:], 1):
        if letter in _SHORT_SEPARATE:
            return letter, word[place + 1 :] or next(words, "")
    return word[1:], ""


def _arguments(pid: int) -> list[str]:
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def _unescaped(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        if match[2]:
            return chr(int(match[2], 8))
        return {"n": "\n", "t": "\t", "r": "\r", "s": " "}.get(match[3], match[3])

    return _ESCAPE.sub(plain, text)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
