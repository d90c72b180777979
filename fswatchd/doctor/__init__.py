"""`fswatch doctor`: is this node ready, and what to do about what is not.

It looks and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from fswatchd.config import Config
from fswatchd.doctor import filesystems, images, node, rules, ves
from fswatchd.doctor.finding import Finding
from fswatchd.engine.rulekeeper import RuleKeeper
from fswatchd.inventory.inventory import Inventory
from fswatchd.sources import SourceStatus


async def examine(
    config: Config,
    sources: list[SourceStatus],
    inventory: Inventory,
    keeper: RuleKeeper,
    failing: Mapping[str, str],
) -> list[Finding]:
    """Every precondition of this node; `failing` are channels with the error of their last try."""
    channels = list(config.channel)
    return [
        *node.root(),
        *(node.source(status, getattr(config.sources, status.name)) for status in sources),
        node.memory(wanted=config.daemon.lock_memory),
        *node.switches(),
        *await node.tools(),
        *node.rivals(),
        *filesystems.examine(inventory),
        *await images.examine(inventory, config.repair),
        *ves.examine(inventory, config.daemon.ves),
        *rules.examine(keeper.current, keeper.problems),
        *node.channels(channels, failing),
        *rules.unheard(keeper.current, channels),
    ]
