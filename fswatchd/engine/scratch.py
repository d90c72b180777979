"""Scratch VEs: what a drill registers for as long as it runs."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from pydantic import ValidationError

from fswatchd.devno import Devno
from fswatchd.errors import ConfigError
from fswatchd.inventory.inventory import Inventory
from fswatchd.notify.notices import Notices
from fswatchd.platforms.declared import DeclaredVe
from fswatchd.platforms.drill import DrillPlatform


class ScratchVes:
    """Registers them, and forgets them with the process that asked."""

    def __init__(self, platform: DrillPlatform, inventory: Inventory, notices: Notices) -> None:
        self._platform = platform
        self._inventory = inventory
        self._notices = notices
        self._forgetting: set[asyncio.Task[None]] = set()

    async def register(self, pid: int, body: dict[str, Any]) -> str:
        """Returns the id of the new VE; raises ConfigError. `pid` is who asks."""
        try:
            wanted = DeclaredVe.model_validate(body.get("ve"))
        except ValidationError as error:
            raise ConfigError(f"not a VE: {error}") from None
        self._refuse_owned_images(wanted)
        notify = body.get("notify") or {}
        hands_off = bool(body.get("hands_off"))
        ve_id = self._platform.register(wanted, hands_off=hands_off)
        if hands_off:
            self._notices.leave_to_another(ve_id)
        self._forget_with(pid, ve_id)
        if notify.get("url"):
            secret = str(notify["secret"]).encode() if notify.get("secret") else None
            self._notices.add_scratch_channel(ve_id, str(notify["url"]), secret)
        await self._inventory.refresh()
        return ve_id

    async def forget(self, ve_id: str) -> None:
        """The drill is over."""
        self._platform.forget(ve_id)
        self._notices.remove_scratch_channel(ve_id)
        await self._inventory.refresh()

    def _refuse_owned_images(self, wanted: DeclaredVe) -> None:
        owners = self._inventory.view.image_owners
        for volume in wanted.volume:
            if volume.image is None:
                raise ConfigError("a scratch VE has image files only")
            try:
                status = os.stat(volume.image)
            except OSError as error:
                raise ConfigError(f"{volume.image}: {error.strerror}") from None
            owner = owners.get((Devno.of(status.st_dev), status.st_ino))
            if owner is not None:
                raise ConfigError(f"{volume.image} is a volume of {owner}, not scratch")

    def _forget_with(self, pid: int, ve_id: str) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            task = loop.create_task(self.forget(ve_id))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

        loop.add_reader(pidfd, ended)
