"""The API from outside: who may do what, and what it answers."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
import threading

import pytest

from fswatchd.client import Client, ClientError
from fswatchd.exitcode import Exit
from tests.system import rules
from tests.system.conftest import PROJECT, fswatch, wait_until


@pytest.fixture
def ve(daemon, make_ve):
    made = make_ve()
    daemon.configure(mode="observe", rules=rules.TELL, more='[api]\ngroup = "nogroup"\n')
    made.declare()
    made.start()
    daemon.start()
    daemon.wait_until_known("ve101")
    return made


def trigger(ve) -> None:
    with open(f"/sys/fs/ext4/{os.path.basename(ve.device)}/trigger_fs_error", "w") as file:
        file.write("test")


def test_exit_codes_are_those_of_a_monitoring_check(daemon, ve) -> None:
    assert fswatch(daemon, "status", "ve101").returncode == Exit.OK
    trigger(ve)
    daemon.wait_for_incident("open")
    assert fswatch(daemon, "status", "ve101").returncode == Exit.WARNING
    for name in ("ve999", ""):
        assert fswatch(daemon, "status", name).returncode == Exit.USAGE
        assert fswatch(daemon, "incidents", "--ve", name).returncode == Exit.USAGE
        assert fswatch(daemon, "events", "--ve", name).returncode == Exit.USAGE
    daemon.stop()
    done = fswatch(daemon, "status")
    assert done.returncode == Exit.UNKNOWN
    assert "does fswatchd run?" in done.stderr


def test_the_status_has_the_contracts_keys(daemon, ve) -> None:
    document = json.loads(fswatch(daemon, "status", "--json").stdout)
    assert {"node", "mode", "since", "sources", "ves", "incidents"} <= set(document)
    assert {"name", "state", "events", "lost", "detail"} <= set(document["sources"][0])
    (found,) = [v for v in document["ves"] if v["name"] == "ve101"]
    assert {"id", "platform", "name", "state", "labels", "filesystems", "incidents"} <= set(found)
    (filesystem,) = found["filesystems"]
    assert set(filesystem) >= {
        "device", "devno", "fstype", "uuid", "mountpoints", "health", "backing"
    }  # fmt: skip
    assert filesystem["mountpoints"] == ["/"]
    assert filesystem["uuid"]


def test_an_unknown_ve_gets_near_names(daemon, ve) -> None:
    done = fswatch(daemon, "status", "ve110")
    assert done.returncode == 64
    assert "ve101" in done.stderr


def test_an_incident_that_does_not_exist_is_64(daemon, ve) -> None:
    assert fswatch(daemon, "incident", "nonsense").returncode == 64
    assert fswatch(daemon, "why", "nonsense").returncode == 64


def test_an_incident_is_found_by_the_end_of_its_id(daemon, ve) -> None:
    trigger(ve)
    incident = daemon.wait_for_incident("open")
    done = fswatch(daemon, "why", incident["id"][-5:])
    assert done.returncode == 0
    assert incident["id"] in done.stdout
    assert "Evidence" in done.stdout


def test_a_member_of_the_group_may_read_and_change_nothing(daemon, ve) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from fswatchd.client import Client, ClientError\n"
        "client = Client(sys.argv[2])\n"
        "print(client.get('/v1/status')['node'])\n"
        "for path in ('/v1/repair', '/v1/disarm', '/v1/arm', '/v1/scratch-ves'):\n"
        "    try: client.post(path, {'target': 've101', 'reason': 'x'}); print('DONE', path)\n"
        "    except ClientError as error: print(error)\n"
    )
    # The interpreter and the project may be out of reach for nobody: a copy, the system's Python.
    copy = daemon.work / "pkg"
    copy.mkdir()
    subprocess.run(["cp", "-r", str(PROJECT / "fswatchd"), str(copy / "fswatchd")], check=True)
    daemon.work.chmod(0o755)
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", script, str(copy), str(daemon.socket)],
        capture_output=True,
        text=True,
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "hn1", done.stderr
    assert lines[1:] == ["only root may change anything"] * 4
    assert daemon.status()["disarmed"] == []


def test_somebody_else_may_not_even_read(daemon, ve) -> None:
    mode = daemon.socket.stat().st_mode & 0o777
    assert mode == 0o660
    assert daemon.socket.stat().st_gid == grp.getgrnam("nogroup").gr_gid


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/repair", {}),
        ("/v1/repair", {"target": 3}),
        ("/v1/disarm", {"target": "ve101"}),
        ("/v1/disarm", {"target": "ve101", "reason": "x", "for": "soon"}),
        ("/v1/disarm", {"target": "ve101", "reason": "x", "for": 5}),
        ("/v1/arm", {"target": ["ve101"]}),
        ("/v1/scratch-ves", {}),
        ("/v1/scratch-ves", {"ve": {"name": "x y"}}),
        ("/v1/scratch-ves", {"ve": {"name": "x", "volume": [{"device": "/dev/sda"}]}}),
    ],
)
def test_wrong_requests_are_refused_with_words(daemon, ve, path: str, body: dict) -> None:
    with pytest.raises(ClientError) as caught:
        daemon.client.post(path, body)
    assert caught.value.code == Exit.USAGE
    assert daemon.answers()


def test_a_tenants_image_cannot_be_registered_as_scratch(daemon, ve) -> None:
    body = {"ve": {"name": "x", "volume": [{"image": str(ve.image)}]}}
    with pytest.raises(ClientError, match="not scratch"):
        daemon.client.post("/v1/scratch-ves", body)


def test_events_can_be_followed_from_a_cursor_without_gap_or_repeat(daemon, ve) -> None:
    trigger(ve)
    daemon.wait_for_incident("open")
    first = wait_until(lambda: daemon.client.get("/v1/events")["events"])
    seen: list[int] = []

    def follow() -> None:
        for message in Client(str(daemon.socket)).follow("/v1/events/stream", since=0):
            if message.event == "message" and message.data is not None:
                seen.append(message.data["cursor"])

    threading.Thread(target=follow, daemon=True).start()
    wait_until(lambda: len(seen) >= len(first))
    for _ in range(5):
        trigger(ve)
    last = wait_until(
        lambda: (
            (events := daemon.client.get("/v1/events")["events"])
            and events[-1]["cursor"] > first[-1]["cursor"]
            and events[-1]["cursor"]
        )
    )
    wait_until(lambda: seen and seen[-1] >= last)
    assert seen == list(range(1, seen[-1] + 1))


def test_events_of_one_ve_only(daemon, ve) -> None:
    trigger(ve)
    daemon.wait_for_incident("open")
    done = fswatch(daemon, "events", "--json", "--ve", "ve101")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events
    assert all(event["ves"] == ["declared:ve101"] for event in events)


def test_a_bad_rule_file_keeps_the_running_rules_and_shows_in_status(daemon, ve, work) -> None:
    (work / "rules.d" / "60-bad.toml").write_text('[[rule]]\nname = "x"\nmod = 1\n')
    os.kill(daemon.pid, 1)
    wait_until(lambda: daemon.status()["rules"]["problems"])
    assert daemon.status()["rules"]["count"] == 1
    done = fswatch(daemon, "status")
    assert "60-bad.toml" in done.stdout
    assert 'did you mean "mode"' in done.stdout
    (work / "rules.d" / "60-bad.toml").unlink()
    os.kill(daemon.pid, 1)
    wait_until(lambda: not daemon.status()["rules"]["problems"])


def test_who_disarms_and_arms_is_kept_with_the_reason(daemon, ve) -> None:
    argv = ("disarm", "ve101", "--reason", "storage move", "--for", "2h")
    assert fswatch(daemon, *argv).returncode == Exit.OK
    (disarmed,) = daemon.status()["disarmed"]
    assert (disarmed["by"], disarmed["reason"]) == ("root", "storage move")
    assert disarmed["until"] > daemon.status()["since"]
    assert fswatch(daemon, "repair", "ve101").returncode == Exit.WARNING
    assert fswatch(daemon, "arm", "ve101", "--reason", "it is moved").returncode == Exit.OK
    assert fswatch(daemon, "arm", "ve101").returncode == Exit.WARNING
    daemon.stop()
    daemon.start()
    told = [(one["what"], one["by"], one["reason"]) for one in daemon.status()["operations"]]
    assert told == [("disarm", "root", "storage move"), ("arm", "root", "it is moved")]


def test_why_somebody_has_acknowledged_is_in_the_story(daemon, ve) -> None:
    trigger(ve)
    incident = daemon.wait_for_incident("open")
    done = fswatch(daemon, "ack", incident["id"], "--reason", "a test of the disk", "--json")
    assert json.loads(done.stdout)["acknowledged_by"] == "root"
    assert "acknowledged by root: a test of the disk" in daemon.why(incident["id"])


def test_a_device_is_a_target_by_any_of_its_names(daemon, ve) -> None:
    daemon.wait_until_known("ve101")
    name = os.path.basename(ve.device)
    link = f"/dev/{daemon.work.name}"
    os.symlink(name, link)
    try:
        for target in (name, ve.device, link):
            done = fswatch(daemon, "repair", target, "--dry-run", "--json")
            assert json.loads(done.stdout)["ve"] == "declared:ve101", done.stderr
    finally:
        os.unlink(link)
    assert fswatch(daemon, "repair", link, "--dry-run").returncode == Exit.USAGE


def test_doctor_names_what_is_missing_and_what_to_do(daemon, ve) -> None:
    done = fswatch(daemon, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == Exit.WARNING
    assert "nobody would be told" in findings["channels"]["text"]
    assert findings["channels"]["remedy"]
    assert findings["root"]["level"] == "ok"
    assert findings["tool e2fsck"]["level"] == "ok"


def test_two_daemons_do_not_share_a_directory(daemon, ve) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fswatchd", "--config", str(daemon.config)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "another fswatchd" in done.stderr
    assert daemon.answers()


def test_two_daemons_do_not_share_what_they_keep(daemon, ve) -> None:
    other = daemon.config.with_name("other.toml")
    own = f'runtime_dir = "{daemon.socket.parent}"'
    text = daemon.config.read_text()
    assert own in text
    other.write_text(text.replace(own, f'runtime_dir = "{other.with_name("other")}"'))
    done = subprocess.run(
        [sys.executable, "-m", "fswatchd", "--config", str(other)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "another fswatchd uses" in done.stderr
    assert "state_dir" in done.stderr


def test_without_root_it_says_by_name_what_cannot_work(work) -> None:
    script = "import sys; from fswatchd.daemon import main; sys.exit(main(sys.argv[1:]))"
    work.chmod(0o755)
    home = work / "nobody"
    home.mkdir()
    os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
    config = work / "fswatchd.toml"
    config.write_text(
        f'[daemon]\nstate_dir = "{home}/state"\nruntime_dir = "{home}/run"\nves = []\n'
    )
    copy = work / "pkg"
    copy.mkdir()
    subprocess.run(["cp", "-r", str(PROJECT / "fswatchd"), str(copy / "fswatchd")], check=True)
    subprocess.run(["cp", "-r", str(PROJECT / "rules.d"), str(copy / "rules.d")], check=True)
    site = next(p for p in sys.path if p.endswith("site-packages"))
    subprocess.run(["cp", "-r", site, str(work / "site")], check=True)
    process = subprocess.Popen(
        ["/usr/bin/python3", "-B", "-c", script, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        user="nobody",
        group="nogroup",
        extra_groups=[],
        env={"PYTHONPATH": f"{copy}:{work / 'site'}"},
    )
    client = Client(str(home / "run" / "api.sock"))

    def answers() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            return bool(client.get("/v1/status"))
        except ClientError:
            return False

    try:
        wait_until(answers)
        findings = {f["name"]: f for f in client.get("/v1/doctor")["findings"]}
        assert findings["root"]["level"] == "critical"
        states = {s["name"]: s for s in client.get("/v1/status")["sources"]}
        assert states["fanotify"]["state"] == "unavailable"
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert "not root" in output
    for part in ("fanotify", "mount namespaces", "repair"):
        assert part in output
