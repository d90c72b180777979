"""What docs/platforms.md says that each driver offers is what its VEs have."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fswatchd.inventory.model import Ve, Volume
from fswatchd.platforms import cri, declared, libvirt, nspawn, openvz, proxmox, scope, uml
from fswatchd.platforms.engines import Container, docker, podman
from fswatchd.platforms.every import EveryPlatform
from fswatchd.platforms.incus import IncusPlatform, Instance
from fswatchd.platforms.kinds import Kind, Looked
from fswatchd.platforms.lxc import LxcPlatform
from fswatchd.platforms.lxc_config import Config
from fswatchd.rules import match
from tests.unit.platforms import test_libvirt, test_openvz, test_proxmox_vm
from tests.unit.platforms.test_declared import WHOLE

DOCUMENT = Path(__file__).parents[3] / "docs" / "platforms.md"
_ROW = re.compile(r"^\| `(\w+)`( \(\w+\))? \|(.+)\|$", re.MULTILINE)
VOLUMES = (Volume(image="/srv/a.img", mountpoint="/"),)


def rows() -> dict[str, list[str]]:
    """Platform → start, stop and kill, freeze and thaw, lock, volumes."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return {
        match[1] + (match[2] or ""): [cell.strip() for cell in match[3].split("|")]
        for match in _ROW.finditer(text)
    }


@pytest.fixture
async def ves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Ve]:
    """A VE of each driver, from what the drivers' own tests have recorded."""
    monkeypatch.setattr(libvirt, "_OWNER", os.getuid())
    monkeypatch.setattr(declared.adminfile, "read", lambda found: Path(found).read_text())
    monkeypatch.setattr(openvz, "_ANSWER_S", 60.0)
    monkeypatch.setattr(uml, "only_root_writes", lambda _: True)
    monkeypatch.setattr(cri.seen, "first_of_group", lambda _: os.getpid())
    for name in ("libvirt", "vm", "vz", "machines"):
        (tmp_path / name).mkdir()
    guest = test_libvirt.Node(tmp_path / "libvirt")
    guest.starts(agent="connected")
    machine = test_proxmox_vm.Node(tmp_path / "vm")
    container = test_openvz.Node(tmp_path / "vz")
    container.write("etc/vz.conf", test_openvz.VZ_CONF.format(vz=container.vz))
    container.add_6()
    (tmp_path / "machines" / "web.raw").touch()
    (stored,) = await nspawn.NspawnPlatform(
        str(tmp_path / "run"), str(tmp_path / "machines")
    ).list_ves()
    (tmp_path / "a.toml").write_text(WHOLE)
    (one,) = declared.load_file(tmp_path / "a.toml")
    told = Container(native_id="a" * 64, name="web", disks=(("/srv/a.img", "/"),))
    looked = Looked({"/srv/a.img": Kind.FILE})
    found: dict[str, Ve | None] = {
        "lxc": LxcPlatform(str(tmp_path))._describe((str(tmp_path), "web"), Config(), None, ()),
        "proxmox (container)": proxmox.describe("101", {"mp0": "/dev/sdc1,mp=/raw"}, {}),
        "proxmox (machine)": await machine.ve(),
        "openvz": await container.ve(),
        "podman": podman()._describe(told, told.native_id, None, looked),
        "docker": docker()._describe(told, told.native_id, None, looked),
        "nspawn": stored,
        "cri": cri.CriPlatform()._describe("uid", "/group", None, VOLUMES),
        "libvirt": await guest.ve(),
        "uml": uml.UmlPlatform()._describe(
            uml.Instance(
                pid=os.getpid(), started=None, user=0, umid="web", socket="/s", volumes=VOLUMES
            )
        ),
        "declared": await declared.build(one, "declared"),
    }
    for name, program in (("incus", "incus"), ("lxd", "lxc")):
        platform = IncusPlatform(name, (program, str(tmp_path / "unix.socket")))
        found[name] = platform._describe(Instance(name="web", project="default", pid=0))
    return {name: ve for name, ve in found.items() if ve is not None}


def test_every_driver_is_in_it() -> None:
    drivers = {driver.name for driver in EveryPlatform([]).drivers} - {"drill"}
    assert {name.partition(" ")[0] for name in rows()} == drivers


@pytest.mark.parametrize("platform", rows())
def test_a_driver_offers_what_it_says(platform: str, ves: dict[str, Ve]) -> None:
    ve, (start, stop, freeze, lock, volumes) = ves[platform], rows()[platform]
    commands = ve.commands
    if start != "as declared":
        assert bool(commands.start) is (start != "never")
        assert bool(commands.stop) is bool(commands.kill) is (stop != "never")
    assert bool(commands.freeze) is bool(commands.thaw) is (freeze != "cgroup")
    if freeze.startswith("`"):
        assert " ".join(commands.freeze).startswith(freeze.strip("`"))
    assert (ve.lock is not None) is (lock == "taken")
    if platform not in {"lxc", "declared"}:  # here nothing is configured
        assert bool(ve.volumes) is (volumes == "yes")


def test_rules_may_name_every_platform_and_no_other() -> None:
    drivers = {driver.name for driver in EveryPlatform([]).drivers}
    assert set(match.PLATFORMS) == drivers | {scope.PLATFORM}


@pytest.mark.parametrize("driver", EveryPlatform([]).drivers, ids=lambda driver: driver.name)
def test_a_driver_says_where_changes_are_seen(driver) -> None:
    assert all(path.startswith("/") for path in driver.watch_directories())
