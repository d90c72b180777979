"""The commands of `fswatch`, one function each: ask, show, and return the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fswatchd.cli import events as events_command
from fswatchd.cli import follow, health, render
from fswatchd.client import Client, quoted
from fswatchd.events import printable
from fswatchd.exitcode import Exit

_VES_SHOWN = 8
_FILES_SHOWN = 20


def status(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch status [VE]`"""
    document = client.get_at_once("/v1/status", ve=arguments.ve)
    if arguments.json:
        _print_json(document)
    else:
        _show_status(document, arguments.ve)
        for one in document["incidents"] if arguments.ve else ():
            print(f"{one['id']}: {one['summary']}")
    return health.status_code(document)


def incidents(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch incidents`"""
    every = "1" if arguments.all else None
    found = client.get_at_once("/v1/incidents", all=every, ve=arguments.ve)["incidents"]
    if arguments.json:
        _print_json(found)
    else:
        _show_incidents(found)
    return Exit.OK


def incident(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch incident ID`"""
    document = client.get_at_once(f"/v1/incidents/{quoted(arguments.id)}")
    if arguments.evidence is not None:
        return _write_evidence(arguments, client, document["id"])
    if arguments.json:
        _print_json(document)
        return Exit.OK
    _show_incidents([document])
    print(document["summary"])
    if document["stack_lines"]:
        print("From there down to the disk:")
        print("\n".join(f"  {line}" for line in document["stack_lines"]))
    if document["acknowledged_by"]:
        print(f"Acknowledged by {printable(document['acknowledged_by'])}")
    if document["consequences"]:
        print(f"Came of it: {_some(document['consequences'])}")
    render.table(
        "Steps",
        ("step", "state", "result", "detail"),
        [(s["do"], s["state"], s["result"], s["detail"]) for s in document["steps"]],
    )
    return Exit.OK


def _write_evidence(arguments: argparse.Namespace, client: Client, incident_id: str) -> int:
    evidence = client.get(f"/v1/incidents/{quoted(incident_id)}/evidence")
    try:
        fd = os.open(arguments.evidence, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(evidence, file, indent=2)
            file.write("\n")
    except OSError as error:
        print(f"fswatch: {arguments.evidence}: {error.strerror}", file=sys.stderr)
        return Exit.DATA
    if not arguments.json:
        print(f"the evidence of {incident_id} is in {arguments.evidence}")
    return Exit.OK


def why(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch why ID`"""
    document = client.get_at_once(f"/v1/incidents/{quoted(arguments.id)}/why")
    if arguments.json:
        _print_json(document)
    else:
        print(document["text"])
    return Exit.OK


def events(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch events`"""
    shown = events_command.Shown(as_json=arguments.json)
    if arguments.follow:
        events_command.follow(client, shown, since=arguments.since, ve=arguments.ve)
    else:
        events_command.page(client, shown, since=arguments.since, ve=arguments.ve)
    return Exit.OK


def classify(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch classify`; needs no daemon."""
    del client
    from fswatchd.cli.classify import run

    return run(arguments.file, problems_only=arguments.problems, as_json=arguments.json)


def group(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rules` and `fswatch notify` without a command never get here."""
    del arguments, client
    return Exit.USAGE


def repair(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch repair TARGET`"""
    body = {
        "target": arguments.target,
        "dry_run": arguments.dry_run,
        "force": arguments.force,
    }
    document = client.post("/v1/repair", body)
    if not arguments.dry_run:
        return _follow(arguments, client, document)
    if arguments.json:
        _print_json(document)
    else:
        if document["output"]:
            print(document["output"].rstrip())
        _show_preview(document)
    return Exit.OK if document["curable"] else Exit.CRITICAL


def _show_preview(document: dict[str, Any]) -> None:
    print(f"{document['ve']}: {document['found']}; a repair would do: {document['would_do']}")
    for title, names in (
        ("dropped", document["dropped_files"]),
        ("in lost+found, without a name", document["unnamed_files"]),
        ("gets its name back", document["named_files"]),
    ):
        for name in names[:_FILES_SHOWN]:
            print(f"  {title}: {printable(name)}")
        if len(names) > _FILES_SHOWN:
            print(f"  {title}: {len(names) - _FILES_SHOWN} more (--json shows them)")
    print(f"writers would wait about {document['seconds']} s")


def rollback(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rollback INCIDENT`"""
    body = {"discard_newer": arguments.discard_newer}
    if arguments.to is not None:
        body["to"] = os.path.abspath(arguments.to)
    path = f"/v1/incidents/{quoted(arguments.id)}/rollback"
    return _follow(arguments, client, client.post(path, body))


def snapshot(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch snapshot TARGET`"""
    body = {"target": arguments.target, "reason": arguments.reason}
    document = client.post("/v1/snapshot", body)
    if arguments.json:
        _print_json(document)
    else:
        print(f"{document['ve']}: {printable(document['path'])}")
        print(f"remove it with: {printable(document['remove'])}")
    return Exit.OK


def freeze(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch freeze VE`"""
    body = {"target": arguments.ve, "for": arguments.duration, "reason": arguments.reason}
    document = client.post("/v1/freeze", body)
    if arguments.json:
        _print_json(document)
    else:
        _show_frozen(document)
        print(f"end it with: fswatch thaw {document['ve']}")
    return Exit.OK


def thaw(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch thaw VE`"""
    document = client.post("/v1/thaw", {"target": arguments.ve, "reason": arguments.reason})
    if arguments.json:
        _print_json(document)
    else:
        print(f"{document['ve']}: thawed")
        if not document["held"]:
            print("it had not been frozen all the time: somebody else has thawed it, in part")
    return Exit.OK if document["held"] else Exit.WARNING


def approve(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch approve ID`"""
    return _decide(arguments, client, "approve")


def deny(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch deny ID`"""
    return _decide(arguments, client, "deny")


def acknowledge(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch ack ID`"""
    document = _answer(arguments, client, "ack", recovered=arguments.recovered)
    if arguments.json:
        _print_json(document)
    else:
        came_of_it = _came_of_ack(document, recovered=arguments.recovered)
        print(f"{document['id']}: {_state(document)}: {came_of_it}")
    return Exit.OK


def _came_of_ack(document: dict[str, Any], *, recovered: bool) -> str:
    if document["state"] == "closed":
        well = document["outcome"] == "recovered"
        return "it is well again" if well else "rules may act again where it held them back"
    if recovered:
        return "what its device has reported counts no more, and it is decided about anew"
    return f"noted that {printable(str(document['acknowledged_by']))} has seen it, no more"


def doctor(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch doctor`"""
    findings = client.get("/v1/doctor")["findings"]
    if arguments.json:
        _print_json(findings)
    else:
        rows = [(f["level"], f["name"], f["text"], f["remedy"], f["code"]) for f in findings]
        render.table("Doctor", ("", "what", "finding", "remedy", "code"), rows)
    levels = {finding["level"] for finding in findings}
    if "critical" in levels:
        return Exit.CRITICAL
    return Exit.WARNING if "warning" in levels else Exit.OK


def install(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch install`; needs no daemon."""
    del client
    from fswatchd.cli.install import run

    return run(
        root=Path(arguments.root).resolve(),
        prefix=Path(arguments.prefix),
        program=arguments.program,
        systemd=arguments.systemd,
        uninstall=arguments.uninstall,
        as_json=arguments.json,
    )


def drill(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch drill`"""
    from fswatchd.drill.command import run

    return run(arguments, client)


def _follow(arguments: argparse.Namespace, client: Client, document: dict[str, Any]) -> int:
    document = follow.incident(client, document["id"], quiet=arguments.json)
    if arguments.json:
        _print_json(document)
    else:
        last = next((s for s in reversed(document["steps"]) if s["detail"]), None)
        outcome = document["outcome"] or document["waiting_for"] or ""
        print(f"{document['id']}: {document['state']} {outcome}".rstrip())
        if last:
            print(last["detail"])
    return follow.exit_code(document)


def _decide(arguments: argparse.Namespace, client: Client, verb: str) -> int:
    document = _answer(arguments, client, verb)
    _print_json(document) if arguments.json else print(f"{document['id']}: {document['state']}")
    return Exit.OK


def _answer(arguments: argparse.Namespace, client: Client, verb: str, **more: bool) -> Any:
    path = f"/v1/incidents/{quoted(arguments.id)}/{verb}"
    return client.post(path, {"reason": arguments.reason, **more})


def _source_detail(source: dict[str, Any]) -> str:
    """What a source says of itself, and when it was blind last."""
    parts = [source["detail"]]
    if source.get("demanded") and source["state"] == "unavailable":
        parts.append("fswatchd.toml demands it")
    if source["blind"]:
        last = source["blind"][-1]
        missed = "" if last["lost"] is None else f", {last['lost']} missed"
        since, until = render.clock(last["since"]), render.clock(last["until"])
        parts.append(f"blind {since} to {until}{missed}")
    return "; ".join(part for part in parts if part)


def _show_frozen(entry: dict[str, Any]) -> None:
    if entry.get("problem"):
        print(f"left frozen: {entry['ve']}, by fswatchd: {printable(entry['problem'])}")
        return
    devices = ", ".join(one["device"] for one in entry["filesystems"]) or "no filesystem"
    why = f": {printable(entry['reason'])}" if entry["reason"] else ""
    until = render.clock(entry["until"])
    print(f"frozen: {entry['ve']} ({devices}) by {entry['by']} until {until}{why}")
    for one in entry["not_frozen"]:
        print(f"  not frozen: {one['device']}: {printable(one['why'])}")


def _show_status(document: dict[str, Any], ve: str | None) -> None:
    # The first line is all that a monitor shows.
    wrong = health.problems(document, ve)
    first = f"{document['node']}: mode {document['mode']}, since {render.clock(document['since'])}"
    print(f"{first}: {wrong}" if wrong else first)
    if document["distrust"]:
        usual = document["configured_mode"]
        print(f"the daemon does not trust itself: it only observes, not {usual} [FSW-DISTRUST]")
    for doubt in document["distrust"]:
        since = render.clock(doubt["since"])
        print(f"  {printable(doubt['text'])} (since {since}; ends {doubt['ends']})")
    if document["rules"]["problems"] and document["rules"]["read"] is None:
        print("rules: files have mistakes, and none are in force [FSW-RULE-NONE]")
    elif document["rules"]["problems"]:
        print("rules: files have mistakes, the last good ones stay [FSW-RULE-LAST-GOOD]")
    for problem in document["rules"]["problems"]:
        print(f"rules: {problem}")
    if document["canary"]["problem"]:
        print(f"canary: {document['canary']['problem']}")
    for device in document["unreached"]:
        print(f"filesystem {device}: it cannot be reached, its errors are not heard by all sources")
    for problem in document["platforms"]["problems"].values():
        print(f"platform: {problem}")
    for entry in document["disarmed"]:
        until = f" until {render.clock(entry['until'])}" if entry["until"] else ""
        said = f"{entry['target']} by {entry['by']}{until}: {entry['reason']}"
        print(f"disarmed: {printable(said)}")
    for entry in document["frozen"]:
        _show_frozen(entry)
    for problem in document["reserve"]["low"]:
        print(f"reserve: {problem}")
    for entry in document["refused"]:
        last = render.clock(entry["last"])
        times = f"{entry['count']} times, " if entry["count"] > 1 else ""
        print(f"refused: {entry['who']}: {entry['what']} ({times}last {last})")
    for channel, error in document["notices"]["failing"].items():
        print(f"channel {channel} fails: {error}")
    if problem := document["journal"]["problem"]:
        waiting = document["journal"]["waiting"]
        print(f"journal: {problem}; {waiting} entries about incidents wait")
    if dropped := document["journal"]["dropped"]:
        print(f"journal: {dropped} entries about incidents were dropped")
    render.table(
        "Sources",
        ("source", "state", "events", "lost", "detail"),
        [
            (s["name"], s["state"], s["events"], s["lost"], _source_detail(s))
            for s in document["sources"]
        ],
    )
    rows = [
        (
            ve["id"],
            ve["state"],
            fs.get("device"),
            fs.get("fstype"),
            fs.get("health"),
            (fs.get("backing") or {}).get("image"),
            len(ve["incidents"]) or "",
            fs.get("stack_text"),
        )
        for ve in document["ves"]
        for fs in ve["filesystems"] or [{"stack_text": _inside(ve)}]
    ]
    heads = ("VE", "state", "device", "type", "health", "image", "incidents", "rests on")
    render.table("VEs", heads, rows)
    if document["incidents"]:
        _show_incidents(document["incidents"])


def _inside(ve: dict[str, Any]) -> str | None:
    """What a guest's agent says of it."""
    told = [
        f"{one['mountpoint']} ({one['fstype']} on {one['device']})"
        for one in ve.get("guest_filesystems", ())
    ]
    return f"inside, as its agent says: {', '.join(told)}" if told else None


def _show_incidents(found: list[dict[str, Any]]) -> None:
    """Each right after the one that it is a part of."""
    ids = {i["id"] for i in found}
    whole = [i for i in found if i["part_of"] not in ids]
    found = [one for i in whole for one in _with_parts(i, found)]
    render.table(
        "Incidents",
        ("incident", "class", "severity", "state", "VEs", "device", "heard by", "opened", "cause"),
        [
            (
                i["id"],
                i["class"] + ("" if i["confirmed"] else " (unconfirmed)"),
                i["severity"],
                _state(i),
                _some(i["ves"]),
                i["filesystem"]["device"],
                i["sources"],
                render.clock(i["opened"]),
                _cause(i),
            )
            for i in found
        ],
    )


def _state(incident: dict[str, Any]) -> str:
    state = str(incident["state"]) + (f", {incident['outcome']}" if incident["outcome"] else "")
    muted = incident["muted"] if incident["state"] != "closed" else None
    return state + (f", muted until {render.clock(muted['until'])}" if muted else "")


def _with_parts(whole: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield whole
    for part in found:
        if part["part_of"] == whole["id"]:
            yield from _with_parts(part, found)


def _some(ves: list[str]) -> str:
    more = len(ves) - _VES_SHOWN
    return ", ".join(ves[:_VES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _cause(incident: dict[str, Any]) -> str | None:
    cause, came_of_it = incident["cause"], len(incident["consequences"])
    if cause is None:
        return f"is the cause of {came_of_it} other incidents" if came_of_it else None
    text = f"{cause['object']}: {cause['text']}{', now well' if 'until' in cause else ''}"
    return f"part of {incident['part_of']}: {text}" if incident["part_of"] else text


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None))
