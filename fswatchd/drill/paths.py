"""Names of everything a drill makes: checked, so that a clean-up can only touch what is ours."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"fswatchd-drill-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class ScenePaths:
    """Where the parts of one drill are. Raises ValueError for a directory that is not a drill's."""

    directory: Path

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.directory.name) or not self.directory.is_absolute():
            raise ValueError(f"{self.directory} is not the directory of a drill")

    @classmethod
    def new(cls, parent: Path) -> ScenePaths:
        """A new directory below `parent`, for root only."""
        paths = cls(parent.resolve() / f"fswatchd-drill-{secrets.token_hex(4)}")
        paths.directory.mkdir(mode=0o700)
        return paths

    @property
    def name(self) -> str:
        """The drill's name, which is also the prefix of its cgroups."""
        return self.directory.name

    @property
    def host_image(self) -> Path:
        """The file below the scratch host filesystem."""
        return self.directory / "host.img"

    @property
    def host(self) -> Path:
        """Where the scratch host filesystem is mounted."""
        return self.directory / "host"

    @property
    def filler(self) -> Path:
        """What takes all room on the scratch host filesystem."""
        return self.host / "filler"

    @property
    def control(self) -> Path:
        """The socket on which the scratch VEs report."""
        return self.directory / "control.sock"

    @property
    def daemon_pid(self) -> Path:
        """PID and start time of the private daemon."""
        return self.directory / "daemon.pid"

    def image(self, ve: str) -> Path:
        """A VE's image."""
        return self.host / f"{ve}.img"

    def spec(self, ve: str) -> Path:
        """What a VE is started from."""
        return self.directory / f"{ve}.json"

    def root(self, ve: str) -> Path:
        """Where a VE mounts its image, in a mount namespace of its own."""
        return self.directory / f"root-{ve}"

    def cgroup(self, ve: str) -> str:
        """A VE's cgroup."""
        return f"/{self.name}-{ve}"
