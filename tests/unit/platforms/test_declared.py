"""VEs declared by hand: how they freeze, and what locks them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fswatchd.errors import ConfigError
from fswatchd.events import VeState
from fswatchd.inventory.merge import merged
from fswatchd.inventory.model import Commands, Lock, Ve, VeId, Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import declared

WHOLE = """
[[ve]]
name = "ve101"
volume = [{ image = "/vz/ve101.raw" }]
freeze = ["virsh", "suspend", "ve101"]
thaw = ["virsh", "resume", "ve101"]
lock = "/run/lock/ve101.lck"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(declared.adminfile, "read", lambda found: Path(found).read_text())
    return tmp_path / "a.toml"


async def test_freeze_thaw_and_lock_are_the_ves(path: Path) -> None:
    path.write_text(WHOLE)
    (one,) = declared.load_file(path)
    ve = await declared.build(one, "declared")
    assert ve.commands.freeze == ("virsh", "suspend", "ve101")
    assert ve.commands.thaw == ("virsh", "resume", "ve101")
    assert ve.lock == Lock(file="/run/lock/ve101.lck")


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ('thaw = ["virsh", "resume", "ve101"]', "what is frozen must thaw"),
        ('freeze = ["virsh", "suspend", "ve101"]', "what is frozen must thaw"),
    ],
)
def test_a_freeze_without_a_thaw_is_refused(path: Path, without: str, told: str) -> None:
    path.write_text(WHOLE.replace(without, ""))
    with pytest.raises(ConfigError, match=told):
        declared.load_file(path)


HOT = """
[[ve]]
name = "ve101"
[[ve.volume]]
image = "/vz/ve101-data.raw"
mountpoint = "/srv"
detach = ["ve101-data", "out"]
attach = ["ve101-data", "in"]
"""


async def test_a_volume_that_can_be_taken_out_of_its_ve(path: Path) -> None:
    path.write_text(HOT)
    (one,) = declared.load_file(path)
    (volume,) = (await declared.build(one, "declared")).volumes
    assert (volume.detach, volume.attach) == (("ve101-data", "out"), ("ve101-data", "in"))


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ('attach = ["ve101-data", "in"]', "", "what is taken out comes back"),
        ('detach = ["ve101-data", "out"]', "", "what is taken out comes back"),
        ('mountpoint = "/srv"', "", "without that one no VE runs"),
        ('attach = ["ve101-data", "in"]', "attach = []", "attach"),
    ],
)
def test_one_that_could_not_come_back_is_refused(
    path: Path, line: str, instead: str, told: str
) -> None:
    path.write_text(HOT.replace(line, instead))
    with pytest.raises(ConfigError, match=told):
        declared.load_file(path)


@pytest.mark.parametrize("wrong", ['lock = "ve101.lck"', "lock = 3", "freeze = []"])
def test_what_makes_no_sense_is_refused(path: Path, wrong: str) -> None:
    key = wrong.split(" ")[0]
    lines = [wrong if line.startswith(f"{key} =") else line for line in WHOLE.splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=key):
        declared.load_file(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[vee]]\nname = "a"\n', 'vee: unknown key; did you mean "ve"'),
        ('[[ve]]\nname = "a"\ncgruop = "/a"\n', '1.cgruop: unknown key; did you mean "cgroup"'),
        ('[[ve]]\nname = "a"\nvolume = [{ imag = "/a" }]\n', 'imag: .* did you mean "image"'),
        ('[[ve]]\nname = "a"\ncgroup = "/a"\nxyz = 1\n', "xyz: unknown key; known here: name,"),
    ],
)
def test_of_an_unknown_key_the_near_ones_are_told(path: Path, text: str, told: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        declared.load_file(path)


async def test_what_is_declared_completes_what_a_driver_has_found(path: Path) -> None:
    path.write_text(WHOLE)
    (one,) = declared.load_file(path)
    found = Ve(
        ve_id=VeId("lxc:ve101"), platform="lxc", native_id="ve101", name="ve101",
        state=VeState.STOPPED, volumes=(Volume(image="/vz/ve101.raw"),),
        commands=Commands(start=("lxc-start",), freeze=("lxc-freeze",), thaw=("lxc-unfreeze",)),
    )  # fmt: skip
    (ve,) = merged([found, await declared.build(one, "declared")]).values()
    assert (ve.ve_id, ve.commands.start) == ("lxc:ve101", ("lxc-start",))
    assert ve.commands.freeze[0] == "virsh"
    assert ve.lock == Lock(file="/run/lock/ve101.lck")


async def test_a_directory_need_not_exist_and_is_none_where_it_is_no_directory(
    tmp_path: Path,
) -> None:
    place = tmp_path / "ve.d"
    assert await declared.DeclaredPlatform([place]).list_ves() == []
    place.write_text("")
    with pytest.raises(PlatformError, match="cannot be listed: Not a directory"):
        await declared.DeclaredPlatform([place]).list_ves()


async def test_a_directory_that_cannot_be_read_is_not_an_empty_one(path: Path, monkeypatch) -> None:
    def refuse(where: str | Path) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(where))

    monkeypatch.setattr(declared.os, "listdir", refuse)
    with pytest.raises(PlatformError, match="cannot be listed: Input/output error"):
        await declared.DeclaredPlatform([path.parent]).list_ves()
