from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fswatchd.inventory.model import Volume
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import proxmox, proxmox_config
from fswatchd.platforms.proxmox import ProxmoxPlatform
from fswatchd.platforms.proxmox_config import read_storages, read_volume
from fswatchd.repair.platform_lock import as_locked

# As pct.conf(5) and pve-container's src/PVE/LXC/Config.pm (write_pct_config) have it.
CONF = """#A web server%3A the first
arch: amd64
cores: 2
hostname: web
lock: backup
memory: 512
mp0: local-lvm:vm-101-disk-1,mp=/var/data,backup=1,size=8G
mp1: /srv/shared,mp=/shared
mp2: /dev/sdc1,mp=/raw
ostype: debian
rootfs: local:101/vm-101-disk-0.raw,size=4G
swap: 512
tags: gold;web
unprivileged: 1
lxc.mount.entry: /dev/fuse dev/fuse none bind,create=file 0 0

[before]
hostname: old
rootfs: local:101/vm-101-disk-9.raw,size=4G
"""
# pvesm(1), storage configuration.
STORAGE = """dir: local
\tpath /var/lib/vz
\tcontent iso,vztmpl,backup,rootdir

lvmthin: local-lvm
\tthinpool data
\tvgname pve
\tcontent rootdir,images

zfspool: tank
\tpool tank/data
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "lxc").mkdir()
    (tmp_path / "lxc" / "101.conf").write_text(CONF)
    (tmp_path / "lxc" / "102.conf").write_text("hostname: db\nrootfs: tank:subvol-102-disk-0\n")
    (tmp_path / "lxc" / "102.conf.tmp.1").write_text("hostname: half\n")
    (tmp_path / "storage.cfg").write_text(STORAGE)
    return tmp_path


async def test_containers_are_read_from_their_configuration(config: Path) -> None:
    web, db = await ProxmoxPlatform(str(config)).list_ves()
    assert (web.ve_id, web.name, web.native_id) == ("proxmox:101", "web", "101")
    assert web.aliases == ("lxc:101",)
    assert web.labels == {"gold": "", "web": ""}
    assert web.volumes == (
        Volume(device="/dev/pve/vm-101-disk-1", mountpoint="/var/data"),
        Volume(device="/dev/sdc1", mountpoint="/raw"),
        Volume(image="/var/lib/vz/images/101/vm-101-disk-0.raw", mountpoint="/"),
    )
    assert web.commands.start == ("pct", "start", "101")
    assert (db.name, db.volumes, db.busy) == ("db", (), None)


async def test_a_lock_is_seen_and_its_end_too(config: Path) -> None:
    platform = ProxmoxPlatform(str(config))
    assert (await platform.list_ves())[0].busy == "Proxmox: lock: backup"
    (config / "lxc" / "101.conf").write_text(CONF.replace("lock: backup\n", ""))
    assert (await platform.list_ves())[0].busy is None


async def test_files_that_can_no_longer_be_read_leave_all_busy(config: Path) -> None:
    platform = ProxmoxPlatform(str(config))
    await platform.list_ves()
    (config / "lxc").rename(config / "elsewhere")
    with pytest.raises(PlatformError, match="is gone") as caught:
        await platform.list_ves()
    assert [ve.busy for ve in caught.value.partial] == [
        "Proxmox: lock: backup",
        f"Proxmox: {config} is gone",
    ]
    (config / "elsewhere").rename(config / "lxc")
    assert (await platform.list_ves())[1].busy is None


async def test_files_that_hang_hold_nobody_up(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = ProxmoxPlatform(str(config))
    await platform.list_ves()
    (config / "storage.cfg").unlink()
    os.mkfifo(config / "storage.cfg")  # to open it waits for a writer
    monkeypatch.setattr(proxmox, "_ANSWER_S", 0.05)
    try:
        for _ in range(2):
            with pytest.raises(PlatformError, match="does not answer") as caught:
                await platform.list_ves()
            assert len(caught.value.partial) == 2
    finally:
        (config / "storage.cfg").open("w").close()
    monkeypatch.setattr(proxmox, "_ANSWER_S", 5)
    assert len(await platform.list_ves()) == 2


async def test_a_template_is_never_free(config: Path) -> None:
    (config / "lxc" / "102.conf").write_text("hostname: base\ntemplate: 1\n")
    assert "template" in ((await ProxmoxPlatform(str(config)).list_ves())[1].busy or "")


async def test_without_proxmox_there_is_nothing(tmp_path: Path) -> None:
    assert await ProxmoxPlatform(str(tmp_path)).list_ves() == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("local:102/vm-102-disk-0.raw", "/var/lib/vz/images/102/vm-102-disk-0.raw"),
        ("volume=local:102/vm-102-disk-0.raw", "/var/lib/vz/images/102/vm-102-disk-0.raw"),
        (
            "local:101/base-101-disk-0.raw/102/vm-102-disk-0.raw",
            "/var/lib/vz/images/102/vm-102-disk-0.raw",
        ),
        ("local:../../etc/x.raw", None),
        ("nowhere:102/vm-102-disk-0.raw", None),
        ("local:102/subvol-102-disk-0.subvol", None),
        ("", None),
    ],
)
def test_where_a_volume_is(value: str, wanted: str | None) -> None:
    found = read_volume(value, read_storages(STORAGE))
    assert (found.image if found else None) == wanted


@pytest.mark.parametrize(
    ("line", "shared"), [("\tshared 1\n", True), ("\tshared 0\n", False), ("", False)]
)
def test_a_volume_group_of_several_nodes_is_known(line: str, *, shared: bool) -> None:
    """As pvesm(1) writes a group on a LUN that all nodes see."""
    storages = read_storages(f"lvm: san\n\tvgname vg\n{line}\tcontent rootdir\n")
    found = read_volume("san:vm-102-disk-0,size=8G", storages)
    assert found is not None
    assert (found.device, found.shared) == ("/dev/vg/vm-102-disk-0", shared)


async def test_the_lock_goes_with_commands_that_work_while_it_is_held(config: Path) -> None:
    _, db = await ProxmoxPlatform(str(config)).list_ves()
    assert db.lock is not None
    assert db.lock.take == ("pct", "set", "102", "--lock", "disk")
    assert db.lock.release == ("pct", "unlock", "102")
    locked = as_locked(replace(db, busy="Proxmox: lock: disk"), db.lock)
    assert locked.busy is None
    assert locked.commands.start == ("pct", "start", "102", "--skiplock", "1")
    assert locked.commands.kill == ("pct", "stop", "102", "--skiplock", "1")
    assert locked.commands.stop[0] == "lxc-stop"  # pct shutdown knows no --skiplock
    assert locked.commands.freeze == db.commands.freeze == ("lxc-freeze", "-n", "102")
    assert as_locked(replace(db, busy="Proxmox: lock: backup"), db.lock).busy is not None


async def test_what_an_ha_manager_starts_is_not_locked(config: Path) -> None:
    """It starts without --skiplock. ha-manager(1), resources.cfg."""
    (config / "ha").mkdir()
    (config / "ha" / "resources.cfg").write_text(
        "vm: 101\n\tstate started\n\nct: 102\n\tgroup all\n\tstate started\n"
    )
    web, db = await ProxmoxPlatform(str(config)).list_ves()
    assert web.lock is not None
    assert db.lock is None


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("gold;fswatch-approve", {"gold": "", "fswatch": "approve"}),
        ("fswatch-auto;fswatch-observe", {"fswatch": "observe"}),
        ("fswatch-atuo", {"fswatch": "observe"}),
        ("fswatch", {"fswatch": "observe"}),
        ("", {}),
    ],
)
def test_a_tag_says_what_the_owner_wishes(tags: str, wanted: dict[str, str]) -> None:
    assert proxmox_config.labels({"tags": tags}) == wanted
