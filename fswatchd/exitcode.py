"""Exit codes of `fswatch` (and so of a Nagios or Icinga check that runs it), and of `fswatchd`."""

import enum


class Exit(enum.IntEnum):
    """0 to 3 are those of monitoring plugins; 64, 65 and 70 those of sysexits(3).

    70 is `fswatchd`'s own: a part of it has ended.
    """

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3
    USAGE = 64
    DATA = 65
    SOFTWARE = 70
