"""One entry a VE, although several platforms know it.

A Proxmox container is an LXC container too, a Docker container one of containerd. The driver that
is asked first gives id, name and commands; the ids of the others stay as `aliases`. What is
declared by hand completes what a driver has found, and never replaces it. Of what they say of the
mode that the VE's owner wants the most careful counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fswatchd.inventory.model import Ve, VeId
from fswatchd.situation import joined_labels

DECLARED = "declared"


def merged(found: Iterable[Ve]) -> dict[VeId, Ve]:
    """The VEs by id, each process as the init of one of them."""
    ves = list(found)
    known = _without_aliases([ve for ve in ves if ve.platform != DECLARED])
    by_init: dict[int, VeId] = {}
    result: dict[VeId, Ve] = {}
    for ve in known:
        twin = by_init.get(ve.init_pid) if ve.init_pid is not None else None
        if twin is not None:
            result[twin] = _also_called(result[twin], ve)
            continue
        result[ve.ve_id] = ve
        if ve.init_pid is not None:
            by_init[ve.init_pid] = ve.ve_id
    by_name: dict[str, list[Ve]] = {}
    for ve in result.values():
        by_name.setdefault(ve.name, []).append(ve)
    for ve in ves:
        if ve.platform == DECLARED:
            twin = by_init.get(ve.init_pid) if ve.init_pid is not None else None
            twin = twin or _with_the_same_volume(by_name.get(ve.name, ()), ve)
            completed = _completed(result[twin], ve) if twin else ve
            result[completed.ve_id] = completed
            if completed.init_pid is not None:
                by_init[completed.init_pid] = completed.ve_id
    return result


def _without_aliases(ves: list[Ve]) -> list[Ve]:
    """Without those that another one names as its alias; what is seen of their processes stays."""
    by_id = {ve.ve_id: ve for ve in ves}
    hidden = {alias for ve in ves for alias in ve.aliases if alias in by_id and alias != ve.ve_id}
    found = []
    for ve in ves:
        if ve.ve_id in hidden:
            continue
        others = [by_id[alias] for alias in ve.aliases if alias in by_id]
        ve = replace(
            ve,
            labels=joined_labels(ve.labels, *(one.labels for one in others)),
            labels_known=ve.labels_known and all(one.labels_known for one in others),
        )
        running = next(
            (by_id[a] for a in ve.aliases if a in by_id and by_id[a].init_pid is not None), None
        )
        if ve.init_pid is None and running is not None:
            ve = replace(
                ve,
                state=running.state,
                init_pid=running.init_pid,
                init_started=running.init_started,
                namespace=running.namespace,
                namespace_id=running.namespace_id,
                cgroup=running.cgroup,
            )
        found.append(ve)
    return found


def _also_called(ve: Ve, other: Ve) -> Ve:
    aliases = dict.fromkeys((*ve.aliases, other.ve_id, *other.aliases))
    labels = joined_labels(ve.labels, other.labels)
    return replace(
        ve,
        aliases=tuple(aliases),
        busy=ve.busy or other.busy,
        labels=labels,
        labels_known=ve.labels_known and other.labels_known,
    )


def _with_the_same_volume(namesakes: Iterable[Ve], declared: Ve) -> VeId | None:
    places = _places(declared)
    return next((ve.ve_id for ve in namesakes if places & _places(ve)), None)


def _places(ve: Ve) -> set[str | None]:
    return {volume.image or volume.device for volume in ve.volumes}


def _completed(ve: Ve, declared: Ve) -> Ve:
    return replace(
        ve,
        labels=joined_labels({**ve.labels, **declared.labels}, ve.labels),
        volumes=declared.volumes or ve.volumes,
        serves=declared.serves or ve.serves,
        commands=replace(
            ve.commands,
            start=declared.commands.start or ve.commands.start,
            stop=declared.commands.stop or ve.commands.stop,
            kill=declared.commands.kill or ve.commands.kill,
            freeze=declared.commands.freeze or ve.commands.freeze,
            thaw=declared.commands.thaw or ve.commands.thaw,
        ),
        lock=declared.lock or ve.lock,
    )
