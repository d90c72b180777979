"""Units that PID 1 makes for one program: systemd-run(1), of this daemon's name.

fswatchd.service ends those of the kinds start and tool before a daemon starts. One of the kind lvm
comes to its own end: LVM that is killed half-way may leave a volume suspended.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence


def is_service() -> bool:
    """Whether systemd has started this process itself (systemd.exec(5), since version 248)."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def new_name(kind: str) -> str:
    """A name for a unit: `kind` is start, tool or lvm."""
    return f"fswatchd-{kind}-{secrets.token_hex(4)}.service"


def command(
    name: str, properties: Iterable[str], environment: Mapping[str, str], argv: Sequence[str]
) -> tuple[str, ...]:
    """What runs `argv` in a unit and waits for it; it has our streams, and we get its exit code."""
    return (
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--collect",
        f"--unit={name}",
        *(f"--property={one}" for one in properties),
        *(f"--setenv={key}={value}" for key, value in environment.items()),
        "--",
        # PID 1 puts variables into the arguments of a program.
        *(argument.replace("$", "$$") for argument in argv),
    )


def quoted(path: str) -> str:
    """A path among those of a property (BindPaths=…): no blank, colon or quote in it counts."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
