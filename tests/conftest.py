"""Shared by all tests: what must not be skipped here, and who may start processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REQUIRED = Path(__file__).parent / "required.txt"


def can_do_everything() -> bool:
    """Root on a machine with loop devices: nothing that is listed may be skipped here."""
    return os.geteuid() == 0 and os.path.exists("/dev/loop-control")


def required_tests() -> set[str]:
    """The node ids in required.txt, without parameters."""
    lines = _REQUIRED.read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


class _RequiredGuard:
    """Fails the run when a required test was skipped, or is not there at all."""

    def __init__(self) -> None:
        self.skipped: set[str] = set()
        self.collected: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.collected = {item.nodeid.partition("[")[0] for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.skipped and name in required_tests():
            self.skipped.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        whole = not session.config.option.keyword and session.config.args_source.name != "ARGS"
        missing = required_tests() - self.collected if whole else set()
        if can_do_everything() and (self.skipped or missing):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for name in sorted(self.skipped):
            terminalreporter.write_line(f"REQUIRED BUT SKIPPED {name}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RequiredGuard())
