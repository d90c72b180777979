"""Incidents, and what the daemon thinks of itself, in the journal of the node.

They are structured entries that `journalctl MESSAGE_ID=…` finds. The fields are described in
docs/events.md, the messages for people in data/systemd/fswatchd.catalog. The journal is told on a
best effort: what counts is kept in the daemon's own store.
"""

from __future__ import annotations

from typing import Any

from fswatchd import views
from fswatchd.book import IncidentBook
from fswatchd.events import Severity, printable
from fswatchd.incidents import Incident, State
from fswatchd.notify.journal_socket import JournalSocket
from fswatchd.notify.notices import DRILL

# Never changed, never used for anything else: people have them in their scripts.
MESSAGE_IDS = {
    "opened": "549185f3239f4faf8cf41be288498433",
    "needs-operator": "aae5ae60291b4e72918b2351e2c91b5e",
    "closed": "7312cd6e377240f09df183e55cb78309",
    "trust-lost": "860104368ef141a69becfd396d262d1b",
    "trust-regained": "7d3ccc51abaa4bde84fcbd403e6a73e8",
}
_PRIORITY = {Severity.INFO: 6, Severity.WARNING: 4, Severity.ERROR: 3, Severity.CRITICAL: 2}
_NOTICE = 5
_VES_SHOWN = 32
_TEXT_LIMIT = 200
_REASON_LIMIT = 1000
_WORDS = {"opened": "opened", "needs-operator": "needs an operator", "closed": "closed"}


class JournalNotices:
    """Listens to the book."""

    def __init__(self, book: IncidentBook, journal: JournalSocket) -> None:
        self._journal = journal
        book.subscribe(self._changed)

    def status(self) -> dict[str, Any]:
        """For `fswatch status --json`."""
        return {
            "sent": self._journal.sent,
            "waiting": self._journal.waiting,
            "dropped": self._journal.dropped,
            "problem": self._journal.problem,
        }

    def tell_of_trust(self, kind: str, node: str, data: dict[str, Any]) -> None:
        """The daemon does not trust itself any more (`lost`), or again (`regained`)."""
        words, priority = "does not trust itself and only observes", Severity.CRITICAL
        if kind == "regained":
            words, priority = "trusts itself again", Severity.WARNING
        text = printable(data["text"], _REASON_LIMIT)
        how = f" ({printable(data['how'], _TEXT_LIMIT)})" if data.get("how") else ""
        self._journal.send(
            [
                ("MESSAGE", f"the daemon {words}: {text}{how}"),
                ("MESSAGE_ID", MESSAGE_IDS[f"trust-{kind}"]),
                ("PRIORITY", str(_PRIORITY[priority])),
                ("SYSLOG_IDENTIFIER", "fswatchd"),
                ("FSWATCHD_NODE", printable(node, _TEXT_LIMIT)),
                ("FSWATCHD_DOUBT", printable(data["what"], _TEXT_LIMIT)),
                ("FSWATCHD_TIME", str(data["since"])),
            ]
        )

    def close(self) -> int:
        """The end; returns how many entries the journal has not taken."""
        return self._journal.close()

    def _changed(self, before: Incident | None, after: Incident) -> None:
        kind = change(before, after)
        if kind is not None:
            self._journal.send(fields(kind, after))


def change(before: Incident | None, after: Incident) -> str | None:
    """Which entry a change of an incident makes, if any. Pure."""
    if before is None or before.state is not after.state:
        if after.state is State.NEEDS_OPERATOR:
            return "needs-operator"
        if after.state is State.CLOSED:
            return "closed"
    return "opened" if before is None else None


def fields(kind: str, incident: Incident) -> list[tuple[str, str]]:
    """The entry, in the order in which `journalctl -o export` shows it. Pure."""
    reason = incident.log[-1][1] if incident.log else ""
    where = printable(incident.filesystem.device or "an unknown device", _TEXT_LIMIT)
    ves = [printable(ve, _TEXT_LIMIT) for ve in incident.ves[:_VES_SHOWN]]
    outcome = incident.outcome.value if incident.outcome else ""
    text = f"incident {incident.incident_id} {_WORDS[kind]}"
    text += f" ({outcome})" if kind == "closed" else ""
    text += f": {incident.klass.value} on {where}"
    text += f" of {', '.join(ves[:4])}" + (", …" if len(incident.ves) > 4 else "") if ves else ""
    text += f": {printable(reason, _REASON_LIMIT)}" if reason else ""
    drill = bool(ves) and all(ve.startswith(f"{DRILL}:") for ve in ves)
    priority = _NOTICE if kind == "closed" else _PRIORITY[incident.severity]
    if drill:
        priority = _PRIORITY[Severity.INFO]  # an exercise must not wake anybody
    found = [
        ("MESSAGE", text),
        ("MESSAGE_ID", MESSAGE_IDS[kind]),
        ("PRIORITY", str(priority)),
        ("SYSLOG_IDENTIFIER", "fswatchd"),
        ("FSWATCHD_INCIDENT", incident.incident_id),
        ("FSWATCHD_NODE", printable(incident.node, _TEXT_LIMIT)),
        ("FSWATCHD_STATE", incident.state.value),
        ("FSWATCHD_CLASS", incident.klass.value),
        ("FSWATCHD_SEVERITY", incident.severity.label),
        ("FSWATCHD_CONFIRMED", "1" if incident.confirmed else "0"),
        ("FSWATCHD_TIME", str(views.timestamp(incident.updated_ns))),
        *(("FSWATCHD_VE", ve) for ve in ves),
    ]
    optional = {
        "FSWATCHD_DEVICE": incident.filesystem.device,
        "FSWATCHD_DEVNO": str(incident.filesystem.devno) if incident.filesystem.devno else None,
        "FSWATCHD_FSTYPE": incident.filesystem.fstype,
        "FSWATCHD_RULE": incident.rule,
        "FSWATCHD_OUTCOME": outcome,
        "FSWATCHD_DRILL": "1" if drill else None,
        "FSWATCHD_ERRNO": str(incident.errno) if incident.errno is not None else None,
    }
    found += [(name, printable(value, _TEXT_LIMIT)) for name, value in optional.items() if value]
    return found
