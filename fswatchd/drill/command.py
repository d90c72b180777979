"""The drill from its first check to its verdict."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fswatchd.client import Client, ClientError
from fswatchd.drill import janitor, measure, scene, ve
from fswatchd.drill.control import NS, ControlServer
from fswatchd.drill.damage import Fault, Scene
from fswatchd.drill.faults import FAULTS, USUAL
from fswatchd.drill.measure import Verdict
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.private import PrivateDaemon
from fswatchd.drill.receiver import Receiver
from fswatchd.drill.scene import BYSTANDER, TARGET, DrillError
from fswatchd.errors import UnknownTargetError
from fswatchd.exitcode import Exit
from fswatchd.units import parse_size, show_duration

DEFAULT_PARENT = Path("/var/tmp")  # noqa: S108 - a directory of our own is made in it, mode 0700
_BASELINE_S = 2.0
_QUIET_S = 3.0
# When the drill gives up, on however slow a node. What it says of times was measured.
_DETECT_TIMEOUT_S = 60.0
_IDLE_TIMEOUT_S = 15.0
_END_TIMEOUT_S = 1800.0
_WRITABLE_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60
_ASK_AGAIN_S = 0.02
_ENDED = {"closed", "needs-operator"}
_IDLE = {"open", "waiting"}
_OF_A_REPAIR = {"contained", "repaired", "verified"}


def run(arguments: argparse.Namespace, client: Client) -> int:
    """`fswatch drill`: 0 when it passed, 2 when not.

    Raises UnknownTargetError for a fault that does not exist, ClientError where root is missing.
    """
    fault = FAULTS[arguments.fs].get(arguments.fault or USUAL[arguments.fs])
    if fault is None:
        raise UnknownTargetError(
            f"{arguments.fs} has no fault {arguments.fault!r}",
            hint=f"there are: {', '.join(FAULTS[arguments.fs])}",
            code="FSW-UNKNOWN-FAULT",
        )
    if os.geteuid() != 0:
        message = "the drill mounts filesystems and needs root"
        raise ClientError(message, "use sudo", Exit.CRITICAL, "FSW-REFUSED")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    drill = Drill(arguments, fault, client)
    try:
        scene.check_tools(arguments.fs)
        result = drill.run()
    except (DrillError, ClientError, OSError) as error:
        result = drill.failed(str(error))
    except KeyboardInterrupt:
        result = drill.failed("interrupted")
    _show(result, as_json=arguments.json)
    return Exit.OK if result["passed"] else Exit.CRITICAL


class Drill:
    """One drill."""

    def __init__(self, arguments: argparse.Namespace, fault: Fault, client: Client) -> None:
        self._arguments = arguments
        self._fault = fault
        self._client = client
        self._other: Client | None = None
        self._size = parse_size(arguments.size)
        self._quiet = arguments.json
        self._named_ns: int | None = None
        self._result: dict[str, Any] = {
            "fs": arguments.fs,
            "fault": fault.name,
            "kernel": platform.release(),
            "passed": False,
            "why_failed": [],
            "incident": None,
            "sources": [],
            "timeline_s": measure.timeline(None, 0),
            "timeline_is": "reached",
            "outage_s": None,
            "write_pause_s": None,
            "files": None,
            "acked": None,
            "bystander": None,
        }

    def failed(self, why: str) -> dict[str, Any]:
        """The result of a drill that could not be finished."""
        return {**self._result, "passed": False, "why_failed": [*self._result["why_failed"], why]}

    def run(self) -> dict[str, Any]:
        """Everything; what was made is gone when this returns or raises."""
        verdict = Verdict()
        parent = Path(self._arguments.dir) if self._arguments.dir else DEFAULT_PARENT
        paths = ScenePaths.new(parent)
        try:
            with ExitStack() as stack:
                if not self._arguments.keep:
                    stack.enter_context(_janitor(paths))
                self._drill(paths, stack, verdict)
        finally:
            left = [] if self._arguments.keep else janitor.leftovers(paths)
            verdict.expect(not left, f"left behind: {', '.join(left)}")
            self._result["why_failed"] = verdict.why_failed
        if self._arguments.keep:
            self._say(f"kept: {paths.directory}")
        self._result["passed"] = verdict.passed
        return self._result

    def _drill(self, paths: ScenePaths, stack: ExitStack, verdict: Verdict) -> None:
        if self._arguments.private:
            daemon = PrivateDaemon(paths, self._arguments.without)
            stack.callback(daemon.stop)
            daemon.wait()
            self._other, self._client = self._client, daemon.client
        self._say("building a scratch host filesystem and two VEs")
        contents = self._build(paths)
        control = ControlServer(paths.control)
        stack.callback(control.close)
        receiver = Receiver()
        stack.callback(receiver.close)
        ves = {name: self._register(paths, name, receiver) for name in (TARGET, BYSTANDER)}
        for ve_id in ves.values():
            stack.callback(self._forget, ve_id)
        self._tell_other(paths, stack)
        for name in ves:
            _start(paths, name)
            if not control.wait_for(name, _WRITABLE_TIMEOUT_S):
                raise DrillError(f"the scratch VE {name} does not read and write")
        self._wait_until_known(ves)
        baseline_ns = time.monotonic_ns()
        time.sleep(_BASELINE_S)
        self._say(f"fault: {self._fault.name}")
        injected_ns = time.monotonic_ns()
        damaged = Scene(paths=paths, control=control)
        self._fault.inject(damaged)
        incident = self._follow(ves[TARGET], damaged)
        looked_ns = time.monotonic_ns()
        if self._fault.name == "none":
            self._judge_none(verdict, ves)
        else:
            self._judge_incident(verdict, incident, receiver)
        after_ns = time.monotonic_ns()
        writable = control.wait_for_ack_after(TARGET, after_ns, _WRITABLE_TIMEOUT_S)
        verdict.expect(writable, "the VE does not write any more")
        until_ns = time.monotonic_ns()
        self._result |= {
            "incident": incident["id"] if incident else None,
            "sources": incident["sources"] if incident else [],
            "timeline_s": self._timeline(incident, injected_ns, looked_ns),
            "timeline_is": _timeline_is(self._fault, incident),
            "outage_s": measure.outage_s(control.records[TARGET], injected_ns, until_ns),
            "write_pause_s": measure.write_pause_s(control.records[TARGET], injected_ns, until_ns),
            "bystander": measure.bystander(
                control.records[BYSTANDER], baseline_ns, injected_ns, until_ns
            ),
        }
        self._judge_bystander(verdict)
        if writable:
            self._judge_files(verdict, paths, control, contents[TARGET].paths)
        if writable and self._named_ns is not None:
            self._result["timeline_s"] |= self._without_repair(control, injected_ns, after_ns)

    def _without_repair(
        self, control: ControlServer, injected_ns: int, after_ns: int
    ) -> dict[str, float]:
        """What stands for a repair where there is none, as the drill has seen it.

        `contained` is when the incident was decided and named what is lost, `repaired` the VE's
        first write after that was known to all, `verified` when everything else had been read back.
        """
        write = next(moment for moment in control.records[TARGET].acks if moment > after_ns)
        decided_ns = injected_ns + round((self._result["timeline_s"]["decided"] or 0) * NS)
        moments = {
            "contained": max(self._named_ns or after_ns, decided_ns),
            "repaired": write,
            "verified": time.monotonic_ns(),
        }
        return {name: round((at - injected_ns) / NS, 6) for name, at in moments.items()}

    def _timeline(
        self, incident: dict[str, Any] | None, injected_ns: int, looked_ns: int
    ) -> dict[str, float | None]:
        if _timeline_is(self._fault, incident) == "reached":
            return measure.timeline(incident, injected_ns)
        return measure.not_reached((looked_ns - injected_ns) / NS)

    # --- preparing ------------------------------------------------------------------------------

    def _build(self, paths: ScenePaths) -> dict[str, scene.Content]:
        # Room for both images, a clone, a preview, and the reserve that the daemon insists on.
        scene.build_host(paths, 4 * self._size + (8 << 30))
        contents = {
            name: scene.build_ve(
                paths,
                name,
                size_bytes=self._size,
                files=self._arguments.files if name == TARGET else 300,
                features=list(self._fault.features) if name == TARGET else [],
                options=self._fault.options,
                fstype=self._arguments.fs,
                direct_io=self._fault.direct_io and name == TARGET,
            )
            for name in (TARGET, BYSTANDER)
        }
        if self._fault.prepare is not None:
            self._fault.prepare(paths.image(TARGET))
        return contents

    def _describe(self, paths: ScenePaths, name: str) -> dict[str, Any]:
        spec = paths.spec(name)
        return {
            "name": name,
            "cgroup": paths.cgroup(name),
            "volume": [{"image": str(paths.image(name)), "mountpoint": "/"}],
            "start": ve.command("start", spec),
            "stop": ve.command("stop", spec),
            "kill": ve.command("kill", spec),
        }

    def _register(self, paths: ScenePaths, name: str, receiver: Receiver) -> str:
        notify = {"url": receiver.url, "secret": receiver.secret}
        body = {"ve": self._describe(paths, name), "notify": notify}
        return str(self._client.post("/v1/scratch-ves", body)["id"])

    def _tell_other(self, paths: ScenePaths, stack: ExitStack) -> None:
        """A daemon that runs beside the private one must not take the drill for an emergency."""
        if self._other is None:
            return
        for name in (TARGET, BYSTANDER):
            body = {"ve": self._describe(paths, name), "hands_off": True}
            with suppress(ClientError):
                ve_id = self._other.post("/v1/scratch-ves", body)["id"]
                stack.callback(_quietly_forget, self._other, ve_id)

    def _forget(self, ve_id: str) -> None:
        _quietly_forget(self._client, ve_id)

    def _wait_until_known(self, ves: dict[str, str]) -> None:
        deadline = time.monotonic() + _DETECT_TIMEOUT_S
        while True:
            asked = time.monotonic()
            status = self._client.get("/v1/status")
            known = {entry["id"] for entry in status["ves"] if entry["filesystems"]}
            if set(ves.values()) <= known:
                return
            if time.monotonic() > deadline:
                raise DrillError("the daemon does not see the scratch VEs' filesystems")
            _leave_alone(asked)

    # --- watching -------------------------------------------------------------------------------

    def _follow(self, ve_id: str, damaged: Scene) -> dict[str, Any] | None:
        """The target's incident when it has ended; None when none was opened."""
        relieve = self._fault.relieve
        timeout_s = _QUIET_S if self._fault.name == "none" else _DETECT_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        said, idle_since, begun = "", None, False
        while (asked := time.monotonic()) < deadline:
            found = self._own_incidents(ve_id)
            if found:
                if not begun:
                    begun, deadline = True, time.monotonic() + _END_TIMEOUT_S
                said = self._tell(found[0], said)
                if relieve and found[0]["waiting_for"] == "cause":
                    self._say("the incident waits for its cause, which is taken away now")
                    relieve(damaged)
                    relieve = None
                idle_since = self._idle_since(found[0], idle_since)
                over = self._is_over(found[0])
                if over and found[0]["timeline_mono_ns"].get("notified"):
                    return dict(found[0])
                if over:
                    deadline = min(deadline, time.monotonic() + _QUIET_S)
            _leave_alone(asked)
        found = self._own_incidents(ve_id)
        return dict(found[0]) if found else None

    def _is_over(self, incident: dict[str, Any]) -> bool:
        """Whether nothing more will be done about it; a lost file is named some time later."""
        if self._fault.lost_file is None:
            return incident["state"] in _ENDED
        if self._named_ns is None and self._fault.lost_file in _lost_paths(incident):
            self._named_ns = time.monotonic_ns()
        return self._named_ns is not None and incident["state"] in {*_ENDED, self._fault.ends_as}

    def _own_incidents(self, ve_id: str) -> list[dict[str, Any]]:
        """Those of the VE's own filesystem: not of the one that its image is on."""
        found = self._client.get("/v1/incidents", all="1", ve=ve_id)["incidents"]
        return [one for one in found if ve_id not in one["ves_through_stack"]]

    def _idle_since(self, incident: dict[str, Any], before: float | None) -> float | None:
        """Since when nothing has been done about it; raises DrillError when nothing will be."""
        if incident["state"] not in _IDLE:
            return None
        if before is not None and time.monotonic() - before > _IDLE_TIMEOUT_S:
            why = str(self._client.get(f"/v1/incidents/{incident['id']}/why")["text"])
            refused = [line.strip() for line in why.splitlines() if line.startswith("  NO ")]
            reason = "; ".join(refused) or f"it is {incident['state']}"
            raise DrillError(f"the daemon does nothing about {incident['id']}: {reason}")
        return before if before is not None else time.monotonic()

    def _tell(self, incident: dict[str, Any], said: str) -> str:
        running = [step for step in incident["steps"] if step["state"] == "running"]
        text = f"incident {incident['id']}: {incident['class']}, {incident['state']}"
        if running and running[0]["detail"]:
            text += f": {running[0]['detail']}"
        if text != said:
            self._say(text)
        return text

    # --- judging --------------------------------------------------------------------------------

    def _judge_none(self, verdict: Verdict, ves: dict[str, str]) -> None:
        for ve_id in ves.values():
            found = self._client.get("/v1/incidents", all="1", ve=ve_id)["incidents"]
            verdict.expect(not found, f"an incident was opened for nothing: {ve_id}")

    def _judge_incident(
        self, verdict: Verdict, incident: dict[str, Any] | None, receiver: Receiver
    ) -> None:
        if incident is None:
            verdict.expect(
                holds=False, otherwise="no incident was opened: the fault went unnoticed"
            )
            return
        outcome = incident["outcome"] or incident["state"]
        detail = next((s["detail"] for s in reversed(incident["steps"]) if s["detail"]), "")
        wanted = self._fault.ends_as
        verdict.expect(outcome == wanted, f"the incident ended as {outcome}: {detail}")
        if self._fault.lost_file is not None:
            named = self._fault.lost_file in _lost_paths(incident)
            verdict.expect(named, f"the incident does not name {self._fault.lost_file}")
        for milestone in measure.MILESTONES:
            if self._fault.lost_file is not None and milestone in _OF_A_REPAIR:
                continue
            known = incident["timeline_mono_ns"].get(milestone)
            verdict.expect(known is not None, f"it was never {milestone}")
        verdict.expect(not receiver.bad_signatures, "a notice had a wrong signature")
        kinds = [notice["type"].rpartition(".")[2] for _, notice in receiver.notices]
        told = "opened" in kinds and (wanted in kinds or self._fault.lost_file is not None)
        verdict.expect(told, f"notices received: {kinds}")

    def _judge_bystander(self, verdict: Verdict) -> None:
        seen = self._result["bystander"]
        verdict.expect(seen["errors"] == 0, f"the bystander saw {seen['errors']} errors")
        verdict.expect(seen["writes"] > 0, "the bystander did not write")

    def _judge_files(
        self, verdict: Verdict, paths: ScenePaths, control: ControlServer, before: list[str]
    ) -> None:
        acked = list(control.records[TARGET].acked)
        measure.drop_caches(paths)
        saved = measure.salvaged(paths.image(TARGET))
        files, found = measure.compare(control, before, acked, saved, self._fault.expected_lost)
        self._result |= {"files": asdict(files), "acked": asdict(found)}
        verdict.expect(
            files.lost <= files.expected_lost, f"{files.lost} files are lost with their content"
        )
        verdict.expect(found.lost == 0, f"{found.lost} acknowledged writes are lost")
        verdict.expect(found.written > 0, "the writer has written nothing")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


