"""What holds the machine lane together, as far as it can be told without a machine."""

from __future__ import annotations

import pytest

from fswatchd.rules import model
from vm import guest, node
from vm.run import all_scenarios


def test_the_readme_has_the_commands_that_scenarios_execute() -> None:
    install, doctor = node.install_commands()
    assert install.split() == ["apt-get", "install", "-y", "./dist/fswatchd_*.deb"]
    assert doctor.split() == ["fswatch", "doctor"]


@pytest.mark.parametrize("strategy", ["clone", "offline", "online"])
def test_the_rule_of_the_scenarios_is_right(strategy: str) -> None:
    text = node.rule("auto", strategy=strategy, ves='["lxc:plain"]')
    _, problems = model.parse_file("10-ext4.toml", text)
    assert not problems


def test_kernels_are_in_the_order_of_their_versions() -> None:
    names = ["vmlinuz-6.12.107+deb13-amd64", "vmlinuz-7.3.4+deb13-amd64", "vmlinuz-6.9.1-amd64"]
    assert [n.split("-")[1][:4] for n in sorted(names, key=guest._order)] == [
        "6.9.",
        "6.12",
        "7.3.",
    ]


@pytest.mark.parametrize("scenario", all_scenarios().values(), ids=lambda one: one.NAME)
def test_every_scenario_says_what_it_is_and_where_it_runs(scenario) -> None:
    assert scenario.KERNELS in {"all", "oldest", "newest"}
    assert scenario.TEXT
    assert callable(scenario.run)
