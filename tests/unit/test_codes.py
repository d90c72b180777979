"""Every message code that users can see is explained, and every one that is explained exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fswatchd import codes
from fswatchd.events import SourceState
from fswatchd.notify import notices
from fswatchd.repair import freeze
from fswatchd.steps import DAMAGED, MENDED, RECOVERED

SOURCE = Path(__file__).parents[2] / "fswatchd"
_CODE = re.compile(r"FSW-[A-Z]+(?:-[A-Z]+)*")
_ANSWERS = {"_yes", "_no", "_later"}


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                yield path.relative_to(SOURCE), name, node


def texts(node: ast.expr | None) -> Iterator[str]:
    """The strings that an expression can be, as far as it says so itself."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((one.value for one in node.keywords if one.arg == name), None)


def guards() -> set[str]:
    found = {"shadow"}  # engine.decider: what rules in that mode would have done
    for path, name, node in calls():
        if name in _ANSWERS and path.name == "guards.py":
            found.update(texts(node.args[0]))
        if name == "GuardAnswer":
            found.update(texts(keyword(node, "guard")))
    return {codes.of_guard(guard) for guard in found}


def steps() -> set[str]:
    found = {freeze.LEFT_FROZEN, DAMAGED, MENDED, RECOVERED}
    for path, name, node in calls():
        if path.parts[0] in {"actions", "engine", "repair"}:
            if name == "refuse":
                found.update(texts(node.args[0]))
            if name == "StepResult":
                found.update(texts(keyword(node, "result")))
            if path.name == "clone_repair.py" and name.startswith("_"):
                found.update(t for arg in node.args for t in texts(arg) if t == "not healthy")
    return {codes.of_step(result) for result in found}


def written() -> set[str]:
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(code for code in _CODE.findall(node.value) if not code.endswith("-"))
    return found - {"FSW-GUARD", "FSW-STEP", "FSW-NOTICE", "FSW-SOURCE"}


def used() -> set[str]:
    kinds = {"opened", "updated", "rejected", "accepted", "test", "lost", "regained"}
    kinds |= {*notices._KIND.values()}
    return (
        guards()
        | steps()
        | written()
        | {codes.of_notice(kind) for kind in kinds}
        | {codes.of_source(state.value) for state in SourceState}
    )


def test_every_code_that_is_used_is_explained() -> None:
    assert len(guards()) >= 13
    assert not used() - set(codes.catalogue())


def test_every_code_that_is_explained_is_used() -> None:
    assert not set(codes.catalogue()) - used()


@pytest.mark.parametrize("entry", codes.catalogue().values(), ids=lambda entry: entry.code)
def test_an_explanation_says_what_it_means_and_what_to_do(entry: codes.Explanation) -> None:
    assert _CODE.fullmatch(entry.code)
    assert entry.means.endswith(".")
    assert entry.todo.endswith(".")


def test_every_doctor_finding_and_refusal_has_a_code_of_its_own() -> None:
    for path, name, node in calls():
        if name == "Finding" and path.parent.name == "doctor":
            assert keyword(node, "code") is not None, ast.unparse(node)
        if name in {"RefusedError", "ConflictError", "UnknownTargetError"}:
            assert keyword(node, "code") is not None, f"{path}: {ast.unparse(node)}"