@contextmanager
def _janitor(paths: ScenePaths) -> Iterator[None]:
    """Something that cleans up when this process closes the pipe, or dies."""
    process = subprocess.Popen(
        janitor.command(paths), stdin=subprocess.PIPE, start_new_session=True, cwd="/"
    )
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def _lost_paths(incident: dict[str, Any]) -> list[str]:
    return [str(file["path"]) for file in incident["lost"]]


def _start(paths: ScenePaths, name: str) -> None:
    done = subprocess.run(
        ve.command("start", paths.spec(name)),
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise DrillError(f"the scratch VE {name} does not start: {done.stderr.strip()}")


def _leave_alone(asked: float) -> None:
    """Let the daemon work at least as long as its answer to the question of `asked` took."""
    time.sleep(max(_ASK_AGAIN_S, time.monotonic() - asked))


def _quietly_forget(client: Client, ve_id: str) -> None:
    with suppress(ClientError):  # the daemon forgets it anyway when this process ends
        client.delete(f"/v1/scratch-ves/{ve_id}")


def _timeline_is(fault: Fault, incident: dict[str, Any] | None) -> str:
    """What the times of the timeline are: when something was reached, or until when it was not."""
    return "not-within" if fault.name == "none" and incident is None else "reached"


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    print()
    within = "" if result["timeline_is"] == "reached" else "not within "
    for name, seconds in result["timeline_s"].items():
        prefix = within if seconds else ""
        print(f"  {name:<11} {'-' if seconds is None else f'{prefix}{seconds:8.3f} s'}")
    if result["outage_s"] is not None:
        print(f"  reads stopped for {show_duration(result['outage_s'])}", end=", ")
        print(f"writes for {show_duration(result['write_pause_s'])}")
    for key in ("files", "acked", "bystander"):
        if result[key]:
            print(f"  {key}: " + ", ".join(f"{k} {v}" for k, v in result[key].items()))
    for reason in result["why_failed"]:
        print(f"  - {reason}")
    print("passed" if result["passed"] else "FAILED")
