"""The time of day on this node, for rules that hold at some hours only."""

import time

from fswatchd.rules.match import DAY_S


def seconds_of_day(time_s: float) -> int:
    """Seconds of the local day at a moment of CLOCK_REALTIME; a leap second is the one before."""
    local = time.localtime(time_s)
    return min(local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec, DAY_S - 1)
