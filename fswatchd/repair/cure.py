"""Repair a clone whose journal was replayed, give names back, and prove it.

The same for a preview and for the clone that is swapped in: what the one shows, the other does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fswatchd.inventory.inventory import Inventory
from fswatchd.inventory.model import Superblock
from fswatchd.kernel import openfiles
from fswatchd.repair import findings, names_back, progress
from fswatchd.repair.check import CheckResult
from fswatchd.repair.findings import Findings
from fswatchd.repair.names_back import Found, NamesBack
from fswatchd.repair.progress import OnProgress
from fswatchd.repair.tools import LastResort, Tools
from fswatchd.rules.model import FsckStep
from fswatchd.steps import ActionContext, Next, refuse
from fswatchd.units import show_duration, show_size

_UNNAMED_KEPT = 1000
_RESORT_LEAST_S = 30.0
_RESORT_TIMES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """What a repair has done to a clone; `proof` is the check after it.

    `by` is the last resort that it took, None where the usual tools were enough.
    """

    repaired: CheckResult
    proof: CheckResult
    findings: Findings = field(default_factory=Findings)
    names: NamesBack = field(default_factory=NamesBack)
    seconds: float = 0.0
    by: LastResort | None = None

    @property
    def lost_files(self) -> int:
        """Files that are gone, or that only have a number in lost+found."""
        return len(self.findings.dropped) + len(self.names.unnamed)

    def summary(self) -> str:
        """One line for people."""
        if self.repaired.clean:
            return "clean"
        if not self.repaired.usable:
            return self.repaired.summary()
        parts = [self.repaired.summary(), self.findings.summary(), self.names.summary()]
        text = "; ".join(part for part in parts if part)
        return f"{self.by.command}: {text}" if self.by else text

    def document(self) -> dict[str, Any]:
        """For JSON: what is asked about before it is done."""
        return {
            **self.findings.document(),
            "named": len(self.names.named),
            "named_files": [path for path, _ in list(self.names.named.values())[:_UNNAMED_KEPT]],
            "unnamed": len(self.names.unnamed),
            "unnamed_files": [f"#{inode}" for inode in self.names.unnamed[:_UNNAMED_KEPT]],
            "lost_files": self.lost_files,
            "bytes": self.names.size_bytes,
            "last_resort": self.by.command if self.by else None,
            "summary": self.summary(),
        }


async def cure_at_last(
    tools: Tools,
    path: str,
    replayed: CheckResult,
    *,
    image: str,
    timeout_s: float,
    open_files: Mapping[int, str],
    begin: Callable[[str], OnProgress],
    before: Cure | None = None,
    on_repaired: Callable[[], None] | None = None,
) -> Cure:
    """As `cure`, and by the last resort where nothing else would help; `replayed` went before.

    Whether that may be swapped in is for the caller to have asked (`consent.within_bounds`).
    """
    run = partial(
        cure, path=path, image=image, open_files=open_files, begin=begin, on_repaired=on_repaired
    )
    resort, done = tools.last_resort, Cure(repaired=replayed, proof=replayed)
    if replayed.usable:
        started = time.monotonic()
        done = await run(tools, timeout_s=timeout_s, before=before)
        timeout_s = min(timeout_s, _resort_s(time.monotonic() - started))
    if resort is None or not done.repaired.last_resort:
        return done
    tried = await run(replace(tools, repair=resort.repair), timeout_s=timeout_s)
    return replace(tried, by=resort, seconds=done.seconds + tried.seconds)


def _resort_s(usual_s: float) -> float:
    """How long the last resort may take where the usual tools have taken `usual_s`: `btrfs check
    --repair` works on some damage for ever."""
    return max(_RESORT_LEAST_S, _RESORT_TIMES * usual_s)


async def cure_clone(
    context: ActionContext,
    tools: Tools,
    path: str,
    *,
    image: str,
    open_files: Mapping[int, str],
    shown: Cure | None,
    on_repaired: Callable[[], None] | None = None,
) -> Cure:
    """Replay, repair and prove the clone that is to be swapped in; `shown` is what a preview did.

    Raises StepEnded where that says nothing about the clone.
    """
    timeout_s = context.settings.tool_timeout_s
    context.progress(None, "replaying the journal of the clone")
    replayed = await tools.replay(path, timeout_s)
    unreadable = f"the journal cannot be replayed: {replayed.what}"
    if not replayed.usable and not (replayed.last_resort and tools.last_resort):
        raise refuse("cannot check", unreadable, Next.OPERATOR)
    expected = f" (about {show_duration(shown.seconds)} in all)" if shown else ""
    done = await cure_at_last(
        tools,
        path,
        replayed,
        image=image,
        timeout_s=timeout_s,
        open_files=open_files,
        begin=lambda text: progress.begin(context, f"{text}{expected}"),
        before=shown,
        on_repaired=on_repaired,
    )
    if not replayed.usable and not done.proof.clean:
        raise refuse("cannot check", f"{unreadable}; {done.summary()}", Next.OPERATOR)
    if not done.repaired.usable:
        raise refuse("cannot check", done.repaired.summary())
    return done


async def cure(
    tools: Tools,
    path: str,
    *,
    image: str,
    timeout_s: float,
    open_files: Mapping[int, str],
    begin: Callable[[str], OnProgress],
    before: Cure | None = None,
    on_repaired: Callable[[], None] | None = None,
) -> Cure:
    """Repair and prove the clone at `path` of `image`; the caller judges what came of it.

    `begin` is told of each phase, as `progress.begin`; `before` is what a preview has shown.
    `on_repaired` is called before each proof: what else only reads the clone may do so beside it,
    and has to do it again when it is called again.
    """
    started = time.monotonic()
    find = partial(names_back.find, path, image=image, open_files=open_files)

    def proving(_: CheckResult) -> OnProgress:
        if on_repaired is not None:
            on_repaired()
        return begin("proving the clone")

    def proving_first(so_far: CheckResult) -> OnProgress:
        if tools.salvages and findings.of(tools.name, so_far.output).moved:
            search.begin(find(so_far.output))
        return proving(so_far)

    async with _NameSearch() as search:
        # Where the preview has looked everywhere already, there is no need to do so again.
        known = before if before and before.findings.moved and not before.names.named else None
        on_check = proving if known else proving_first
        on_progress = begin("repairing the clone")
        repaired = await tools.repair(path, timeout_s, on_progress=on_progress, on_check=on_check)
        done = Cure(repaired=repaired, proof=repaired)
        if not repaired.usable:
            return done
        done = replace(done, findings=findings.of(tools.name, repaired.output))
        proof = repaired.proof or await tools.check(path, timeout_s, on_check(repaired))
        found = await search.found()
    # Who has not seen lost+found counts all that went there: a rule may permit none.
    names = NamesBack(unnamed=done.findings.moved, problem=found.problem if found else "")
    if known:
        names = replace(known.names, unnamed=done.findings.moved)
    elif proof.clean and found is not None and found.lost is not None:
        begin("giving names back to what went to lost+found")
        names = await names_back.give(path, found)
        if names.wrote:
            # A directory that has moved has another parent now, and links to count.
            again = await tools.repair(path, timeout_s, on_check=proving)
            proof = again.proof or await tools.check(path, timeout_s, proving(again))
    return replace(done, names=names, proof=proof, seconds=time.monotonic() - started)


class _NameSearch:
    """A search for names beside the proof, begun anew where that has led to another repair.

    Writers may be waiting for both. Use with `async with`.
    """

    def __init__(self) -> None:
        self._searches: list[asyncio.Task[Found]] = []

    async def __aenter__(self) -> _NameSearch:
        return self

    async def __aexit__(self, *_: object) -> None:
        for search in self._searches:
            search.cancel()
        await asyncio.gather(*self._searches, return_exceptions=True)

    def begin(self, search: Coroutine[Any, Any, Found]) -> None:
        """Search, and forget the search before."""
        for earlier in self._searches:
            earlier.cancel()
        self._searches.append(asyncio.create_task(search))

    async def found(self) -> Found | None:
        """What the last one has found, None where there was nothing to look for."""
        return await self._searches[-1] if self._searches else None


async def open_files(inventory: Inventory, found: Superblock | None) -> dict[int, str]:
    """Inode → path from the filesystem's root, of what processes hold open now."""
    now = inventory.view.superblocks.get(found.devno) if found is not None else None
    if found is None or now is None or now.identity != found.identity:
        return {}
    namespaces = {int(place.namespace) for place in found.mounts}

    def look() -> dict[int, str]:
        files = openfiles.held(found.devno, namespaces)
        return {f.inode: f.inside for f in files if f.inode and f.inside and not f.deleted}

    return await asyncio.to_thread(look)


def beyond(step: FsckStep, done: Cure, approved: Mapping[str, Any] | None) -> str | None:
    """Why the step does not permit this by itself; None where it does.

    `approved` is what somebody has seen and approved: what loses no more files than that, and
    changes about as much, is permitted too.
    """
    lost, changes = done.lost_files, done.findings.changes
    if approved and lost <= approved["lost_files"] and changes <= 2 * approved["changes"]:
        return None
    reasons = []
    if step.max_lost_files is not None and lost > step.max_lost_files:
        size = f" ({show_size(done.names.size_bytes)})" if done.names.unnamed else ""
        reasons.append(f"{lost} files would be lost{size}, max_lost_files is {step.max_lost_files}")
    if step.max_changes is not None and changes > step.max_changes:
        reasons.append(f"{changes} changes, max_changes is {step.max_changes}")
    return "; ".join(reasons) or None
