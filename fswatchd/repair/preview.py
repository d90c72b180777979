"""See the damage before touching anything: check and repair a clone of the running filesystem."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from fswatchd.kernel import block
from fswatchd.repair import clone, progress, scope, storage
from fswatchd.repair.check import CheckResult
from fswatchd.repair.cure import Cure, cure_at_last, open_files
from fswatchd.repair.scope import Target
from fswatchd.repair.volume import Volume
from fswatchd.steps import ActionContext, refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What the clone showed.

    `check` is the check of the replayed clone, or why it could not be replayed; `seconds` is how
    long clone, replay, repair and proof took: about the pause that writers would see. `cure` is
    None where the filesystem was clean. `clone` is what all that was seen on, where it was kept.
    """

    check: CheckResult
    cure: Cure | None
    seconds: float
    clone: Volume | None = None

    @property
    def clean(self) -> bool:
        """Nothing is wrong on the disk."""
        return self.check.clean

    @property
    def curable(self) -> bool:
        """A repair of the clone came out clean."""
        return self.clean or (self.cure is not None and self.cure.proof.clean)

    @property
    def would_do(self) -> str:
        """What a repair would do, in a line."""
        return "nothing" if self.cure is None else self.cure.summary()

    def document(self) -> dict[str, Any]:
        """For JSON."""
        done = self.cure or Cure(repaired=self.check, proof=self.check)
        return {**done.document(), "seconds": round(self.seconds, 3)}


async def look(
    context: ActionContext, target: Target, image: Volume, *, keep: bool = False
) -> Preview:
    """Preview the repair of `image`; the VE notices nothing and no byte of it changes.

    With `keep` the clone is the caller's to delete, where anything is damaged.
    Raises clone.NotShareableError where only a copy could be made (a copy of what is being
    written shows nothing), OSError where the clone cannot be made, StepEnded where there is no
    room for it or the tools cannot work on it.
    """
    timeout_s = context.settings.tool_timeout_s
    tools = scope.tools_for(target.filesystem)
    lies_in = storage.of(image, context.settings)
    await lies_in.check_room(shared=True)
    path = clone.clone_path(image, context.incident.incident_id, "preview")
    await lies_in.discard_unfinished(path)
    context.progress(None, "preview: cloning the running filesystem")
    started = time.monotonic()
    if target.superblock is not None:
        await asyncio.to_thread(block.sync, f"/dev/{target.superblock.device}")
    held = await open_files(context.inventory, target.superblock)
    copy = await lies_in.share(path)

    async def examine() -> Preview:
        async with lies_in.at_work(copy) as path:
            return await examined(path)

    async def examined(path: str) -> Preview:
        replayed = await tools.replay(path, timeout_s)
        cloned_s = time.monotonic() - started
        on_progress = progress.begin(context, "preview: checking the clone")
        check = replayed
        if replayed.usable:
            check = await tools.check(path, timeout_s, on_progress)
        if not check.usable and not (check.last_resort and tools.last_resort):
            raise refuse("cannot check", f"no verdict: {check.what}")
        if check.clean:
            return Preview(check=check, cure=None, seconds=cloned_s)
        done = await cure_at_last(
            tools,
            path,
            replayed,
            image=image.node,
            timeout_s=timeout_s,
            open_files=held,
            begin=lambda _: progress.begin(context, "preview: trying the repair"),
        )
        return Preview(check=check, cure=done, seconds=cloned_s + done.seconds)

    kept = False
    try:
        seen = await storage.while_there_is_room(examine(), lies_in)
        kept = keep and not seen.clean
        return replace(seen, clone=copy) if kept else seen
    finally:
        if not kept:
            await lies_in.discard(copy)
