"""The program `fswatchd`, also as `python -m fswatchd`: a quick start, then the daemon.

What takes time until READY is nearly all Python's imports. Only what makes these faster is here.
"""

from __future__ import annotations

import gc
import os


def main() -> int:
    """Load the daemon and run it."""
    # Modules are no garbage: to look through them again and again is a tenth of the start. The
    # daemon turns it on when it is ready.
    gc.disable()
    # pydantic would read the metadata of every Python package of the node to find plug-ins, and run
    # these as root.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from fswatchd import daemon

    return daemon.main()


if __name__ == "__main__":
    raise SystemExit(main())
