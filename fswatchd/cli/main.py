"""Arguments of `fswatch`, and which command serves them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fswatchd import __version__
from fswatchd.cli import commands, policy_commands, streams
from fswatchd.client import DEFAULT_SOCKET, Client, ClientError
from fswatchd.errors import FswatchError, UnknownTargetError
from fswatchd.exitcode import Exit
from fswatchd.rules.modes import NODE_MODES
from fswatchd.units import parse_duration, parse_size

Command = Callable[[argparse.Namespace, Client], int]

_LAST_CURSOR = (1 << 63) - 1


class _Parser(argparse.ArgumentParser):
    """Wrong usage ends with 64, not with argparse's 2, which means "critical" here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(Exit.USAGE)


def _absolute(text: str) -> Path:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError("expected an absolute path")
    return Path(text)


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _size(text: str) -> str:
    try:
        parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _cursor(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _LAST_CURSOR):
        raise argparse.ArgumentTypeError(f"{text!r} is no cursor: it is a whole number from 0 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"of the daemon; default: $FSWATCH_SOCKET, then {DEFAULT_SOCKET}",
    )
    shared.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, for programs"
    )
    top = _Parser(
        prog="fswatch", description="Ask fswatchd, and tell it what to do.", parents=[shared]
    )
    top.add_argument("--version", action="version", version=f"fswatch {__version__}")
    sub = top.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    def add(name: str, serve: Command, text: str) -> argparse.ArgumentParser:
        command = sub.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(serve=serve)
        return command

    status = add("status", commands.status, "what is going on, on the node or in one VE")
    status.add_argument("ve", nargs="?", metavar="VE")

    incidents = add("incidents", commands.incidents, "open incidents")
    incidents.add_argument("--all", action="store_true", help="closed ones too")
    incidents.add_argument("--ve", metavar="VE")

    incident = add("incident", commands.incident, "one incident")
    incident.add_argument("id", metavar="ID")
    incident.add_argument(
        "--evidence", metavar="FILE", help="write what was seen before anything was done"
    )

    add("why", commands.why, "why something was, or was not, done about an incident").add_argument(
        "id", metavar="ID"
    )
    for name, serve, text in (
        ("approve", commands.approve, "permit what an incident waits for"),
        ("deny", commands.deny, "forbid what an incident waits for"),
        (
            "ack",
            commands.acknowledge,
            "somebody has seen the incident; ends a storm, and what needs an operator",
        ),
    ):
        answer = add(name, serve, text)
        answer.add_argument("id", metavar="ID")
        answer.add_argument("--reason", metavar="TEXT", default="")
        if name == "ack":
            answer.add_argument(
                "--recovered",
                action="store_true",
                help="it is well again, and is asked: what its device has reported counts no more",
            )

    events = add("events", commands.events, "what the sources have heard")
    events.set_defaults(endless=True)
    events.add_argument(
        "--follow", action="store_true", help="go on with what is heard from now on"
    )
    events.add_argument(
        "--since", type=_cursor, metavar="CURSOR", help="what comes after this one; 0: everything"
    )
    events.add_argument("--ve", metavar="VE")

    classify = add("classify", commands.classify, "what lines of a kernel log mean (no daemon)")
    classify.set_defaults(endless=True)
    classify.add_argument("file", nargs="?", metavar="FILE", help="default: standard input")
    classify.add_argument("--problems", action="store_true", help="only lines that are problems")

    _add_rules(add("rules", commands.group, "rule files, and what they do"), shared)
    _add_policy(add, shared)

    repair = add("repair", commands.repair, "repair the filesystem of a VE")
    repair.add_argument("target", metavar="TARGET", help="a VE, a device or a mount point")
    repair.add_argument("--dry-run", action="store_true", help="show what it would find and do")
    repair.add_argument(
        "--force", action="store_true", help="also a volume that was repaired again and again"
    )

    rollback = add("rollback", commands.rollback, "put the volume from before a repair in place")
    rollback.add_argument("id", metavar="INCIDENT")
    rollback.add_argument(
        "--to", metavar="PATH", help="a snapshot of the volume, in the directory of its image"
    )
    rollback.add_argument(
        "--discard-newer", action="store_true", help="give up what the VE has written since"
    )

    snapshot = add("snapshot", commands.snapshot, "keep a copy of a filesystem as it is now")
    snapshot.add_argument("target", metavar="TARGET", help="a VE, a device or a mount point")
    snapshot.add_argument("--reason", metavar="TEXT", default="")
    freeze = add("freeze", commands.freeze, "hold a VE's processes and its filesystems")
    freeze.add_argument("ve", metavar="VE")
    freeze.add_argument(
        "--for",
        type=_duration,
        dest="duration",
        metavar="TIME",
        default="60s",
        help="at the most; default: 60s",
    )
    freeze.add_argument("--reason", metavar="TEXT", default="")
    thaw = add("thaw", commands.thaw, "end a freeze")
    thaw.add_argument("ve", metavar="VE")
    thaw.add_argument("--reason", metavar="TEXT", default="")

    disarm = add("disarm", policy_commands.disarm, "nothing automatic any more, for a VE or others")
    disarm.add_argument("--reason", required=True, metavar="TEXT")
    disarm.add_argument(
        "--for",
        type=_duration,
        dest="duration",
        metavar="TIME",
        help='like "2h"; default: until arm',
    )
    arm = add("arm", policy_commands.arm, "end a disarm; and trust a daemon that does not itself")
    arm.add_argument("--reason", metavar="TEXT", default="")
    for command in (disarm, arm):
        command.add_argument("ve", nargs="?", metavar="VE")
        command.add_argument("--label", metavar="KEY=VALUE", help="all VEs with this label")
        command.add_argument("--node", action="store_true", help="the whole node (default)")

    add("doctor", commands.doctor, "is this node ready, and what to do about what is not")

    install = add("install", commands.install, "put units, rules, manual pages… in place (pip)")
    install.add_argument("--uninstall", action="store_true", help="take them away again")
    install.add_argument("--root", metavar="DIR", default="/", help="below which; default: /")
    install.add_argument(
        "--prefix",
        type=_absolute,
        metavar="DIR",
        default="/usr/local",
        help="what is not in /etc goes here; default: /usr/local",
    )
    install.add_argument(
        "--program", type=_absolute, metavar="PATH", help="fswatchd; default: beside fswatch"
    )
    install.add_argument(
        "--systemd", type=int, metavar="VERSION", help="for which; default: that of this node"
    )

    drill = add("drill", commands.drill, "a real fault on a scratch VE, handled by the daemon")
    drill.add_argument("--fs", default="ext4", choices=["ext4", "xfs", "btrfs"])
    drill.add_argument(
        "--fault", metavar="NAME", help="see fswatch(1); default: dir-block, for btrfs data-csum"
    )
    drill.add_argument("--private", action="store_true", help="with a daemon of its own")
    drill.add_argument("--keep", action="store_true", help="leave everything in place afterwards")
    drill.add_argument("--size", type=_size, default="512M", help="size of the scratch VE's image")
    drill.add_argument("--files", type=int, default=2000, help="files in the scratch VE")
    drill.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SOURCE",
        help="switch a source of the private daemon off (then the drill should fail)",
    )
    drill.add_argument("--dir", metavar="PATH", help="where to work; default: /var/tmp")
    return top


