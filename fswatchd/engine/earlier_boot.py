"""Incidents of an earlier boot: found again where their volume is mounted since.

A boot deals device numbers anew, and counts attachments from 1: what an incident remembers of both
is nobody's any more (`Filesystem.boot`). Not here: what a mount since the boot says of the damage.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fswatchd.events import names_filesystem
from fswatchd.incidents import Incident
from fswatchd.inventory.view import NodeView


def taken_up(view: NodeView, incident: Incident) -> Incident | None:
    """The incident about what is mounted now, in the same state; None where it is of this boot, or
    its volume is not mounted. Whose it is now is added; who was concerned once stays named."""
    known = incident.filesystem
    if known.boot is None:
        return None
    if known.uuid is None and known.image is None and not names_filesystem(known.fstype):
        return _of_device(view, incident)
    found = view.successor(incident.filesystem, incident.direct_ves)
    if found is None:
        return None
    new = tuple(ve for ve in view.affected(found.devno) if ve not in incident.ves)
    through = tuple(ve for ve in new if ve in view.dependents(found.devno).ves)
    moved = replace(
        incident,
        filesystem=view.describe(found),
        ves=(*incident.ves, *new),
        through=(*incident.through, *through),
    )
    text = f"the node was booted since; the volume was mounted again as {found.device}"
    return moved.noted(time.time_ns(), text)


def _of_device(view: NodeView, incident: Incident) -> Incident | None:
    """Nothing that an incident keeps tells one disk from another: it is taken for the one of that
    name, which is trusted later then, and not sooner. Names of loop devices mean nothing."""
    known = incident.filesystem
    named = [one for one in view.devices.values() if one.name == known.device]
    if len(named) != 1 or named[0].kind == "loop":
        return None
    found = replace(known, boot=None, devno=named[0].devno, disk_sequence=named[0].disk_sequence)
    text = f"the node was booted since; the {known.device} of now is taken for what it was"
    return replace(incident, filesystem=found).noted(time.time_ns(), text)
