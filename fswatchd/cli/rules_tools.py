"""`fswatch rules list`, `test` and `replay`: what rules do, would do, and would have done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fswatchd import config, decisions, eventdoc, policy, replay, views
from fswatchd.cli import render
from fswatchd.client import Client, ClientError
from fswatchd.errors import ConfigError
from fswatchd.events import domain_of
from fswatchd.exitcode import Exit
from fswatchd.incidents import Filesystem, Incident
from fswatchd.localtime import seconds_of_day
from fswatchd.rules import files
from fswatchd.rules.model import RuleSet, assemble
from fswatchd.rules.problem import RuleProblem
from fswatchd.situation import PolicyState, Scope
from fswatchd.units import parse_duration, parse_timestamp

# What of an event the policy is asked about; see docs/events.md.
_WANTED = (
    "time",
    "source",
    "class",
    "severity",
    "confirms",
    "device",
    "fstype",
    "errno",
    "count",
    "ves",
    "incident",
)
_NS = 1_000_000_000
_NO_DAEMON = "no daemon: rules from files, and nothing is known of the node"


def run_list(client: Client, directories: list[Path], *, as_json: bool) -> int:
    """Every rule in the order in which they are tried, and how often it was used.

    Of `directories`, or where there are none those in force; so in all of these commands.
    """
    document = None if directories else _from_daemon(client, "/v1/rules")
    if document is None:
        settings = config.load(None).daemon
        rules = _load(directories or settings.rules)
        unknown = {"hits": None, "acted": None, "last_used": None}
        entries = [{**entry, **unknown} for entry in views.rules(rules)]
        document = {"state": "files", "mode": settings.mode, "rules": entries}
    else:
        document = {"state": "daemon", **document}
    if as_json:
        print(json.dumps(document))
        return Exit.OK
    if document["state"] == "files":
        print("from files: no counts" if directories else f"{_NO_DAEMON}: no counts")
    code = "FSW-RULE-LAST-GOOD" if document.get("read") else "FSW-RULE-NONE"
    for problem in document.get("problems", ()):
        print(f"not in force [{code}]: {problem}")
    for warning in document.get("warnings", ()):
        print(f"warning: {warning}")
    render.table(
        f"Rules (node: {document['mode']})",
        ("rule", "mode", "decided", "acted", "last used", "steps", "file"),
        [
            (
                rule["name"] + (" (continues)" if rule["continue"] else ""),
                rule["mode"],
                rule["hits"],
                rule["acted"],
                render.clock(rule["last_used"]) if rule["last_used"] else None,
                ", ".join(rule["steps"]),
                rule["file"],
            )
            for rule in document["rules"]
        ],
    )
    return Exit.OK


def run_test(client: Client, file: Path, directories: list[Path], *, as_json: bool) -> int:
    """What would be decided about the event in `file`; nothing is done."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", code="FSW-EVENT-FILE") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8", code="FSW-EVENT-FILE") from None
    hypothesis = eventdoc.parse(text, str(file))
    files = _texts(directories) if directories else None
    document = _asked(client, {"event": json.loads(text), "rules": files})
    if document is None:
        settings = config.load(None).daemon
        rules = _load(directories or settings.rules)
        document = _alone(hypothesis, rules, settings)
    document["rules"] = ", ".join(map(str, directories)) or "in force"
    if as_json:
        print(json.dumps(document))
    else:
        _show_decision(document)
    return Exit.OK


def _seconds_of_day(time_ns: int) -> int:
    return seconds_of_day(time_ns / 1e9)


