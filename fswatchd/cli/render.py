"""What people see: tables on a terminal, plain tab-separated lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from fswatchd.events import printable

_CELL = 2000
_COLOURS = {
    "ok": "green",
    "running": "green",
    "repaired": "green",
    "recovered": "green",
    "done": "green",
    "warning": "yellow",
    "suspect": "yellow",
    "waiting": "yellow",
    "verifying": "yellow",
    "acting": "yellow",
    "repairing": "yellow",
    "open": "yellow",
    "off": "dim",
    "unavailable": "dim",
    "error": "red",
    "critical": "red",
    "damaged": "red",
    "readonly": "red",
    "shutdown": "red",
    "failed": "red",
    "blind": "red",
    "deaf": "red",
    "quarantined": "red",
    "needs-operator": "red",
}


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show rows; on a terminal with heads and colours."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_plain(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in heads:
        shown.add_column(head, overflow="fold")
    for row in rows:
        cells = [_plain(cell) for cell in row]
        shown.add_row(*(Text(cell, style=_COLOURS.get(cell.split(",")[0], "")) for cell in cells))
    Console(highlight=False).print(shown)


def clock(stamp: str | None) -> str:
    """An RFC 3339 time as the hour of today, or with its date."""
    if not stamp:
        return "-"
    moment = datetime.fromisoformat(stamp).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M")


def _plain(cell: object) -> str:
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, list | tuple):
        cell = ", ".join(str(part) for part in cell) or "-"
    return printable(str(cell), _CELL)
