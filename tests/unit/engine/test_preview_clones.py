"""No clone of a preview outlives the daemon's next start, whatever ended it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fswatchd.engine.operator import Operator
from fswatchd.engine.preview_clones import KEY, PreviewClones
from fswatchd.repair import clone, preview, scope, storage
from fswatchd.repair.logical_volume import LogicalVolume
from fswatchd.repair.volume import ImageFile
from fswatchd.steps import ActionSettings
from fswatchd.store.store import Store
from tests.unit.builders import filesystem, incident

ID = "20261121-abcde"


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    path = tmp_path / "ve101.raw"
    path.write_text("a filesystem")
    return ImageFile.at(str(path))


async def killed(store: Store, image: ImageFile) -> Path:
    """What a kill leaves in the middle of a preview: the fact, and the clone."""
    noted = PreviewClones(store, ActionSettings()).noted(image, ID)
    await noted.__aenter__()
    path = Path(clone.clone_path(image, ID, "preview"))
    path.write_text("a clone")
    return path


async def restarted(store: Store) -> None:
    clones = PreviewClones(store, ActionSettings())
    await clones.load()
    await clones.discard_left()


async def test_what_a_kill_has_left_goes_at_the_next_start(store: Store, image: ImageFile) -> None:
    path = await killed(store, image)
    await restarted(store)
    assert (path.exists(), await store.facts(KEY)) == (False, {})
    assert Path(image.path).read_text() == "a filesystem"


async def test_what_cannot_be_deleted_stays_written_down(
    store: Store, image: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await killed(store, image)
    with monkeypatch.context() as patched:
        patched.setattr(clone, "discard_unfinished", lambda _: None)
        await restarted(store)
        assert (path.exists(), len(await store.facts(KEY))) == (True, 1)
    await restarted(store)
    assert (path.exists(), await store.facts(KEY)) == (False, {})


async def test_a_logical_volume_is_discarded_by_what_it_lies_in(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, asked = LogicalVolume(path="/dev/vg/ve101", uuid="LVM-1"), []

    class Lvm:
        broken = True

        async def discard_unfinished(self, path: str) -> None:
            asked.append(path)
            if self.broken:
                raise OSError(5, "the pool does not answer")

    lvm = Lvm()
    monkeypatch.setattr(storage, "of", lambda found, _: lvm if found == volume else None)
    await store.set_fact(f"{KEY}/dev/vg/ve101.fswatchd-preview-x", volume.describe())
    await restarted(store)
    assert len(await store.facts(KEY)) == 1
    lvm.broken = False
    await restarted(store)
    assert await store.facts(KEY) == {}
    assert asked == ["/dev/vg/ve101.fswatchd-preview-x"] * 2


@pytest.mark.parametrize("ending", [OSError(5, "Input/output error"), asyncio.CancelledError()])
async def test_a_preview_is_written_down_before_its_clone_is_made_and_until_it_is_gone(
    store: Store, image: ImageFile, monkeypatch: pytest.MonkeyPatch, ending: BaseException
) -> None:
    during: list[dict[str, Any]] = []

    async def resolve(_: object) -> Any:
        return SimpleNamespace(ve=SimpleNamespace(ve_id="lxc:ve101"), image=image)

    async def look(context: Any, *_: object) -> Any:
        """Its own end leaves the clone behind."""
        during.append(await store.facts(KEY))
        Path(clone.clone_path(image, context.incident.incident_id, "preview")).write_text("clone")
        raise ending

    monkeypatch.setattr(scope, "resolve", resolve)
    monkeypatch.setattr("fswatchd.engine.operator.require_volume", lambda _: image)
    monkeypatch.setattr(preview, "look", look)
    rest: dict[str, Any] = dict.fromkeys(
        ("inventory", "state", "decider", "executor", "arming", "closer", "said_well")
    )
    book = SimpleNamespace(new=lambda *_: incident())
    asked = Operator(cast("Any", book), store, settings=ActionSettings(), **rest)
    with suppress(OSError, asyncio.CancelledError):
        await asked.look(filesystem(), ("lxc:ve101",))
    path = clone.clone_path(image, ID, "preview")
    assert during == [{f"{KEY}{path}": image.describe()}]
    assert (Path(path).exists(), await store.facts(KEY)) == (False, {})
