"""Device numbers as the kernel prints them."""

from typing import NamedTuple


class Devno(NamedTuple):
    """A device number; `str()` gives the `major:minor` of mountinfo and sysfs."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"

    @classmethod
    def parse(cls, text: str) -> "Devno":
        """Read `major:minor`; raises ValueError."""
        major, _, minor = text.strip().partition(":")
        return cls(int(major), int(minor))

    @classmethod
    def of(cls, device: int) -> "Devno":
        """From a `st_dev`, `st_rdev` or `lo_device` (makedev(3))."""
        major = ((device >> 8) & 0xFFF) | ((device >> 32) & 0xFFFFF000)
        minor = (device & 0xFF) | ((device >> 12) & 0xFFFFFF00)
        return cls(major, minor)
