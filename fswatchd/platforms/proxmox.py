"""Containers and virtual machines of Proxmox VE (pct(1), pct.conf(5); qm(1), see `proxmox_vm`).

Containers are LXC's: which processes are theirs, the LXC driver tells, under `lxc:ID`, which is an
alias here. From /etc/pve/lxc/ID.conf come name, tags, volumes, and the `lock` that a backup, a
migration, a snapshot or a resize holds on it. No program is asked: `pct` itself reads these files,
and its answers take half a second each.

A repair takes the `lock` too, as "disk", which is what a volume that is being moved has (of the
kinds in pct.conf(5)): `pct start`, a backup and a migration refuse it, and `pct set --lock` where
somebody else has one. With `--skiplock` root starts and stops a locked container all the same; for
`pct shutdown`, which has no such option, comes the lxc-stop(1) that it runs (PVE/LXC.pm, vm_stop).
The flock(2) on /run/lock/lxc/pve-config-ID.lock would not do: `pct start` waits for it itself. What
an HA manager looks after is started by that, without `--skiplock`: there no lock is taken.
A lock has no owner (the word is all that pct.conf(5) has of it), and `pct unlock` takes away any.
That it is ours the file tells: nobody has written that since we did.

Not here: where a ZFS storage keeps a container's volume, and a Ceph storage any.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from pathlib import Path

from fswatchd.inventory.model import Commands, Lock, Ve, VeId
from fswatchd.inventory.platform import PlatformError
from fswatchd.platforms import proxmox_config, proxmox_vm, seen
from fswatchd.platforms.proxmox_config import Storage, read_config, read_storages, read_volume

CONFIG = "/etc/pve"
# /etc/pve is served by a process (pmxcfs), which may hang.
_ANSWER_S = 1.0
_FILE = re.compile(r"([1-9][0-9]{2,8})\.conf")
_VOLUME_KEY = re.compile(r"rootfs|mp\d+")
_OUR_LOCK = "disk"


class ProxmoxPlatform:
    """The containers and virtual machines of this node of a Proxmox cluster."""

    name = "proxmox"

    def __init__(self, config: str = CONFIG, run: str = proxmox_vm.RUN) -> None:
        self._config = config
        self._run = run
        self._read: dict[str, tuple[object, dict[str, str]]] = {}
        self._last: list[Ve] = []
        self._above: tuple[object, bool] = (None, False)
        self._reading: asyncio.Task[list[Ve] | None] | None = None

    def watch_directories(self) -> list[str]:
        """Where virtual machines that run have their files; /etc/pve, a FUSE filesystem, tells
        nothing."""
        return [self._run]

    async def list_ves(self) -> list[Ve]:
        """See Platform.

        Where the files cannot be read, locks cannot be seen: what was known counts as busy then.
        """
        if not self._last and not self._is_there():
            return []
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._list))
        await asyncio.wait([self._reading], timeout=_ANSWER_S)
        if not self._reading.done():
            raise self._unreadable("does not answer")
        reading, self._reading = self._reading, None
        try:
            found = reading.result()
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from error
        if found is None and self._last:
            raise self._unreadable("is gone")
        self._last = found or []
        return self._last

    def _is_there(self) -> bool:
        """By the entries of the directory above: to look at it itself may hang."""
        parent, _, name = self._config.rpartition("/")
        stamp = seen.stamp(parent)
        if stamp != self._above[0]:
            self._above = (stamp, stamp is not None and name in os.listdir(parent))
        return self._above[1]

    def _unreadable(self, why: str) -> PlatformError:
        text = f"{self._config} {why}"
        ves = [replace(ve, busy=ve.busy or f"Proxmox: {text}") for ve in self._last]
        return PlatformError(text, hint="is pve-cluster.service running?", partial=ves)

    def _list(self) -> list[Ve] | None:
        containers, machines = self._ids("lxc"), self._ids("qemu-server")
        if containers is None and machines is None:
            return None
        storages = read_storages(_text(f"{self._config}/storage.cfg"))
        # Its form is that of the storages: `ct: 101` and indented keys below it (ha-manager(1)).
        in_ha = read_storages(_text(f"{self._config}/ha/resources.cfg"))
        found = [
            describe(
                one,
                self._load("lxc", one),
                storages,
                file=self._file("lxc", one),
                in_ha=one in in_ha and in_ha[one].kind == "ct",
            )
            for one in containers or ()
        ]
        for one in machines or ():
            config = self._load("qemu-server", one)
            found.append(proxmox_vm.describe(one, config, storages, self._run))
        return found

    def _ids(self, kind: str) -> list[str] | None:
        try:
            names = os.listdir(f"{self._config}/{kind}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return sorted(match[1] for name in names if (match := _FILE.fullmatch(name)))

    def _file(self, kind: str, native_id: str) -> str:
        return f"{self._config}/{kind}/{native_id}.conf"

    def _load(self, kind: str, native_id: str) -> dict[str, str]:
        """The configuration, read again only when the file has changed."""
        path = self._file(kind, native_id)
        stamp = seen.stamp(path)
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = (stamp, read_config(_text_or_error(path)))
        return known[1]


def describe(
    native_id: str,
    config: dict[str, str],
    storages: dict[str, Storage],
    *,
    in_ha: bool = False,
    file: str | None = None,
) -> Ve:
    """The container as its configuration has it, which stands in `file`."""
    lock = config.get("lock")
    volumes = []
    for key, value in config.items():
        if _VOLUME_KEY.fullmatch(key):
            volume = read_volume(value, storages)
            if volume is not None:
                volumes.append(volume)
    return Ve(
        ve_id=VeId(f"proxmox:{native_id}"),
        platform="proxmox",
        native_id=native_id,
        name=config.get("hostname") or native_id,
        labels=proxmox_config.labels(config),
        volumes=tuple(volumes),
        commands=Commands(
            start=("pct", "start", native_id),
            stop=("pct", "shutdown", native_id, "--forceStop", "1", "--timeout", "30"),
            kill=("pct", "stop", native_id),
            # As `pct snapshot` does; `pct suspend` is a checkpoint to the disk.
            freeze=("lxc-freeze", "-n", native_id),
            thaw=("lxc-unfreeze", "-n", native_id),
            # A running container is moved by a restart; in a HA group that is for HA to do.
            migrate=() if in_ha else ("pct", "migrate", native_id, "{to}", "--restart", "1"),
        ),
        lock=None if in_ha else _lock(native_id, file),
        aliases=(VeId(f"lxc:{native_id}"),),
        busy=_busy(lock) if lock else proxmox_config.template(config),
        **seen.running(None),
    )


def _lock(native_id: str, file: str | None) -> Lock:
    return Lock(
        take=("pct", "set", native_id, "--lock", _OUR_LOCK),
        release=("pct", "unlock", native_id),
        commands=Commands(
            start=("pct", "start", native_id, "--skiplock", "1"),
            stop=("lxc-stop", "-n", native_id, "-t", "30"),
            kill=("pct", "stop", native_id, "--skiplock", "1"),
        ),
        busy=_busy(_OUR_LOCK),
        written_in=file,
    )


def _busy(lock: str) -> str:
    return f"Proxmox: lock: {lock}"


def _text(path: str) -> str:
    try:
        return _text_or_error(path)
    except OSError:
        return ""


def _text_or_error(path: str) -> str:
    """Empty where there is no such file (it has moved to another node). Raises OSError: what is not
    known of a VE may be what its owner has asked for."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
