"""Commands about rules, mutes, channels and message codes: ask, show, return the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fswatchd import codes
from fswatchd.cli import render
from fswatchd.client import Client, quoted
from fswatchd.errors import UnknownTargetError
from fswatchd.events import printable
from fswatchd.exitcode import Exit


def rules_check(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rules check`; needs no daemon."""
    del client
    from fswatchd.cli.rules_check import run

    return run([Path(path) for path in arguments.paths], as_json=arguments.json)


def rules_list(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rules list`"""
    from fswatchd.cli.rules_tools import run_list

    return run_list(client, _directories(arguments), as_json=arguments.json)


def rules_test(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rules test`"""
    from fswatchd.cli.rules_tools import run_test

    return run_test(client, Path(arguments.event), _directories(arguments), as_json=arguments.json)


def rules_replay(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch rules replay`"""
    from fswatchd.cli.rules_tools import run_replay

    return run_replay(
        client,
        tried=_directories(arguments),
        since=arguments.since,
        events_file=Path(arguments.events) if arguments.events else None,
        mode=arguments.mode,
        as_json=arguments.json,
    )


def mute(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch mute ID`"""
    body = {"for": arguments.duration, "reason": arguments.reason}
    document = client.post(f"/v1/incidents/{quoted(arguments.id)}/mute", body)
    if arguments.json:
        print(json.dumps(document))
    else:
        until = render.clock(document["muted"]["until"])
        print(f"{document['id']}: muted until {until}, or until it gets worse")
    return Exit.OK


def unmute(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch unmute ID`"""
    document = client.post(f"/v1/incidents/{quoted(arguments.id)}/unmute")
    print(json.dumps(document) if arguments.json else f"{document['id']}: told again")
    return Exit.OK


def disarm(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch disarm`"""
    body = {**_whom(arguments), "reason": arguments.reason, "for": arguments.duration}
    document = client.post("/v1/disarm", body)
    said = f"disarmed: {printable(document['disarmed'])}"
    print(json.dumps(document) if arguments.json else said)
    return Exit.OK


def arm(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch arm`"""
    body = {**_whom(arguments), "reason": arguments.reason}
    document = client.post("/v1/arm", body)
    if arguments.json:
        print(json.dumps(document))
        return Exit.OK
    print(f"armed: {printable(document['armed'])}")
    for text in document["accepted"]:
        print(f"  accepted: {printable(text)}")
    return Exit.OK


def notify_test(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch notify test [CHANNEL]`"""
    document = client.post("/v1/notify/test", {"channel": arguments.channel})
    tried = document["channels"]
    if arguments.json:
        print(json.dumps(document))
    elif not tried:
        print("nobody would be told: there is no notification channel [FSW-DOCTOR-CHANNELS]")
    else:
        print("sent at once, past the outbox, once")
        for one in tried:
            answer = f"HTTP {one['status']}" if one["status"] else one["error"]
            words = "works" if one["delivered"] else "FAILS"
            signed = "signed" if one["signed"] else "not signed"
            print(f"{one['channel']}: {words}: {answer} after {one['latency_s']:.3f} s, {signed}")
            if one["waiting"]:
                print(f"  {one['waiting']} notices wait for it in the outbox")
    if not tried:
        return Exit.WARNING
    return Exit.OK if all(one["delivered"] for one in tried) else Exit.CRITICAL


def explain(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch explain [CODE]`; needs no daemon."""
    del client
    catalogue = codes.catalogue()
    if arguments.code is None:
        entries = list(catalogue.values())
    else:
        found = catalogue.get(arguments.code.upper())
        if found is None:
            raise UnknownTargetError(
                f"there is no message code {arguments.code!r}",
                hint="fswatch explain without a code lists them",
                code="FSW-UNKNOWN-CODE",
            )
        entries = [found]
    if arguments.json:
        documents = [{"code": e.code, "means": e.means, "do": e.todo} for e in entries]
        print(json.dumps(documents if arguments.code is None else documents[0]))
    elif arguments.code is None:
        render.table("Message codes", ("code", "means"), [(e.code, e.means) for e in entries])
    else:
        print(f"{entries[0].code}\n  {entries[0].means}\n  What to do: {entries[0].todo}")
    return Exit.OK


def _whom(arguments: argparse.Namespace) -> dict[str, str | None]:
    """A VE, all with a label, or the node, which is meant where nothing is named."""
    if sum((arguments.ve is not None, arguments.label is not None, arguments.node)) > 1:
        print("fswatch: a VE, or --label KEY=VALUE, or --node: only one of them", file=sys.stderr)
        raise SystemExit(Exit.USAGE)
    return {"target": arguments.ve, "label": arguments.label}


def _directories(arguments: argparse.Namespace) -> list[Path]:
    """Those of rules that are only tried; empty: the rules in force are meant."""
    return [Path(directory) for directory in arguments.rules]
