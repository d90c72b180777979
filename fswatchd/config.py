"""The daemon's configuration, `fswatchd.toml`: every key has a default, an unknown key is an error.

The keys are described for admins in fswatchd.toml(5), which a test holds against these models.
"""

from __future__ import annotations

import difflib
import socket
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fswatchd.errors import ConfigError
from fswatchd.rules.model import Duration, Size
from fswatchd.rules.modes import NodeMode
from fswatchd.rules.problem import shown, wording

DEFAULT_PATH = Path("/etc/fswatchd/fswatchd.toml")
SHIPPED_RULES = Path("/usr/lib/fswatchd/rules.d")

# A key that has a value where pydantic wants a table.
_NO_TABLE = {"dict_type", "model_type", "model_attributes_type"}


def _path(value: object) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("expected an absolute path")
    return Path(value)


def _loopback(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if value and not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError('expected an address and a port, like "127.0.0.1:7411"')
    return value


def _switch(value: object) -> object:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError('expected true, false or "auto"')
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError('expected an address, like "https://example.net/hook"')
    return value


Switch = Annotated[Literal["auto"] | bool, BeforeValidator(_switch)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class DaemonTable(_Table):
    """`[daemon]`"""

    node: str = Field(default_factory=socket.gethostname, min_length=1)
    mode: NodeMode = "observe"
    state_dir: AbsolutePath = Path("/var/lib/fswatchd")
    runtime_dir: AbsolutePath = Path("/run/fswatchd")
    rules: list[AbsolutePath] = [SHIPPED_RULES, Path("/etc/fswatchd/rules.d")]
    ves: list[AbsolutePath] = [Path("/etc/fswatchd/ve.d")]
    canary: Duration = 300.0
    verify_bases: Duration = 7 * 86400.0
    lock_memory: bool = False


class SourcesTable(_Table):
    """`[sources]`: true demands the source, "auto" takes what the node has."""

    fanotify: Switch = "auto"
    kmsg: Switch = "auto"
    journal: Switch = "auto"
    uevent: Switch = "auto"
    quota: Switch = "auto"
    state: Switch = "auto"
    vzevent: Switch = "auto"
    xfs_health: Switch = "auto"


class ApiTable(_Table):
    """`[api]`"""

    group: str = "fswatch"
    http: Annotated[str, AfterValidator(_loopback)] = ""


class RepairTable(_Table):
    """`[repair]`"""

    reserve: Size = 1 << 30
    reserve_percent: Annotated[float, Field(ge=0, le=90)] = 5.0
    stop_timeout: Duration = 60.0
    kill_timeout: Duration = 30.0
    start_timeout: Duration = 60.0
    keep_evidence: Duration = 30 * 86400.0


class ChannelTable(_Table):
    """`[channel.NAME]`"""

    kind: Literal["webhook"]
    url: Annotated[str, AfterValidator(_url)]
    secret_file: AbsolutePath | None = None


class Config(_Table):
    """The whole file."""

    daemon: DaemonTable = Field(default_factory=DaemonTable)
    sources: SourcesTable = SourcesTable()
    api: ApiTable = ApiTable()
    repair: RepairTable = RepairTable()
    channel: dict[str, ChannelTable] = {}


def load(path: Path | None) -> Config:
    """The configuration in `path`; with None the default file, or defaults where there is none.

    Raises ConfigError, which names every mistake.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


def parse(text: str, name: str) -> Config:
    """The configuration in a text; raises ConfigError."""
    try:
        return Config.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ConfigError("\n".join(_line(name, detail) for detail in error.errors())) from error
    except (ValueError, RecursionError) as error:  # a ValueError: an integer of 5000 digits
        raise ConfigError(f"{name}: not valid TOML: {error}") from error


def read_secret(path: Path) -> bytes:
    """A secret without the line break that editors add; raises ConfigError."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not secret:
        raise ConfigError(f"{path}: the file is empty")
    return secret


def _line(name: str, detail: Any) -> str:
    place = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
        return f"{name}: {'.'.join(place)}: unknown key; {hint}"
    message, meant = wording(detail)
    if detail["type"] == "value_error" and message.startswith("expected "):
        message = f"{message}, not {shown(detail['input'])}"
    hint = meant if detail["type"] == "literal_error" else ""
    if detail["type"] in _NO_TABLE:
        table = "channel.ops" if place[0] == "channel" else place[0]
        hint = f"write [{table}] above its keys"
    return f"{name}: {'.'.join(place)}: {message}" + (f"; {hint}" if hint else "")


def _keys(place: list[str]) -> list[str]:
    if not place:
        return list(Config.model_fields)
    if place[0] == "channel":
        return list(ChannelTable.model_fields)
    model = Config.model_fields[place[0]].annotation
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    )
