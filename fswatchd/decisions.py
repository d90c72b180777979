"""How a decision is recorded, so that it can be compared later, and how it is shown. Pure.

The facts that it was made from are kept with its incident: `replay` asks other rules about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from fswatchd import codes
from fswatchd.policy import Decision
from fswatchd.rules.model import NotifyStep, RuleSet, Step
from fswatchd.situation import Disarm, PolicyState, Scope

# Of what can be as many as there are VEs: more of them would make no decision another one.
_KEPT = 32


# Made with the first decision: a start has no use for them.
@cache
def _scope_type() -> TypeAdapter[Scope]:
    return TypeAdapter(Scope)


@cache
def _disarms_type() -> TypeAdapter[tuple[Disarm, ...]]:
    return TypeAdapter(tuple[Disarm, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What of a decision makes it the same as another one."""

    verdict: str
    rule: str | None
    waiting_for: str = ""
    steps: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.verdict,
            "rule": self.rule,
            "waiting_for": self.waiting_for or None,
            "steps": list(self.steps),
        }


def outline(decision: Decision) -> Outline:
    """A decision in outline."""
    return Outline(
        verdict=decision.verdict.value,
        rule=decision.rule,
        waiting_for=decision.waiting_for,
        steps=tuple(step_label(step) for step in decision.steps),
    )


def outline_of(recorded: Mapping[str, Any]) -> Outline:
    """The outline that `facts` has recorded."""
    return Outline(
        verdict=str(recorded["verdict"]),
        rule=recorded["rule"],
        waiting_for=recorded["waiting_for"] or "",
        steps=tuple(recorded["steps"]),
    )


def facts(
    decision: Decision, scope: Scope, state: PolicyState, node_ves: int = 0
) -> dict[str, object]:
    """A decision and what it was made from, for the incident's record; `node_ves` is how many VEs
    the node has, 0 where nobody knows."""
    disarms = tuple(disarm for disarm in state.disarms if disarm.holds(scope.ves))
    few = replace(
        scope,
        ves=scope.ves[:_KEPT],
        foreign_users=scope.foreign_users[:_KEPT],
        dependents=scope.dependents[:_KEPT],
        children=scope.children[:_KEPT],
        beneath=tuple(replace(layer, ves=layer.ves[:1]) for layer in scope.beneath),
    )
    return {
        **outline(decision).document(),
        "mode": state.mode,
        "distrust": state.distrust,
        "node_ves": node_ves,
        "scope": _scope_type().dump_python(few, mode="json"),
        "disarms": _disarms_type().dump_python(disarms, mode="json"),
    }


def scope_of(recorded: Mapping[str, Any]) -> Scope:
    """The scope that `facts` has recorded."""
    return _scope_type().validate_python(recorded["scope"])


def disarms_of(recorded: Mapping[str, Any]) -> tuple[Disarm, ...]:
    """The disarms that held then: as long as the incident lasted, for all that is known."""
    known = _disarms_type().validate_python(recorded.get("disarms") or ())
    return tuple(replace(disarm, until_ns=None) for disarm in known)


def step_label(step: Step) -> str:
    """A step in a few words: `fsck clone`, `notify ops`."""
    if isinstance(step, NotifyStep):
        return f"notify {','.join(step.to)}"
    chosen = getattr(step, "strategy", None) or getattr(step, "how", None)
    return f"{step.do} {chosen}" if chosen else step.do


def document(decision: Decision, rules: RuleSet) -> dict[str, Any]:
    """A decision with its reasons."""
    return {
        **outline(decision).document(),
        "file": dict(rules.origin).get(decision.rule or ""),
        "channels": list(decision.channels),
        "retry_after_s": decision.retry_after_s,
        "shadows": [
            {"rule": one.rule, "verdict": one.verdict.value, "text": one.text}
            for one in decision.shadows
        ],
        "answers": [
            {
                "guard": answer.guard,
                "passed": answer.passed,
                "text": answer.text,
                "code": codes.of_guard(answer.guard),
            }
            for answer in decision.answers
        ],
    }
