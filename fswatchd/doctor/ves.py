"""The VEs of the node: which could be repaired, and what is missing for it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fswatchd import process
from fswatchd.config import DaemonTable
from fswatchd.doctor.finding import Finding, ok, warning
from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Ve

_AGAIN = "see to what it names: it is asked again by itself"


def examine(inventory: Inventory, declared: Sequence[Path]) -> list[Finding]:
    """What is known, and what is missing before a VE could be repaired; `declared` are the
    directories of VEs that are declared by hand."""
    findings = []
    platforms: dict[str, int] = {}
    known = inventory.view.ves.values()
    for ve in known:
        platforms[ve.platform] = platforms.get(ve.platform, 0) + 1
        if _could_be_repaired(ve) and not ve.commands.start:
            text = "it has a volume and no start command: it could not be started after a repair"
            remedy = "give start, stop and kill in its ve.d file"
            findings.append(warning("FSW-DOCTOR-NO-START", ve.ve_id, text, remedy))
    for what, count in Counter(filter(None, (ve.unrepairable for ve in known))).items():
        text = f"{count} reported, never repaired: each is {what}"
        findings.append(ok("FSW-DOCTOR-VES", "ves", text))
    for kind, count in Counter(_formats(known)).items():
        text = f"{count} in the format {kind}: errors are reported, and never repaired here"
        findings.append(ok("FSW-DOCTOR-FORMAT", "volumes", text))
    for program in _missing_programs(inventory):
        text = f"{program} is not found: VEs that need it cannot be started or stopped"
        findings.append(warning("FSW-DOCTOR-TOOL", f"tool {program}", text))
    for name, problem in inventory.problems.items():
        for text, remedy in _mistakes(problem):
            findings.append(warning("FSW-DOCTOR-PLATFORM", f"platform {name}", text, remedy))
    for directory in declared:
        if not directory.exists() and directory not in DaemonTable().ves:
            text = f"{directory}: there is no such directory, so no VE is declared in it"
            remedy = "make it, or correct `ves` in fswatchd.toml"
            findings.append(warning("FSW-DOCTOR-PLATFORM", "platform declared", text, remedy))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(platforms.items()))
    if counts:
        findings.append(ok("FSW-DOCTOR-VES", "ves", counts))
    else:
        findings.append(
            warning(
                "FSW-DOCTOR-NO-VE",
                "ves",
                "no VE is known: faults would be reported, never repaired",
                "declare VEs of platforms without a driver in /etc/fswatchd/ve.d",
            )
        )
    return findings


def _could_be_repaired(ve: Ve) -> bool:
    return not ve.unrepairable and any(volume.format == "raw" for volume in ve.volumes)


def _mistakes(problem: str) -> list[tuple[str, str]]:
    """What a platform has told, one after the other: a line each, with its hint indented below."""
    found: list[tuple[str, list[str]]] = []
    for line in problem.splitlines():
        if line.startswith("  ") and found:
            found[-1][1].append(line.strip())
        else:
            found.append((line, []))
    return [(text, "; ".join(hints) or _AGAIN) for text, hints in found]


def _formats(ves: Iterable[Ve]) -> Iterator[str]:
    """Of volumes that only their platform can open, of VEs that else could be repaired."""
    for ve in ves:
        if not ve.unrepairable:
            yield from (f"{v.format} of {ve.platform}" for v in ve.volumes if v.format != "raw")


def _missing_programs(inventory: Inventory) -> list[str]:
    """Programs that the VEs' commands are of, and that are not there."""
    wanted: set[str] = set()
    for ve in inventory.view.ves.values():
        commands = ve.commands
        for argv in (
            commands.start,
            commands.stop,
            commands.kill,
            commands.freeze,
            commands.thaw,
        ):
            wanted.update(argv[:1])
        for volume in ve.volumes:
            wanted.update((*volume.detach[:1], *volume.attach[:1]))
    path = process.ENVIRONMENT["PATH"]
    return sorted(program for program in wanted if shutil.which(program, path=path) is None)
