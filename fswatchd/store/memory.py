"""What sources remember across restarts, kept as facts in the store."""

from __future__ import annotations

from fswatchd.store.store import Store


class FactCursor:
    """How far a source has read (sources.Cursor)."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._key = f"cursor:{name}"
        self._value: object | None = None

    async def load_stored(self) -> None:
        """Read what an earlier run has saved."""
        self._value = (await self._store.facts(self._key)).get(self._key)

    def load(self) -> object | None:
        """See sources.Cursor."""
        return self._value

    def save(self, value: object) -> None:
        """See sources.Cursor: the store writes in the order of the calls."""
        self._value = value
        self._store.set_fact(self._key, value)


class VolumeMemory:
    """What was last seen of each volume (sources.state.Memory)."""

    _PREFIX = "seen:"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, list[int]] = {}

    async def load_stored(self) -> None:
        """Read what an earlier run has saved."""
        stored = await self._store.facts(self._PREFIX)
        self._seen = {key.removeprefix(self._PREFIX): value for key, value in stored.items()}

    def load(self, volume: str) -> list[int] | None:
        """See Memory."""
        return self._seen.get(volume)

    def save(self, volume: str, seen: list[int]) -> None:
        """See Memory."""
        self._seen[volume] = seen
        self._store.set_fact(f"{self._PREFIX}{volume}", seen)

    def forget(self, volume: str) -> None:
        """The next look at the volume is the first one again."""
        if self._seen.pop(volume, None) is not None:
            self._store.set_fact(f"{self._PREFIX}{volume}", None)
