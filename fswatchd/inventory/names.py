"""Names that a tenant or a runtime has chosen, as everybody else here knows them. Pure.

What a VE is called ends in lines, tables, logs, headers and files. So a name that could act on one
of these is escaped where VEs come in, once, and not wherever one goes out. It still is the name of
that VE alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fswatchd.events import printable
from fswatchd.inventory.model import Ve, VeId

# Longer than any runtime allows, but one that takes them from a file.
_LIMIT = 255
_DIGEST = 12


def readable(name: str) -> str:
    """The name with nothing in it that acts on a terminal or ends a line, and of bounded length.

    A long one ends with a digest of all of it, so that two stay two.
    """
    if len(name) <= _LIMIT and name.isascii() and name.isprintable():
        return name
    shown = printable(name, 4 * _LIMIT)
    if len(name) <= _LIMIT and len(shown) <= _LIMIT:
        return shown
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:_DIGEST]
    return f"{shown[: _LIMIT - _DIGEST - 1]}~{digest}"


def as_known(ve: Ve) -> Ve:
    """The VE with its names and labels so."""
    known = replace(
        ve,
        ve_id=VeId(readable(ve.ve_id)),
        name=readable(ve.name),
        aliases=tuple(VeId(readable(alias)) for alias in ve.aliases),
        labels={readable(key): readable(value) for key, value in ve.labels.items()},
        busy=None if ve.busy is None else readable(ve.busy),
    )
    return ve if known == ve else known
