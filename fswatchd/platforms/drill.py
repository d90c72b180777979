"""Scratch VEs that a drill registered with this daemon.

Their ids are made here, and only here can a VE become `scratch`: no file, label or name that a
tenant or an admin chooses makes one. They are forgotten when the drill's process ends.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from fswatchd.inventory.model import Ve
from fswatchd.kernel import cgroup
from fswatchd.platforms import declared


class DrillPlatform:
    """The scratch VEs of drills that run now."""

    name = "drill"

    def __init__(self) -> None:
        self._ves: dict[str, tuple[declared.DeclaredVe, bool]] = {}

    def watch_directories(self) -> list[str]:
        """The cgroup root."""
        return [str(root) for root in cgroup.hierarchies()[:1]]

    def register(self, wanted: declared.DeclaredVe, *, hands_off: bool) -> str:
        """Take a VE in; returns the id it has from now on."""
        name = f"{wanted.name}-{secrets.token_hex(4)}"
        self._ves[name] = (wanted.model_copy(update={"name": name, "labels": {}}), hands_off)
        return f"{self.name}:{name}"

    def forget(self, ve_id: str) -> None:
        """Drop a VE; unknown ids are nothing to drop."""
        self._ves.pop(ve_id.removeprefix(f"{self.name}:"), None)

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        return [
            replace(await declared.build(ve, self.name), scratch=not off, hands_off=off)
            for ve, off in self._ves.values()
        ]
