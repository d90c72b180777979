"""The filesystems inside a virtual machine, as the agent in it tells libvirt (virsh(1), QEMU's
qga/qapi-schema.json: guest-get-fsinfo).

Only where libvirt shows the agent as connected. It is the guest's word: shown as such, escaped and
cut to size, and believed by nothing that decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from fswatchd import process
from fswatchd.events import printable
from fswatchd.inventory.model import GuestFilesystem
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms.engines import parse_json

# libvirt answers no other question to this agent meanwhile, such as the freeze of a backup.
_AGENT_S = 3
_DEADLINE_S = 10.0
_AT_ONCE = 4
_MOST = 64
_SHOWN = 200

Filesystems = dict[str, tuple[GuestFilesystem, ...]]


async def ask(connect: tuple[str, ...], uuids: Iterable[str]) -> Filesystems:
    """UUID → what each of these guests says; nothing of one that does not answer.

    Raises PlatformError where virsh cannot be run at all.
    """
    few = asyncio.Semaphore(_AT_ONCE)

    async def one(uuid: str) -> tuple[GuestFilesystem, ...]:
        question = '{"execute":"guest-get-fsinfo"}'
        argv = (*connect, "qemu-agent-command", "--timeout", str(_AGENT_S), uuid, question)
        async with few:
            done = await process.run(argv, timeout_s=_DEADLINE_S)
        if not done.succeeded:
            return ()  # it hangs, is frozen, or does not know the question
        try:
            return read(parse_json(done.output, "the guest agent"))
        except PlatformError:
            return ()

    wanted = sorted(uuids)
    try:
        answers = await asyncio.gather(*map(one, wanted))
    except process.ProcessError as error:
        raise PlatformError(error.message, hint=error.hint) from error
    return dict(zip(wanted, answers, strict=True))


def read(answer: Any) -> tuple[GuestFilesystem, ...]:
    """The answer to guest-get-fsinfo; what does not have its form is left out."""
    listed = answer.get("return") if isinstance(answer, dict) else None
    found = (_filesystem(one) for one in listed[:_MOST]) if isinstance(listed, list) else ()
    return tuple(one for one in found if one is not None)


def _filesystem(one: Any) -> GuestFilesystem | None:
    if not isinstance(one, dict):
        return None
    texts = [one.get(key) for key in ("name", "type", "mountpoint")]
    if not all(isinstance(text, str) for text in texts):
        return None
    name, fstype, point = (printable(str(text), _SHOWN) for text in texts)
    return GuestFilesystem(
        device=name,
        fstype=fstype,
        mountpoint=point,
        total_bytes=_size(one.get("total-bytes")),
        used_bytes=_size(one.get("used-bytes")),
    )


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 1 << 64 else None
