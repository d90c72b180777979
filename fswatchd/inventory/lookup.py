"""From what a person typed to a VE or a filesystem. Pure questions to a `NodeView`."""

from __future__ import annotations

import difflib

from fswatchd.devno import Devno
from fswatchd.errors import UnknownTargetError
from fswatchd.inventory.model import Superblock, Ve
from fswatchd.inventory.names import readable
from fswatchd.inventory.view import NodeView


def find_ve(view: NodeView, text: str) -> Ve:
    """The VE that `text` names: an id, a name, a native id, or a number with or without "ve".

    Only a whole id wins over the others: where `101` could be `ve101` of one platform and `101` of
    another, nobody should have to know which rule decides. Raises UnknownTargetError with the
    candidates, or with near names.
    """
    text = readable(text)
    exact = [ve for ve in view.ves.values() if text in {ve.ve_id, *ve.aliases}]
    found = exact or [ve for ve in view.ves.values() if _names(ve, text) or _loosely(ve, text)]
    if len(found) == 1:
        return found[0]
    if found:
        candidates = ", ".join(sorted(ve.ve_id for ve in found))
        raise UnknownTargetError(
            f"{text} names several VEs: {candidates}", code="FSW-UNKNOWN-AMBIGUOUS"
        )
    names = sorted({name for ve in view.ves.values() for name in (ve.ve_id, ve.name)})
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "fswatch status shows all VEs"
    raise UnknownTargetError(f"there is no VE {text!r}", hint=hint, code="FSW-UNKNOWN-VE")


def find_superblocks(view: NodeView, text: str) -> tuple[Ve | None, list[Superblock]]:
    """The filesystems that `text` (a VE, a device or a mount point) names.

    A device may be named as `status` shows it, without `/dev/`, where no VE has that name. A VE's
    filesystems are those that nobody else uses. Raises UnknownTargetError.
    """
    if text.startswith("/dev/") or _is_devno(text):
        wanted = text.removeprefix("/dev/")
        for found in view.superblocks.values():
            if wanted in {found.device, str(found.devno)}:
                return None, [found]
        raise UnknownTargetError(
            f"no filesystem is mounted from {text}", code="FSW-UNKNOWN-FILESYSTEM"
        )
    if text.startswith("/"):
        mounted = [
            superblock
            for superblock in view.superblocks.values()
            if any(
                place.mount.point == text.rstrip("/") or place.mount.point == text
                for place in superblock.mounts
                if place.namespace == view.node_namespace
            )
        ]
        if len(mounted) == 1:
            return None, mounted
        raise UnknownTargetError(
            f"{text} is no mount point of a disk filesystem on this node",
            code="FSW-UNKNOWN-FILESYSTEM",
        )
    called = [one for one in view.superblocks.values() if one.device == text]
    try:
        ve = find_ve(view, text)
    except UnknownTargetError as error:
        if called and error.code == "FSW-UNKNOWN-VE":
            return None, called[:1]
        raise
    if called:
        raise UnknownTargetError(
            f"{text} names several things: {ve.ve_id}, /dev/{text}", code="FSW-UNKNOWN-AMBIGUOUS"
        )
    return ve, [
        superblock
        for superblock in view.superblocks_of(ve.ve_id)
        if view.users[superblock.devno].ves == (ve.ve_id,)
        and not view.users[superblock.devno].foreign
    ]


def _names(ve: Ve, text: str) -> bool:
    platform, colon, name = text.partition(":")
    if colon:
        return ve.platform == platform and name in {ve.name, ve.native_id}
    return text in {ve.name, ve.native_id}


def _loosely(ve: Ve, text: str) -> bool:
    platform, colon, name = text.rpartition(":")
    if colon and platform != ve.platform:
        return False
    wanted = name.removeprefix("ve")
    return wanted.isdecimal() and wanted in {
        known.removeprefix("ve") for known in (ve.name, ve.native_id)
    }


def _is_devno(text: str) -> bool:
    try:
        Devno.parse(text)
    except ValueError:
        return False
    return True