def run_replay(
    client: Client,
    *,
    tried: list[Path],
    since: str,
    events_file: Path | None,
    mode: Any,
    as_json: bool,
) -> int:
    """What the rules would have decided about the recorded events, beside what was decided."""
    span_s = parse_duration(since)
    rules = _load(tried) if tried else None  # before the daemon is asked for all it has recorded
    settings = config.load(None).daemon
    in_force = _from_daemon(client, "/v1/rules")
    if events_file is None:
        if in_force is None:
            client.get("/v1/status")  # says why it cannot be reached
        recorded: list[dict[str, Any]] = list(_pages(client))
    else:
        recorded = list(_lines(events_file))
    told = client.get("/v1/decisions")["decisions"] if in_force else []
    directories = tried
    if not directories:
        directories = [Path(d) for d in in_force["directories"]] if in_force else settings.rules
    if rules is None:
        rules = _load(directories)
    chosen = _since(recorded, span_s)
    usual = in_force["mode"] if in_force else settings.mode
    past = replay.replay(rules, chosen, told, mode, usual, _seconds_of_day)
    found = past.incidents
    document = {
        "events": len(chosen),
        "from": views.timestamp(chosen[0]["time_ns"]) if chosen else None,
        "to": views.timestamp(chosen[-1]["time_ns"]) if chosen else None,
        "rules": [str(one) for one in directories],
        "mode": mode or "as recorded",
        "incidents": len(found),
        "changed": sum(one.changed for one in found),
        "assumed": sum(one.assumed for one in found),
        "totals": replay.totals(found),
        "storms": [
            {
                "begun": views.timestamp(one.begun_ns),
                "ended": views.timestamp(one.ended_ns),
                "ves": list(one.ves),
                "likely_cause": one.likely_cause,
            }
            for one in past.storms
        ],
        "changes": [
            {**one.document(), "opened": views.timestamp(one.opened_ns)}
            for one in found
            if one.changed or one.recorded is None
        ],
    }
    if as_json:
        print(json.dumps(document))
    else:
        _show_replay(document)
    return Exit.OK


# --- reading ------------------------------------------------------------------------------------


def _from_daemon(client: Client, path: str) -> Any:
    try:
        return client.get(path)
    except ClientError as error:
        if error.code is Exit.UNKNOWN:
            return None
        raise


def _asked(client: Client, body: dict[str, Any]) -> Any:
    try:
        return client.post("/v1/rules/test", body)
    except ClientError as error:
        if error.code is Exit.UNKNOWN:
            return None
        raise


def _texts(directories: list[Path]) -> list[tuple[str, str]]:
    """The files of the directories; raises ConfigError with all that is wrong with them."""
    _load(directories)
    paths, _ = files.chosen(directories)
    found = [(str(path), files.read(path, trusted=True)) for path in paths]
    return [(name, text) for name, text in found if isinstance(text, str)]


def _load(directories: list[Path]) -> RuleSet:
    """Rules that somebody is only trying need not belong to root; raises ConfigError."""
    paths, problems = files.chosen(directories)
    texts: list[tuple[str, str]] = []
    for path in paths:
        text = files.read(path, trusted=True)
        if isinstance(text, RuleProblem):
            problems.append(text)
        else:
            texts.append((str(path), text))
    rules, wrong = assemble(texts)
    problems += wrong
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems), code="FSW-RULE")
    return rules


def _pages(client: Client) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = client.get("/v1/record", after=after)
        yield from (dict(zip(page["columns"], row, strict=True)) for row in page["rows"])
        if page["end"]:
            return
        after = page["rows"][-1][0]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Events from a file of `fswatch events --json`; raises ConfigError."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - the error names it
                document: dict[str, Any] = json.loads(line) if line.strip() else {"gap": None}
                if "gap" in document:
                    continue
                if missing := [key for key in _WANTED if key not in document]:
                    raise ValueError(f"{', '.join(missing)} missing")
                yield {**document, "time_ns": parse_timestamp(document["time"])}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", code="FSW-EVENT-FILE") from None
    except (ValueError, TypeError) as error:
        hint = "a line of fswatch events --json is wanted"
        where = f"{path}: line {number}"
        raise ConfigError(f"{where}: {error}", hint=hint, code="FSW-EVENT-FILE") from None


def _since(events: list[dict[str, Any]], span_s: float) -> list[dict[str, Any]]:
    """Counted back from the newest event, so that the same record gives the same answer."""
    newest = max((event["time_ns"] for event in events), default=0)
    first = newest - int(span_s * _NS)
    return [event for event in events if event["time_ns"] >= first]


# --- deciding without a daemon ------------------------------------------------------------------


