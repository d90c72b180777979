"""All drivers, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fswatchd.inventory.platform import Platform
from fswatchd.platforms.asked import Asked
from fswatchd.platforms.cri import CriPlatform
from fswatchd.platforms.declared import DeclaredPlatform
from fswatchd.platforms.drill import DrillPlatform
from fswatchd.platforms.engines import EnginePlatform, docker, podman
from fswatchd.platforms.incus import IncusPlatform
from fswatchd.platforms.libvirt import LibvirtPlatform
from fswatchd.platforms.lxc import LxcPlatform
from fswatchd.platforms.nspawn import NspawnPlatform
from fswatchd.platforms.openvz import OpenvzPlatform
from fswatchd.platforms.proxmox import ProxmoxPlatform
from fswatchd.platforms.uml import UmlPlatform


class EveryPlatform:
    """`drivers` are all of them, `drills` the one that a drill registers its VEs with; `asked` is
    what their tools are asked beside the looks, to be closed at the end."""

    def __init__(self, declared: Sequence[Path]) -> None:
        self.drills = DrillPlatform()
        libvirt = LibvirtPlatform()
        engines: list[IncusPlatform | EnginePlatform | CriPlatform] = [
            IncusPlatform("incus", ("incus", "/var/lib/incus/unix.socket")),
            # The snap first: a package that it has taken the place of may leave its socket behind.
            IncusPlatform(
                "lxd",
                ("/snap/bin/lxc", "/var/snap/lxd/common/lxd/unix.socket"),
                ("lxc", "/var/lib/lxd/unix.socket"),
            ),
            podman(),
            docker(),
            CriPlatform(),
        ]
        self.asked: list[Asked[Any]] = [*(engine.asked for engine in engines), libvirt.asked]
        self.drivers: list[Platform] = [
            # First: where two declare an image the later one has it, and users start these.
            UmlPlatform(),
            ProxmoxPlatform(),
            OpenvzPlatform(),
            NspawnPlatform(),
            *engines,
            LxcPlatform(),
            libvirt,
            DeclaredPlatform(declared),
            self.drills,
        ]
