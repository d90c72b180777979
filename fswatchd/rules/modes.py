"""How wide a rule, or everything on a node, may act, from the narrowest to the widest.

What is in `shadow` does nothing, and records what it would have done. Apart from the rules:
`fswatch` needs nothing else of them, and pydantic takes longer than a question to the daemon.
"""

from typing import Literal

Mode = Literal["observe", "approve", "auto"]
MODES: tuple[Mode, ...] = ("observe", "approve", "auto")
RuleMode = Literal["observe", "approve", "auto", "shadow"]
NodeMode = RuleMode
NODE_MODES: tuple[NodeMode, ...] = (*MODES, "shadow")