def _alone(
    hypothesis: eventdoc.Hypothesis, rules: RuleSet, settings: config.DaemonTable
) -> dict[str, Any]:
    event = hypothesis.event
    now_ns = hypothesis.time_ns or 10**18
    incident = Incident(
        incident_id="hypothetical",
        node=settings.node,
        domain=domain_of(event.klass),
        filesystem=Filesystem(devno=event.devno, device=event.device, fstype=event.fstype),
        opened_ns=now_ns,
        updated_ns=now_ns,
        ves=tuple(ve.ve_id for ve in hypothesis.ves),
    ).joined(event, now_ns)
    state = PolicyState(mode=settings.mode)
    decision = policy.no_incident(event.klass)
    if event.klass.is_problem:
        decision = policy.decide(rules, incident, Scope(ves=hypothesis.ves), state, now_ns)
    return {
        "state": "files",
        "mode": settings.mode,
        "ves": list(incident.ves),
        "filesystem": event.device,
        "assumed": [
            *hypothesis.assumed,
            "nobody but the VEs named uses the filesystem, and all beneath it is well",
            "nothing is disarmed, no repair runs, no rule has acted before",
        ],
        "notes": [],
        "decision": decisions.document(decision, rules),
    }


# --- showing ------------------------------------------------------------------------------------


def _show_decision(document: dict[str, Any]) -> None:
    decision = document["decision"]
    with_state = "with the state of the running daemon"
    print(with_state if document["state"] == "daemon" else _NO_DAEMON)
    print(f"rules: {document['rules']}; node's mode: {document['mode']}")
    for text in (*document["notes"], *(f"assumed: {text}" for text in document["assumed"])):
        print(f"  {text}")
    print(f"decision: {_outline(decision)}")
    for answer in decision["answers"]:
        mark = "yes" if answer["passed"] else "NO "
        code = "" if answer["passed"] else f" [{answer['code']}]"
        print(f"  {mark} {answer['guard']:<10} {answer['text']}{code}")
    for shadow in decision["shadows"]:
        print(f"  --- shadow     {shadow['rule']} {shadow['text']}")
    if decision["verdict"] == "act":
        print(f"  would do: {', '.join(decision['steps'])}")
    elif decision["channels"]:
        print(f"  would tell: {', '.join(decision['channels'])}")
    print("nothing was done")


def _show_replay(document: dict[str, Any]) -> None:
    print(
        f"{document['events']} events, {document['from']} to {document['to']}, "
        f"{document['incidents']} incidents; rules: {', '.join(document['rules'])}; "
        f"mode: {document['mode']}"
    )
    for name, counts in document["totals"].items():
        shown = ", ".join(f"{verdict} {count}" for verdict, count in counts.items())
        print(f"{name + ':':<10} {shown or 'nothing'}")
    if document["assumed"]:
        print(
            f"of {document['assumed']} incidents no facts were recorded: their VEs' names are all "
            "that is known"
        )
    for one in document["storms"]:
        until = f"to {one['ended']}" if one["ended"] else "until an operator would have ended it"
        some = ", ".join(one["ves"][:4]) + (", …" if len(one["ves"]) > 4 else "")
        print(f"a storm from {one['begun']} {until}: {some}: {one['likely_cause']}")
    print(f"{document['changed']} decided otherwise")
    for change in document["changes"]:
        ves = ", ".join(change["ves"][:4]) or "no VE"
        print(f"{change['incident']}  {change['opened']}  {change['class']}  {ves}")
        was = _outline(change["recorded"]) if change["recorded"] else "not recorded"
        print(f"  - {was}")
        print(f"  + {_outline(change['replayed'])}: {change['replayed']['reason']}")


def _outline(decision: dict[str, Any]) -> str:
    words = str(decision["verdict"])
    if decision["waiting_for"]:
        words += f" for {decision['waiting_for']}"
    if decision["rule"]:
        words += f", by rule {decision['rule']}"
    if decision.get("file"):
        words += f" ({os.path.basename(decision['file'])})"
    return words + (f": {', '.join(decision['steps'])}" if decision["verdict"] == "act" else "")
