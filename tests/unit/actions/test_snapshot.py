"""While blocks are shared the VE's tasks have a guard; who was frozen before stays so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.actions import snapshot
from fswatchd.repair import ve_freeze
from fswatchd.repair.volume import ImageFile
from tests.unit.repair.test_format import MOUNTED


@pytest.mark.parametrize(
    ("frozen", "fails", "expected"),
    [
        (False, False, ["hold", "freeze", "share", "thaw", "run"]),
        (False, True, ["hold", "freeze", "thaw", "run"]),
        (True, False, ["freeze", "share", "thaw"]),
    ],
)
async def test_tasks_are_held_around_the_freeze_and_always_let_go(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    *,
    frozen: bool,
    fails: bool,
    expected: list[str],
) -> None:
    happened: list[str] = []

    class Tasks:
        async def hold(self, *_: object) -> str:
            happened.append("hold")
            return "cgroup"

        async def thaw(self) -> bool:
            happened.append("run")
            return True

    class Freeze:
        async def prepare(self) -> None: ...

        async def hold(self, *_: object) -> None:
            happened.append("freeze")

        async def thaw(self) -> bool:
            happened.append("thaw")
            return True

    async def share(*_: object) -> Any:
        if fails:
            raise OSError(28, "No space left on device")
        happened.append("share")

    async def room(*_: object, **__: object) -> None: ...
    async def journal(**_: object) -> None: ...

    monkeypatch.setattr(ve_freeze, "TaskFreeze", Tasks)
    monkeypatch.setattr(ve_freeze.cgroup, "is_frozen", lambda _: frozen)
    monkeypatch.setattr(snapshot.clone, "share", share)
    monkeypatch.setattr(snapshot.clone, "check_room", room)
    commands = SimpleNamespace(freeze=(), thaw=())
    ve = SimpleNamespace(ve_id="lxc:ve101", cgroup="/ve101", guest=False, commands=commands)
    context = SimpleNamespace(
        settings=None,
        journal=journal,
        inventory=SimpleNamespace(current_options=lambda _: ("rw",)),
    )
    path = tmp_path / "ve101.raw"
    path.write_bytes(b"1")
    take = snapshot.SnapshotAction()._take(
        cast("Any", context),
        cast("Any", SimpleNamespace(superblock=MOUNTED, ve=ve)),
        ImageFile.at(str(path)),
        str(tmp_path / "copy"),
        cast("Any", Freeze()),
    )
    if fails:
        with pytest.raises(OSError, match="No space"):
            await take
    else:
        await take
    assert happened == expected
