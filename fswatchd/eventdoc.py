"""A hypothetical event, as an admin writes it or takes it from `fswatch events --json`. Pure.

Only `class` must be given; whatever else is left out is assumed, and named in `Hypothesis.assumed`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fswatchd.devno import Devno
from fswatchd.errors import ConfigError
from fswatchd.events import EventClass, FsEvent, Severity, usual_severity
from fswatchd.rules.match import CLASSES, did_you_mean
from fswatchd.situation import Scope, VeFacts
from fswatchd.units import parse_timestamp

_ASSUMED = ("severity", "confirms", "source", "count", "fstype", "device", "ves")


def _class(value: str) -> str:
    if value not in CLASSES:
        raise ValueError(f"no class is called {value!r}{did_you_mean(value, CLASSES)}")
    return value


def _severity(value: str) -> str:
    known = [severity.label for severity in Severity]
    if value.lower() not in known:
        raise ValueError(f"no severity is called {value!r}{did_you_mean(value, known)}")
    return value.lower()


def _devno(value: str) -> str:
    try:
        return str(Devno.parse(value))
    except ValueError:
        raise ValueError("expected a device number like 7:3") from None


def _moment(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("expected a time with its zone, like 2026-11-21T02:30:00Z")
    return value


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class VeDocument(_Document):
    """A VE with what rules may ask about it; `id` alone is enough."""

    id: str = Field(min_length=1)
    name: str = ""
    platform: str = ""
    labels: dict[str, str] = {}


class EventDocument(_Document):
    """The keys of an event (docs/events.md). Those that only the store knows change nothing."""

    klass: Annotated[str, AfterValidator(_class)] = Field(alias="class")
    severity: Annotated[str, AfterValidator(_severity)] | None = None
    confirms: bool = True
    source: str = "test"
    count: int = Field(default=1, ge=0)
    fstype: str | None = None
    device: str | None = None
    devno: Annotated[str, AfterValidator(_devno)] | None = None
    errno: int | None = None
    ves: list[str | VeDocument] = []
    time: Annotated[str, AfterValidator(_moment)] | None = None
    detail: str = "a hypothetical event"
    ignored_schema: int | None = Field(default=None, alias="schema")
    cursor: int | None = None
    stored: str | None = None
    incident: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """An event, the VEs that it names, and what was assumed of it.

    `time_ns` (CLOCK_REALTIME) is None where the event has no time: then it happens now.
    """

    event: FsEvent
    ves: tuple[VeFacts, ...]
    assumed: tuple[str, ...]
    time_ns: int | None


def parse(text: str, where: str) -> Hypothesis:
    """From JSON; raises ConfigError, which names every mistake."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{where}: not valid JSON: {error}") from None
    return of(document, where)


def of(document: Any, where: str = "the event") -> Hypothesis:
    """From a JSON value; raises ConfigError, which names every mistake."""
    if not isinstance(document, dict):
        raise _wrong(f"{where}: not a JSON object, but {type(document).__name__}")
    try:
        found = EventDocument.model_validate(document)
    except ValidationError as error:
        raise _wrong("\n".join(_line(where, detail) for detail in error.errors())) from None
    klass = EventClass(found.klass)
    moment_ns = None if found.time is None else parse_timestamp(found.time)
    event = FsEvent(
        source=found.source,
        klass=klass,
        severity=Severity.parse(found.severity) if found.severity else usual_severity(klass),
        confirms=found.confirms,
        time_ns=moment_ns or 0,
        mono_ns=0,
        detail=found.detail,
        device=found.device,
        devno=Devno.parse(found.devno) if found.devno else None,
        fstype=found.fstype,
        errno=found.errno,
        count=found.count,
    )
    given = set(document)
    return Hypothesis(
        event=event,
        ves=tuple(_ve(ve) for ve in found.ves),
        assumed=tuple(
            f"{key}: {_shown(found, event, key)}" for key in _ASSUMED if key not in given
        ),
        time_ns=moment_ns,
    )


def scope(document: Mapping[str, Any]) -> Scope:
    """Whom an event concerns where nothing but the event is known: its VEs, and nobody else."""
    return Scope(ves=tuple(_ve(ve) for ve in document["ves"]))


def _ve(given: str | VeDocument) -> VeFacts:
    ve = VeDocument(id=given) if isinstance(given, str) else given
    platform, colon, name = ve.id.partition(":")
    return VeFacts(
        ve_id=ve.id,
        name=ve.name or (name if colon else ve.id),
        platform=ve.platform or (platform if colon else ""),
        labels=ve.labels,
    )


def _shown(found: EventDocument, event: FsEvent, key: str) -> str:
    if key == "severity":
        return event.severity.label
    if key == "ves":
        return "none"
    value = getattr(found, key)
    return "unknown" if value is None else json.dumps(value)


def _line(where: str, detail: Any) -> str:
    place = [str(part) for part in detail["loc"]]
    key = ".".join(part for part in place if part not in {"str", "VeDocument"})
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in EventDocument.model_fields.items()]
        known += VeDocument.model_fields
        close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
        return f'{where}: {key}: unknown key "{place[-1]}"; {hint}'
    if detail["type"] == "missing":
        return f'{where}: "{key}" is missing'
    given = repr(detail["input"])
    return f"{where}: {key}: {message}" + ("" if given in message else f", not {given}")


def _wrong(message: str) -> ConfigError:
    hint = 'an event as fswatch events --json prints it; at least {"class": "corruption"}'
    return ConfigError(message, hint=hint, code="FSW-EVENT-FILE")
