"""Whose turn it is when more wait for a repair than may run at once. Pure.

In order: whose VE has not been repaired for the longest time, then who has waited longest. So a VE
with a thousand faults does not keep another's one fault waiting.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from fswatchd.incidents import Incident, Load
from fswatchd.rules.model import Budget
from fswatchd.situation import Turn, Waiting


class Turns:
    """Those that wait for a budget, by their turn; finding and changing one costs little.

    Those with one budget on the same disks and filesystems can all begin, or none can: only the
    first of them is asked about. `begun_ns` is when a repair of each VE last began
    (CLOCK_BOOTTIME), as others keep it.
    """

    def __init__(self, begun_ns: Mapping[str, int]) -> None:
        self._begun_ns = begun_ns
        self._groups: dict[_Group, list[Waiting]] = {}
        self._waiting: dict[str, Waiting] = {}
        self._heads: list[Waiting] | None = []

    @property
    def queue(self) -> Sequence[Waiting]:
        """The first of each group, the next first."""
        if self._heads is None:
            self._heads = sorted((group[0] for group in self._groups.values()), key=_turn)
        return self._heads

    def waits(self, incident: Incident, ve: str, budget: Budget, load: Load) -> None:
        """The incident waits for room in this budget; its VE is named `ve`."""
        turn = (self._begun_ns.get(ve, 0), incident.opened_ns, incident.incident_id)
        waiting = Waiting(turn=turn, ve=ve, budget=budget, load=load)
        if self._waiting.get(incident.incident_id) == waiting:
            return
        self.gone(incident.incident_id)
        group = self._groups.setdefault(_group(waiting), [])
        insort(group, waiting, key=_turn)
        if group[0] is waiting:
            self._heads = None
        self._waiting[incident.incident_id] = waiting

    def gone(self, incident_id: str) -> None:
        """The incident does not wait for a budget any more."""
        known = self._waiting.pop(incident_id, None)
        if known is None:
            return
        key = _group(known)
        group = self._groups[key]
        place = bisect_left(group, known.turn, key=_turn)
        del group[place]
        if place == 0:
            self._heads = None
        if not group:
            del self._groups[key]


_Group = tuple[object, ...]


def _group(waiting: Waiting) -> _Group:
    """What decides whether there is room; its own device nobody else uses."""
    budget, load = waiting.budget, waiting.load
    labels = tuple(label for label in load.labels if label[0] in budget.label)
    limits = (budget.node, budget.device, budget.filesystem, tuple(budget.label.items()))
    return (limits, load.devices[1:], load.filesystems, labels)


def _turn(waiting: Waiting) -> Turn:
    return waiting.turn
