"""A daemon of the drill's own, with state of its own, beside whatever daemon runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fswatchd.client import Client, ClientError
from fswatchd.drill.paths import ScenePaths
from fswatchd.drill.scene import DrillError
from fswatchd.kernel import proc
from fswatchd.rules.files import embedded_rules

_START_TIMEOUT_S = 60.0

_CONFIG = """\
[daemon]
mode = "observe"
state_dir = "{directory}/state"
runtime_dir = "{directory}/run"
rules = ["{rules}"]
ves = []
[sources]
{sources}
"""


class PrivateDaemon:
    """Started with the drill, ended with it. `without` names sources to switch off."""

    def __init__(self, paths: ScenePaths, without: list[str]) -> None:
        self._paths = paths
        config = paths.directory / "fswatchd.toml"
        sources = "\n".join(f"{name} = false" for name in without)
        rules = embedded_rules()
        config.write_text(
            _CONFIG.format(directory=paths.directory, rules=rules, sources=sources),
            encoding="utf-8",
        )
        self._log = open(paths.directory / "daemon.log", "wb")  # noqa: SIM115 - lives as long
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fswatchd", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=str(Path(__file__).parents[2]),
        )
        started = proc.start_time(self._process.pid)
        paths.daemon_pid.write_text(f"{self._process.pid} {started}", encoding="ascii")
        self.client = Client(str(paths.directory / "run" / "api.sock"))

    def wait(self) -> None:
        """Return when it answers; raises DrillError with its log when it does not."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.client.get("/v1/status")
            except ClientError:
                time.sleep(0.02)
                continue
            return
        raise DrillError(f"the private daemon does not answer:\n{self.log()}")

    def log(self) -> str:
        """What it has logged."""
        return (self._paths.directory / "daemon.log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End it and wait for its end."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
