"""A node with a volume group and its thin pool, as LVM's programs and sysfs show it.

Plain volumes are in the group too, with room for more of them.

Programs are asked by `process.run`, and answer in the format of the real ones. `killed` is where
the daemon, or the program, comes to its end.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fswatchd import process
from fswatchd.devno import Devno
from fswatchd.kernel import block, dm
from fswatchd.process import Completed

GROUP_UUID = "sbcYYd-yLIK-SsJb-wUCf-8Q2n-qRgs-7mJtGo"
POOL = Devno(253, 2)
DISK = Devno(8, 16)
SECTORS = 409_600
_OPTIONS = "rw discard_passdown queue_if_no_space - 1024"


class KilledError(BaseException):
    """kill -9."""


@dataclass(slots=True)
class Volume:
    """One volume, thin unless said otherwise; `written` counts what its device got."""

    uuid: str
    devno: Devno
    tags: list[str] = field(default_factory=list)
    active: bool = True
    held: bool = False
    written: int = 0
    attr: str = "Vwi-aotz--"
    segtype: str = "thin"


class LvmNode:
    """The volume group `vg` and who looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.volumes: dict[str, Volume] = {}
        self.commands: list[tuple[str, ...]] = []
        self.killed: tuple[str, str, int] | None = None
        self._died: tuple[str, str, int] | None = None
        self.group_attr = "wz--n-"
        self.pool_status = f"0 20971520 thin-pool 3 100/4096 1000/163840 - {_OPTIONS}"
        self.refuses_snapshots = False
        self.free_bytes = 50 << 30
        self.copies: list[str] = []
        self.copying_fails = False
        self.names_in_kernel: dict[str, str] = {}
        monkeypatch.setattr(process, "run", self._run)
        monkeypatch.setattr(dm, "find", self._find)
        monkeypatch.setattr(block, "attribute", self._attribute)
        monkeypatch.setattr(block, "name_of", lambda devno: f"dm-{devno.minor}")
        monkeypatch.setattr(block, "is_claimed", self._is_claimed)
        monkeypatch.setattr(block, "lower_devices", self._lower)
        monkeypatch.setattr(block, "sectors", lambda _: SECTORS)
        monkeypatch.setattr(block, "disk_sequence", lambda devno: 100 + devno.minor)
        monkeypatch.setattr(block, "sectors_written", lambda devno: self._at(devno).written)
        monkeypatch.setattr(block, "sync", lambda _: None)

    def add(self, name: str, *tags: str) -> Volume:
        """A new thin volume."""
        number = len(self.commands) + len(self.volumes)
        uuid = f"vol{number:03d}-aaaa-bbbb-cccc-dddd-eeee-ffffff"
        minor = 3 + max((one.devno.minor for one in self.volumes.values()), default=0)
        self.volumes[name] = Volume(uuid=uuid, devno=Devno(253, minor), tags=list(tags))
        return self.volumes[name]

    def make_plain(self, name: str) -> None:
        """As `lvcreate --type linear` would have made it."""
        self.volumes[name].segtype, self.volumes[name].attr = "linear", "-wi-ao----"

    def names(self) -> dict[str, str]:
        """UUIDs by name."""
        return {name: one.uuid for name, one in self.volumes.items()}

    def device_uuid(self, name: str) -> str:
        """As the kernel has it."""
        return "LVM-" + f"{GROUP_UUID}{self.volumes[name].uuid}".replace("-", "")

    def kernel_follows_no_more(self) -> None:
        """What LVM renames from now on keeps its name in the kernel."""
        self.names_in_kernel = {one.uuid: name for name, one in self.volumes.items()}

    def _shown(self, name: str) -> str:
        return dm.join("vg", self.names_in_kernel.get(self.volumes[name].uuid, name))

    def _at(self, devno: Devno) -> Volume:
        return next(one for one in self.volumes.values() if one.devno == devno)

    def _lower(self, devno: Devno) -> tuple[Devno, ...]:
        return (POOL,) if self._at(devno).segtype == "thin" else (DISK,)

    def _find(self, attribute: str, value: str, *_: object) -> Devno | None:
        for name, one in self.volumes.items():
            shown = self._shown(name) if attribute == "name" else self.device_uuid(name)
            if one.active and shown == value:
                return one.devno
        return None

    def _attribute(self, devno: Devno, name: str, *_: object) -> str | None:
        if devno == DISK:
            return None
        if devno == POOL:
            return {"dm/uuid": "LVM-x-tpool", "dm/name": "vg-pool-tpool"}.get(name)
        for volume, one in self.volumes.items():
            if one.active and one.devno == devno:
                return {
                    "dm/uuid": self.device_uuid(volume),
                    "dm/name": self._shown(volume),
                    "dm/suspended": "0",
                }.get(name)
        return None

    def _is_claimed(self, node: str) -> bool:
        minor = int(node.removeprefix("/dev/dm-"))
        return self._at(Devno(253, minor)).held

    async def _run(self, argv: Sequence[str], **_: object) -> Completed:
        if self._died is not None and self._died == self.killed:
            raise KilledError  # what is dead cleans nothing up
        self.commands.append(tuple(argv))
        program = os.path.basename(argv[0])
        count = sum(command[0] == program for command in self.commands)
        if self.killed == ("before", program, count):
            self._died = self.killed
            raise KilledError
        code, output = getattr(self, f"_{program}")(list(argv[1:]))
        if self.killed == ("after", program, count):
            self._died = self.killed
            raise KilledError
        return Completed(argv=tuple(argv), returncode=code, output=output, duration_s=0.0)

    def _lvs(self, words: list[str]) -> tuple[int, str]:
        group, _, name = words[-1].partition("/")
        assert group == "vg"
        if name and name not in self.volumes:
            return 5, f'  Failed to find logical volume "{words[-1]}"\n'
        found = [self._row(one) for one in self.volumes if name in {"", one}]
        return 0, "  WARNING: Device /dev/sdx is missing.\n" + json.dumps(
            {"report": [{"lv": found}], "log": []}, indent=4
        )

    def _row(self, name: str) -> dict[str, str]:
        one = self.volumes[name]
        return {
            "vg_name": "vg",
            "vg_uuid": GROUP_UUID,
            "vg_attr": self.group_attr,
            "lv_name": name,
            "lv_uuid": one.uuid,
            "lv_attr": one.attr,
            "segtype": one.segtype,
            "pool_lv": "pool" if one.segtype == "thin" else "",
            "lv_tags": ",".join(one.tags),
            "devices": "pool(0)" if one.segtype == "thin" else "/dev/sdb(25),/dev/sdc(0)",
        }

    def _vgs(self, words: list[str]) -> tuple[int, str]:
        assert {"--units", "b", "--nosuffix", "vg_free,vg_size"} < set(words)
        sizes = {"vg_free": str(self.free_bytes), "vg_size": str(100 << 30)}
        report = {"report": [{"vg": [sizes]}], "log": []}
        return 0, json.dumps(report, indent=4)

    def _dd(self, words: list[str]) -> tuple[int, str]:
        assert {"iflag=direct", "oflag=direct"} < set(words)
        if self.copying_fails:
            return 1, "dd: error reading '/proc/self/fd/9': Input/output error\n"
        self.copies.append(list(self.volumes)[-1])
        return 0, "409600+0 records in\n"

    def _lvcreate(self, words: list[str]) -> tuple[int, str]:
        if "linear" in words:
            return self._create_plain(words)
        if self.refuses_snapshots:
            return 5, "  Failed to suspend thin snapshot origin vg/thin.\n"
        assert "--snapshot" in words
        assert words[words.index("--setactivationskip") + 1] == "n"
        assert words[-1].removeprefix("vg/") in self.volumes
        tags = [words[at + 1] for at, word in enumerate(words) if word == "--addtag"]
        self.add(words[words.index("--name") + 1], *tags)
        return 0, ""

    def _create_plain(self, words: list[str]) -> tuple[int, str]:
        size = int(words[words.index("--size") + 1].removesuffix("b"))
        assert words[-3:] == ["vg", "/dev/sdb", "/dev/sdc"]
        if size > self.free_bytes:
            return 5, '  Volume group "vg" has insufficient free space\n'
        self.free_bytes -= size
        name = words[words.index("--name") + 1]
        self.add(name, *(words[at + 1] for at, word in enumerate(words) if word == "--addtag"))
        self.make_plain(name)
        return 0, "  WARNING: Logical volume not zeroed.\n"

    def _lvrename(self, words: list[str]) -> tuple[int, str]:
        old, new = (word.removeprefix("vg/") for word in words[-2:])
        if old not in self.volumes or new in self.volumes:
            return 5, f'  Logical Volume "{new}" already exists in volume group "vg"\n'
        self.volumes[new] = self.volumes.pop(old)
        return 0, ""

    def _lvchange(self, words: list[str]) -> tuple[int, str]:
        one = self.volumes[words[-1].removeprefix("vg/")]
        if "--deltag" in words:
            one.tags.remove(words[words.index("--deltag") + 1])
        if "--activate" in words:
            one.active = True
        return 0, ""

    def _lvremove(self, words: list[str]) -> tuple[int, str]:
        which = words[words.index("--select") + 1].replace('"', "")
        selection = dict(part.split("=") for part in which.split(" && "))
        one = self.volumes.get(selection["lv_name"])
        if one is not None and one.uuid == selection["lv_uuid"]:
            if re.match(selection["lv_attr"].removeprefix("~"), one.attr) is None:
                return 0, ""  # nothing is selected
            if one.held:
                return 5, "  Logical volume vg/x contains a filesystem in use.\n"
            del self.volumes[selection["lv_name"]]
        return 0, ""

    def _dmsetup(self, words: list[str]) -> tuple[int, str]:
        assert words == ["status", "--noflush", "vg-pool-tpool"]
        return 0, self.pool_status + "\n"


def hold(node: LvmNode) -> Any:
    """Opening a device with O_EXCL, which nobody else has then."""

    def opened(volume: Any, flags: int) -> int:
        name = next(name for name in node.volumes if node.device_uuid(name) == volume.uuid)
        if node.volumes[name].held and flags & os.O_EXCL:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), volume.path)
        return os.open("/dev/null", os.O_RDONLY)

    return opened