def _add_rules(rules: argparse.ArgumentParser, shared: _Parser) -> None:
    sub = rules.add_subparsers(dest="rules_command", required=True, parser_class=_Parser)
    check = sub.add_parser("check", parents=[shared], help="everything wrong with rule files")
    check.add_argument("paths", nargs="*", metavar="PATH", help="files or directories")
    check.set_defaults(serve=policy_commands.rules_check)
    listed = sub.add_parser(
        "list", parents=[shared], help="the rules, and how often they were used"
    )
    listed.set_defaults(serve=policy_commands.rules_list)
    test = sub.add_parser("test", parents=[shared], help="what would be decided about an event")
    test.add_argument("--event", required=True, metavar="FILE", help="JSON, see fswatch(1)")
    test.set_defaults(serve=policy_commands.rules_test)
    replay = sub.add_parser(
        "replay", parents=[shared], help="what the rules would have done with recorded events"
    )
    replay.add_argument(
        "--since",
        type=_duration,
        metavar="TIME",
        default="7d",
        help="before the newest event; default: 7d",
    )
    replay.add_argument("--events", metavar="FILE", help="lines of fswatch events --json")
    replay.add_argument("--mode", choices=NODE_MODES, help="instead of the node's recorded mode")
    replay.set_defaults(serve=policy_commands.rules_replay)
    for command in (listed, test, replay):
        command.add_argument(
            "--rules",
            action="append",
            default=[],
            metavar="DIR",
            help="these instead of those in force; several: a later one replaces by file name",
        )


def _add_policy(
    add: Callable[[str, Command, str], argparse.ArgumentParser], shared: _Parser
) -> None:
    mute = add("mute", policy_commands.mute, "no notices of an incident, until it gets worse")
    mute.add_argument("id", metavar="ID")
    mute.add_argument(
        "--for", type=_duration, dest="duration", metavar="TIME", required=True, help='like "1d"'
    )
    mute.add_argument("--reason", metavar="TEXT", default="")
    add("unmute", policy_commands.unmute, "end a mute").add_argument("id", metavar="ID")
    notify = add("notify", commands.group, "notification channels")
    sub = notify.add_subparsers(dest="notify_command", required=True, parser_class=_Parser)
    test = sub.add_parser("test", parents=[shared], help="a real round trip")
    test.add_argument("channel", nargs="?", metavar="CHANNEL", help="default: all")
    test.set_defaults(serve=policy_commands.notify_test)
    explain = add("explain", policy_commands.explain, "what a message code means, and what to do")
    explain.add_argument("code", nargs="?", metavar="CODE", help="default: list them")


def main(argv: list[str] | None = None) -> int:
    """The program."""
    output = streams.opened()
    try:
        try:
            return _command(argv, output)
        finally:
            sys.stdout.flush()
    except streams.OutputError as error:
        if error.reason is None:
            return Exit.OK
        print(f"fswatch: cannot print: {error.reason} [FSW-OUTPUT]", file=sys.stderr)
        return Exit.UNKNOWN


def _command(argv: list[str] | None, output: streams.Output) -> int:
    arguments = parser().parse_args(argv)
    arguments.json = getattr(arguments, "json", False)
    output.endless = getattr(arguments, "endless", False)
    client = Client(getattr(arguments, "socket", None))
    try:
        return int(arguments.serve(arguments, client))
    except ClientError as error:
        return _fail(arguments, error.message, error.hint, error.message_code, error.code)
    except UnknownTargetError as error:
        return _fail(arguments, error.message, error.hint, error.code, Exit.USAGE)
    except FswatchError as error:
        return _fail(arguments, error.message, error.hint, error.code, Exit.DATA)
    except KeyboardInterrupt:
        return 130


def _fail(
    arguments: argparse.Namespace, message: str, hint: str, message_code: str, code: Exit
) -> int:
    if arguments.json:
        print(json.dumps({"error": message, "hint": hint or None, "code": message_code}))
    print(f"fswatch: {message} [{message_code}]", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
    return code
