"""Rules that are saved, mutes, channels and refused requests, at a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.system import rules
from tests.system.conftest import PROJECT, fswatch, wait_until


def kinds(receiver, about: str) -> list[str]:
    """What the receiver was told of rules or of ve101; the machine has faults of its own."""
    prefix = f"org.fswatchd.{about}."
    found = [notice for _, notice in receiver.notices if notice["type"].startswith(prefix)]
    if about == "incident":
        found = [notice for notice in found if notice["subject"] == "declared:ve101"]
    return [notice["type"].removeprefix(prefix) for notice in found]


def configure(daemon, receiver, work, **more: Any) -> None:
    (work / "secret").write_text(receiver.secret)
    channels = rules.channel(receiver.url, work / "secret")
    daemon.configure(rules=rules.TELL, channels=channels, **more)


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def trigger(ve) -> None:
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")


def test_rules_that_are_saved_are_in_force_and_bad_ones_are_told(daemon, receiver, work) -> None:
    configure(daemon, receiver, work)
    daemon.start()
    new = work / "rules.d" / "60-new.toml"
    new.write_text('[[rule]]\nname = "new"\nmod = 1\n')
    wait_until(lambda: kinds(receiver, "rules") == ["rejected"], 60)
    assert "60-new.toml" in daemon.status()["rules"]["problems"][0]
    assert daemon.status()["rules"]["count"] == 1
    done = fswatch(daemon, "rules", "list")
    assert "not in force [FSW-RULE-LAST-GOOD]" in done.stdout
    new.write_text('[[rule]]\nname = "new"\n[[rule.step]]\ndo = "notify"\n')
    wait_until(lambda: kinds(receiver, "rules") == ["rejected", "accepted"], 60)
    listed = answer(fswatch(daemon, "rules", "list", "--json"))
    assert [rule["name"] for rule in listed["rules"]] == ["tell", "new"]
    # The first one matches everything.
    assert "FSW-RULE-UNREACHABLE" not in listed["problems"]
    assert "never used" in listed["warnings"][0]


def test_a_channel_is_tried_by_a_real_round_trip(daemon, receiver, work) -> None:
    configure(daemon, receiver, work)
    daemon.start()
    done = fswatch(daemon, "notify", "test", "--json")
    (tried,) = answer(done)["channels"]
    assert (done.returncode, tried["channel"], tried["status"]) == (0, "ops", 204)
    assert (tried["signed"], tried["through_outbox"]) == (True, False)
    assert tried["latency_s"] > 0
    assert kinds(receiver, "channel") == ["test"]
    assert "past the outbox" in fswatch(daemon, "notify", "test", "ops").stdout
    receiver.secret = "another"  # the receiver answers 401 now
    done = fswatch(daemon, "notify", "test", "--json")
    (tried,) = answer(done)["channels"]
    assert (done.returncode, tried["delivered"], tried["status"]) == (2, False, 401)
    receiver.close()
    done = fswatch(daemon, "notify", "test", "--json")
    (tried,) = answer(done)["channels"]
    assert (done.returncode, tried["status"]) == (2, None)
    assert tried["error"]
    done = fswatch(daemon, "notify", "test", "nonsense")
    assert (done.returncode, "FSW-UNKNOWN-CHANNEL" in done.stderr) == (64, True)


def test_without_a_channel_nobody_would_be_told(daemon) -> None:
    daemon.configure(rules=rules.TELL)
    daemon.start()
    done = fswatch(daemon, "notify", "test")
    assert done.returncode == 1
    assert "nobody would be told" in done.stdout


def ask_as(daemon, work, user: str, group: str, calls: list[str]) -> list[str]:
    """What a process of this user and group is answered to each POST: a code, or DONE."""
    # The interpreter and the project may be out of reach for him: a copy, the system's Python.
    copy = work / "pkg"
    if not copy.exists():
        copy.mkdir()
        subprocess.run(["cp", "-r", str(PROJECT / "fswatchd"), str(copy / "fswatchd")], check=True)
        work.chmod(0o755)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fswatchd.client import Client, ClientError\n"
        "for path in sys.argv[3:]:\n"
        "    try: Client(sys.argv[2]).post('/v1/' + path, {}); print('DONE')\n"
        "    except ClientError as error: print(error.message_code)\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", script, str(copy), str(daemon.socket), *calls],
        capture_output=True,
        text=True,
        user=user,
        group=group,
        extra_groups=["nogroup"],
        cwd="/",
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


def test_whom_the_rule_names_may_answer_it_and_nobody_else(daemon, make_ve, work) -> None:
    group = "nogroup"
    asking = rules.repair(mode='"approve"') + "\n"
    asking = asking.replace("[[rule.step]]", 'approvers = ["nobody", "@games"]\n[[rule.step]]', 1)
    daemon.configure(rules=asking, more=f'[api]\ngroup = "{group}"')
    ve = make_ve(quiet=True)
    ve.declare()
    ve.start()
    daemon.start()
    daemon.wait_until_known(ve.name)
    trigger(ve)
    incident = daemon.wait_for_incident("waiting")
    deny, approve = (f"incidents/{incident['id']}/{word}" for word in ("deny", "approve"))
    refused = "FSW-REFUSED-NOT-APPROVER"
    # Not he who is only in a group that may read; not what the rule does not ask.
    assert ask_as(daemon, work, "daemon", "daemon", [approve, deny]) == [refused] * 2
    others = ["disarm", f"incidents/{incident['id']}/ack", "incidents/none/approve"]
    root_only = ["FSW-REFUSED-NOT-ROOT"] * 2
    assert ask_as(daemon, work, "nobody", group, others) == [*root_only, refused]
    assert daemon.incidents("ve101")[0]["state"] == "waiting"
    assert {entry["who"] for entry in daemon.status()["refused"]} == {"daemon", "nobody"}
    assert ask_as(daemon, work, "daemon", "games", [approve]) == ["DONE"]
    assert "approved by daemon" in daemon.why(incident["id"])


def test_who_may_not_change_anything_is_recorded_over_a_restart(daemon, work) -> None:
    daemon.configure(rules=rules.TELL, more='[api]\ngroup = "nogroup"')
    daemon.start()
    calls = ["disarm", "disarm", "notify/test", "incidents/x/mute"]
    done = ask_as(daemon, work, "nobody", "nogroup", calls)
    assert done == ["FSW-REFUSED-NOT-ROOT"] * 4
    assert daemon.status()["disarmed"] == []
    entries = {entry["what"]: entry for entry in daemon.status()["refused"]}
    assert entries["POST /v1/disarm"]["count"] == 2
    assert {entry["who"] for entry in entries.values()} == {"nobody"}
    assert "POST /v1/incidents/{id}/mute" in entries
    assert "refused: nobody: POST /v1/disarm" in fswatch(daemon, "status").stdout
    daemon.stop()
    daemon.start()
    assert {entry["what"] for entry in daemon.status()["refused"]} == set(entries)


@pytest.fixture
def ve(daemon, make_ve, receiver, work):
    made = make_ve(quiet=True, labels={"tier": "gold"})
    configure(daemon, receiver, work)
    made.declare()
    made.start()
    daemon.start()
    daemon.wait_until_known(made.name)
    return made


def test_a_mute_holds_over_a_restart_and_lifts_when_it_gets_worse(daemon, ve, receiver) -> None:
    trigger(ve)
    incident = daemon.wait_for_incident()
    wait_until(lambda: "opened" in kinds(receiver, "incident"))
    wait_until(lambda: not daemon.status()["notices"]["waiting"]["ops"])
    done = fswatch(daemon, "mute", incident["id"], "--for", "1d", "--reason", "new disk", "--json")
    muted = answer(done)["muted"]
    assert (done.returncode, muted["by"], muted["reason"]) == (0, "root", "new disk")
    assert ", muted until" in fswatch(daemon, "status").stdout
    assert "Muted       by root until" in daemon.why(incident["id"])
    told = len(kinds(receiver, "incident"))
    daemon.kill()
    daemon.start()
    daemon.wait_until_known(ve.name)
    assert daemon.incidents("ve101")[0]["muted"] == muted
    before = daemon.incidents("ve101")[0]["events"]
    trigger(ve)
    wait_until(lambda: daemon.incidents("ve101")[0]["events"] > before)
    assert len(kinds(receiver, "incident")) == told
    ve.ask("shutdown")
    wait_until(lambda: len(kinds(receiver, "incident")) > told)
    assert daemon.incidents("ve101")[0]["muted"] is None
    assert "no longer muted: it is shutdown now too" in daemon.why(incident["id"])
    done = fswatch(daemon, "unmute", incident["id"])
    assert (done.returncode, "FSW-CONFLICT-MUTED" in done.stderr) == (1, True)


def test_a_hypothetical_event_is_decided_about_with_the_nodes_state(daemon, ve, work) -> None:
    file = work / "event.json"
    file.write_text('{"class": "corruption", "ves": ["ve101"]}')
    (work / "try").mkdir()
    gold = rules.REPAIR.replace("STRATEGY", "clone")
    (work / "try" / "a.toml").write_text(gold.replace("mode", 'match.label.tier = "gold"\nmode'))
    done = fswatch(daemon, "rules", "test", "--event", str(file), "--json")
    found = answer(done)
    assert (done.returncode, found["state"], found["rules"]) == (0, "daemon", "in force")
    assert (found["decision"]["verdict"], found["decision"]["rule"]) == ("notify", "tell")
    assert found["filesystem"] == os.path.basename(ve.device)
    again = ("rules", "test", "--event", str(file), "--rules", str(work / "try"), "--json")
    found = answer(fswatch(daemon, *again))
    assert (found["decision"]["verdict"], found["decision"]["rule"]) == ("act", "repair")
    fswatch(daemon, "disarm", "ve101", "--reason", "storage move")
    found = answer(fswatch(daemon, *again))
    assert found["decision"]["waiting_for"] == "armed"
    file.write_text('{"class": "recovered", "ves": ["ve101"]}')
    found = answer(fswatch(daemon, *again))
    assert (found["decision"]["verdict"], found["filesystem"]) == (
        "none",
        os.path.basename(ve.device),
    )
    file.write_text('{"class": "corruption", "ves": ["nonsense"]}')
    assert fswatch(daemon, *again).returncode == 64
    assert not [one for one in daemon.incidents("ve101") if one["class"] == "corruption"]
