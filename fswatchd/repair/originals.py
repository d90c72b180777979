"""The originals that the repairs of one incident have put aside, as its `undo` has them.

A rollback takes the newest (`original`, told by `original_file`). Those of repairs before it are in
`earlier`: nothing goes back to them, and they take room until their time has come too. There are
none without a newest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(before: Mapping[str, object] | None, new: Mapping[str, Any]) -> dict[str, object]:
    """What is needed to undo after one more step; what that knows nothing of stays as it was."""
    known = dict(before or {})
    earlier = kept(known)
    known |= {name: value for name, value in new.items() if value is not None or name not in known}
    earlier = [one for one in earlier if one["original"] != known.get("original")]
    if earlier:
        known["earlier"] = earlier
    return known


def kept(undo: Mapping[str, object] | None) -> list[dict[str, object]]:
    """All of them, the oldest first: `original` is the name of each, `original_file` what it is."""
    if undo is None or "original" not in undo:
        return []
    earlier = undo.get("earlier")
    found = [dict(one) for one in earlier] if isinstance(earlier, list) else []
    newest = {name: undo[name] for name in ("original", "original_file") if name in undo}
    return [*found, newest]


def without_oldest(undo: Mapping[str, object]) -> dict[str, object]:
    """What is left to undo when the oldest is not kept any more."""
    _, *left = kept(undo)
    names = {"original", "original_file", "earlier"}
    rest = {name: value for name, value in undo.items() if name not in names}
    if not left:
        return rest
    *earlier, newest = left
    return {**rest, **newest, **({"earlier": earlier} if earlier else {})}


def with_oldest(undo: Mapping[str, object], one: Mapping[str, object]) -> dict[str, object]:
    """The reverse of that: `one` could not be deleted."""
    left = kept(undo)
    if not left:
        return {**undo, **one}
    return {**undo, "earlier": [dict(one), *left[:-1]]}
