"""What `fswatch status` means for a monitor: its exit code, and in a few words what is wrong.

The exit code is about incidents and about hearing of them. What else does not work is told with it,
and changes nothing about it: that may be so for months, and an incident must be seen beside it.
Only what the document of the daemon says; nothing is asked again here.
"""

from __future__ import annotations

from typing import Any

from fswatchd.events import printable
from fswatchd.exitcode import Exit
from fswatchd.summary import names

_DEAF = {"blind", "deaf"}


def status_code(document: dict[str, Any]) -> Exit:
    """0 fine, 1 an incident is open or waits, 2 a person or a source is missing."""
    if _critical(document):
        return Exit.CRITICAL
    return Exit.WARNING if _open(document) else Exit.OK


def problems(document: dict[str, Any], ve: str | None = None) -> str:
    """What is wrong, worst first; empty where nothing is.

    Where a VE is asked about, without what does not work on the node: one channel that fails is not
    a problem of a thousand VEs.
    """
    of_node = _does_not_work(document) if ve is None else []
    return printable("; ".join([*_critical(document), *_open(document), *of_node]))


def _critical(document: dict[str, Any]) -> list[str]:
    found: list[str] = []
    if document.get("distrust"):
        found.append("the daemon does not trust itself")
    if _is_without_rules(document):
        found.append("no rules are in force")
    left = [entry["ve"] for entry in document.get("frozen", ()) if entry.get("problem")]
    if left:
        found.append(f"left frozen: {names(tuple(left))}")
    if count := sum(one["state"] == "needs-operator" for one in _ours(document)):
        found.append(_count(count, "incident needs an operator", "incidents need an operator"))
    missing = [one for one in document["sources"] if _hears_too_little(one)]
    return [*found, *(f"source {one['name']} is {one['state']}" for one in missing)]


def _open(document: dict[str, Any]) -> list[str]:
    count = sum(one["state"] != "needs-operator" for one in _ours(document))
    return [_count(count, "incident is open", "incidents are open")] if count else []


def _does_not_work(document: dict[str, Any]) -> list[str]:
    """What status has a line about and somebody should see to: of the node, not of a VE."""
    found: list[str] = []
    if document.get("rules", {}).get("problems") and not _is_without_rules(document):
        found.append("rule files have mistakes")
    if document.get("canary", {}).get("problem"):
        found.append("sources cannot be proved")
    for words, which in (
        ("filesystems not reached", document.get("unreached")),
        ("platforms with problems", document.get("platforms", {}).get("problems")),
        ("channels that fail", document.get("notices", {}).get("failing")),
    ):
        if which:
            found.append(f"{words}: {names(tuple(which))}")
    if document.get("reserve", {}).get("low"):
        found.append("the reserve is low")
    if dropped := document.get("journal", {}).get("dropped"):
        found.append(f"{dropped} journal entries were dropped")
    return found


def _ours(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The incidents, without those of a drill that another daemon handles."""
    return [one for one in document["incidents"] if not one.get("hands_off")]


def _is_without_rules(document: dict[str, Any]) -> bool:
    """Then nothing is done, and nobody told."""
    rules = document.get("rules", {})
    return bool(rules.get("problems")) and rules.get("read") is None


def _hears_too_little(source: dict[str, Any]) -> bool:
    if source["state"] in _DEAF:
        return True
    return bool(source.get("demanded")) and source["state"] == "unavailable"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
