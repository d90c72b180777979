"""The damage zoo in running VEs: each damage through the daemon's whole ladder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from tests.system import rules
from tests.zoo import live
from tests.zoo.damage import Damage

FEW = {
    ("ext4", "gd-inode-bitmap"),
    ("ext4", "dir-noise"),
    ("ext4", "bitmap-free"),
    ("xfs", "dir-data"),
    ("btrfs", "fs-tree"),
}


@pytest.fixture
def stage(daemon, make_ve, host: Path) -> live.Stage:
    made = live.Stage(daemon, host, make_ve)
    # What the kernel hears opens an incident that waits: the repair is asked for.
    daemon.configure(mode="approve", rules=rules.repair())
    daemon.start()
    daemon.wait_until_known("bystander")
    return made


def play_all(
    stage: live.Stage, host: Path, damages: Iterable[tuple[ModuleType, Damage]]
) -> dict[str, live.Outcome]:
    """Every one of them; fails at the end, with all that went wrong."""
    bases: dict[str, Path] = {}
    ended, failed = {}, []
    for zoo, damage in damages:
        if zoo.FSTYPE not in bases:
            place = host / "bases" / zoo.FSTYPE
            place.mkdir(parents=True)
            bases[zoo.FSTYPE] = live.BASES[zoo.FSTYPE](place)
        name = f"{zoo.FSTYPE}-{damage.name}"
        try:
            ended[name] = outcome = stage.play(zoo, bases[zoo.FSTYPE], damage)
        except AssertionError as error:
            failed.append(f"{name}: {error}")
            print(f"{name}: FAILED {error}", flush=True)
            continue
        print(f"{name}: {outcome}", flush=True)
    assert not failed, "\n".join(failed)
    return ended


@pytest.mark.timeout(600)
def test_damages_of_running_ves_are_repaired_as_previewed_and_never_worse(
    stage: live.Stage, host: Path
) -> None:
    few = [(z, d) for z, d in live.DAMAGES if (z.FSTYPE, d.name) in FEW]
    ended = play_all(stage, host, few)
    # Of this one btrfs check --repair can mend all or not, whatever lay in the block by chance.
    assert ended.pop("btrfs-fs-tree").ending in {"repaired", "needs-operator"}
    assert {outcome.ending for outcome in ended.values()} == {"repaired"}


@pytest.mark.long
@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_every_damage_in_a_running_ve(stage: live.Stage, host: Path, fstype: str) -> None:
    ended = play_all(stage, host, [(z, d) for z, d in live.DAMAGES if fstype == z.FSTYPE])
    print(Counter(outcome.ending for outcome in ended.values()))
    print("heard before anybody asked:", sum(outcome.heard for outcome in ended.values()))
