"""Containers of Incus and LXD, by the REST API on their unix socket (Incus: doc/rest-api.md).

The API says which containers there are and names the first process of each. That is believed where
the kernel shows it as the first of a container in the cgroup which liblxc gives one of this name
(`lxc.payload.NAME`, with the project before it for other projects than "default"). The API is asked
when such a cgroup has come or gone, and now and then besides.

Not here: virtual machines, and where a storage pool keeps a volume (declare it in ve.d to have it
repaired).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from fswatchd.inventory.model import Commands, Ve, VeId
from fswatchd.inventory.platform import PlatformError
from fswatchd.kernel import cgroup
from fswatchd.platforms import seen
from fswatchd.platforms.asked import Asked
from fswatchd.platforms.engines import http_get, parse_json
from fswatchd.platforms.seen import Seen

_DEADLINE_S = 10.0
_GROUP = re.compile(r"lxc\.payload\..+")
_DEFAULT = "default"
_LABEL = "user."
_THAW = {"incus": "resume"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What the API says of a container."""

    name: str
    project: str
    pid: int
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def native_id(self) -> str:
        """The name, with its project where that is not the usual one; liblxc's name too."""
        return self.name if self.project == _DEFAULT else f"{self.project}_{self.name}"


class IncusPlatform:
    """The containers of one Incus or LXD. `places` are the programs that it can have, each with its
    socket; the first whose socket is there is the one."""

    def __init__(self, name: str, *places: tuple[str, str]) -> None:
        self.name = name
        self._places = places
        self._program, self._socket = places[0]
        self.asked: Asked[list[Instance]] = Asked(self._ask, [])

    def watch_directories(self) -> list[str]:
        """The cgroup root, where a container's cgroup comes and goes."""
        return [str(root) for root in cgroup.hierarchies()[:1]]

    async def list_ves(self) -> list[Ve]:
        """See Platform."""
        there = next((place for place in self._places if os.path.exists(place[1])), None)
        if there is None and not self.asked.answer:
            return []
        self._program, self._socket = there or (self._program, self._socket)
        groups = frozenset(seen.groups_named(["/"], _GROUP))
        ves = [self._describe(one) for one in self.asked.look((self._socket, groups))]
        if self.asked.problem is not None:
            raise PlatformError(self.asked.problem, partial=ves)
        return ves

    async def _ask(self) -> list[Instance]:
        path = "/1.0/instances?recursion=2&all-projects=true"
        body = await http_get(self._socket, path, _DEADLINE_S)
        return read_instances(parse_json(body, f"{self.name} at {self._socket}"))

    def _describe(self, one: Instance) -> Ve:
        found = None
        if one.pid > 0 and seen.is_first_process(one.pid):
            place = rf"/lxc\.payload\.{re.escape(one.native_id)}(?:-\d+)?"
            group = seen.group_of(one.pid, place)
            found = Seen(one.pid, group) if group else None
        project = ("--project", one.project)
        return Ve(
            ve_id=VeId(f"{self.name}:{one.native_id}"),
            platform=self.name,
            native_id=one.native_id,
            name=one.name,
            labels=one.labels,
            commands=Commands(
                start=(self._program, "start", one.name, *project),
                stop=(self._program, "stop", one.name, *project, "--timeout", "30"),
                kill=(self._program, "stop", one.name, *project, "--force"),
                migrate=(self._program, "move", one.name, *project, "--target", "{to}"),
                freeze=(self._program, "pause", one.name, *project),
                # LXD has no command of its own for it (Incus: incus-resume(1)).
                thaw=(self._program, _THAW.get(self.name, "start"), one.name, *project),
            ),
            **seen.running(found),
        )


def read_instances(answer: dict[str, Any]) -> list[Instance]:
    """The answer to `GET /1.0/instances?recursion=2`; `user.` keys of the configuration are
    labels."""
    return [
        Instance(
            name=one["name"],
            project=one.get("project") or _DEFAULT,
            pid=(one.get("state") or {}).get("pid") or 0,
            labels={
                key.removeprefix(_LABEL): value
                for key, value in (one.get("config") or {}).items()
                if key.startswith(_LABEL)
            },
        )
        for one in answer.get("metadata") or []
        if one.get("type", "container") == "container"
    ]
