"""Exit codes of `fswatch` (and so of a Nagios or Icinga check that runs it)."""

import enum


class Exit(enum.IntEnum):
    """0 to 3 are those of monitoring plugins; 64 and 65 those of sysexits(3)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3
    USAGE = 64
    DATA = 65
