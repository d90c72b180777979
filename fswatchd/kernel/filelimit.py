"""How many files this process may have open (RLIMIT_NOFILE, getrlimit(2)).

A soft limit of 1024 is the default of nearly every system, for the sake of select(2), which nothing
here uses. Programs that are started later inherit the limit. They start with few descriptors, but
some close every one up to the limit: it is not raised beyond what a node can need.
"""

from __future__ import annotations

import resource

ENOUGH = 65536


def allow_many() -> int:
    """Raise the soft limit to the hard one, but no further than `ENOUGH`; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
