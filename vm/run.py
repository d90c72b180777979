"""`make test-vm`: run scenarios on whole machines, one a core, and say what was seen.

vm/run.py [--scenario NAME]... [--kernel VERSION] [--jobs N]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from vm import guest, node, scenarios  # noqa: E402
from vm.machine import Disks, Machine, MachineError  # noqa: E402

RESULTS = PROJECT / "dist" / "vm"


def all_scenarios() -> dict[str, ModuleType]:
    """By name, in the order of their modules' names."""
    found = {}
    for module in pkgutil.iter_modules(scenarios.__path__):
        scenario = importlib.import_module(f"vm.scenarios.{module.name}")
        found[scenario.NAME] = scenario
    return found


def make_payload(work: Path, *, upgrade: bool) -> Path:
    """A disk with the package, and the next version of it where somebody wants that."""
    tree, disk = work / "payload", work / "payload.img"
    package = _build(tree / "dist", "1")
    (work / "payload.sum").write_text(contents(package))
    if upgrade:
        second = _build(tree / "upgrade", "2")
        (PROJECT / "dist" / second.name).unlink()  # nobody wants it here
    guest.make_disk(disk, tree, "64M")
    return disk


def _build(place: Path, revision: str) -> Path:
    argv = [str(PROJECT / "data" / "deb.sh"), guest.SUITE, revision]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    place.mkdir(parents=True)
    return Path(shutil.copy(PROJECT / done.stdout.split()[-1], place))


def contents(package: Path) -> str:
    """A digest of what a package installs, but for its changelog, which has the commit's date."""
    with tempfile.TemporaryDirectory(prefix="fswatchd-vm-") as directory:
        tree = Path(directory)
        subprocess.run(["dpkg-deb", "-x", str(package), directory], check=True)
        shutil.rmtree(tree / "usr/share/doc")
        digest = hashlib.sha256()
        for path in sorted(tree.rglob("*")):
            digest.update(f"{path.relative_to(tree)}\n".encode())
            if path.is_file() and path.name not in {"RECORD", "INSTALLER"}:
                digest.update(path.read_bytes())
        return digest.hexdigest()


class Nodes:
    """Nodes with the package installed, kept until it changes; several threads may ask."""

    def __init__(self, prepared: guest.Guest, payload: Path) -> None:
        self._prepared = prepared
        self._payload = payload
        self._making = threading.Lock()

    def bare(self) -> Disks:
        """A guest without the package."""
        return Disks(root=self._prepared.disk)

    def booted(self, kernel: guest.Kernel) -> Disks:
        """A node that was booted once with this kernel, and kept while it runs."""
        with self._making:
            place = self._installed()
            kept = place / f"booted-{kernel[0].split('+')[0]}"
            disks = Disks(root=place / "root.img", data=place / "data.img")
            if not kept.exists():
                print(f"booting the node with {kernel[0]} for all scenarios", flush=True)
                with on(Machine(place / "booting", disks, kernel, self._payload)) as machine:
                    machine.power_on()
                    node.wait_daemon(machine)
                    machine.keep_running(kept)
        return Disks(root=kept / "root.qcow2", data=kept / "data.img", memory=kept / "memory")

    def _installed(self) -> Path:
        recipe = self._payload.with_name("payload.sum").read_text() + guest.INSTALL
        recipe += node.CONFIGURATION
        # A kept memory fits its devices only.
        recipe += (PROJECT / "vm" / "machine.py").read_text()
        key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        nodes = self._prepared.disk.parent / "nodes"
        place = nodes / key
        if not place.exists():
            shutil.rmtree(nodes, ignore_errors=True)
            print("installing the package on a node for all scenarios", flush=True)
            (package,) = self._payload.with_name("payload").glob("dist/*.deb")
            making = nodes / f"{key}.new"
            guest.install(
                self._prepared, package, making, ves=node.VES, configuration=node.CONFIGURATION
            )
            making.rename(place)
        return place


@contextmanager
def on(machine: Machine) -> Iterator[Machine]:
    """The machine, ended afterwards; all that are on end when this program is told to."""
    _ON.append(machine)
    try:
        if _ENDING.is_set():
            raise MachineError("this program was told to end")
        yield machine
    finally:
        _ON.remove(machine)
        machine.close()


_ON: list[Machine] = []
_ENDING = threading.Event()


def run_one(
    scenario: ModuleType, kernel: guest.Kernel, nodes: Nodes, payload: Path
) -> dict[str, Any]:
    """One scenario on one kernel, with a machine of its own."""
    place = RESULTS / f"{scenario.NAME}-{kernel[0].split('+')[0]}"
    shutil.rmtree(place, ignore_errors=True)
    result: dict[str, Any] = {"scenario": scenario.NAME, "kernel": kernel[0]}
    started = time.monotonic()
    try:
        disks = nodes.bare() if _is_bare(scenario) else nodes.booted(kernel)
        started = time.monotonic()
        with on(Machine(place, disks, kernel, payload)) as machine:
            try:
                result["boot_s"] = round(machine.power_on(), 1)
                result["seen"] = scenario.run(machine)
                result["passed"] = True
            finally:
                _collect(machine)
    except (MachineError, OSError, KeyError, IndexError, ValueError) as error:
        result["passed"], result["why"] = False, f"{type(error).__name__}: {error}"
    result["took_s"] = round(time.monotonic() - started)
    return result


def _is_bare(scenario: ModuleType) -> bool:
    return bool(getattr(scenario, "BARE", False))


def _collect(machine: Machine) -> None:
    try:
        node.collect(machine)
    except (MachineError, OSError, ValueError) as error:
        print(f"  nothing could be brought back: {error}", flush=True)


def main() -> int:
    """Exit code 1 where a scenario has failed."""
    known = all_scenarios()
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenario", action="append", choices=sorted(known))
    parser.add_argument("--kernel", help="only kernels that begin so")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="machines at once (default: one a core)"
    )
    arguments = parser.parse_args()
    prepared = guest.prepare()
    kernels = [k for k in prepared.kernels if k[0].startswith(arguments.kernel or "")]
    wanted = [known[name] for name in arguments.scenario or known]
    # The longest begin, after those that nobody has to make a node for meanwhile.
    wanted.sort(key=lambda one: (not _is_bare(one), -getattr(one, "ABOUT_S", 100)))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fswatchd-vm-") as directory:
        payload = make_payload(Path(directory), upgrade=any(map(_is_bare, wanted)))
        nodes = Nodes(prepared, payload)
        with ThreadPoolExecutor(arguments.jobs) as pool, _ended_with(pool):
            chosen = {"all": kernels, "oldest": kernels[:1], "newest": kernels[-1:]}
            running = [
                pool.submit(run_one, scenario, kernel, nodes, payload)
                for scenario in wanted
                for kernel in chosen[scenario.KERNELS]
            ]
            results = []
            for done in as_completed(running):
                results.append(done.result())
                show(results[-1], known)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    failed = [result for result in results if not result["passed"]]
    took = f"{time.monotonic() - began:.0f} s"
    passed = len(results) - len(failed)
    print(f"{passed} passed, {len(failed)} failed in {took}; details in {RESULTS}")
    return 1 if failed or not results else 0


@contextmanager
def _ended_with(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Told to end, or interrupted, no machine outlives this program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    except BaseException:
        _ENDING.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for machine in tuple(_ON):
            machine.close()
        raise


def show(result: dict[str, Any], known: dict[str, ModuleType]) -> None:
    """One result, for people."""
    name = result["scenario"]
    lines = [f"{name} on {result['kernel']}: {known[name].TEXT}"]
    lines += [f"  {what}: {value}" for what, value in result.get("seen", {}).items()]
    lines.append(f"  {'passed' if result['passed'] else 'FAILED'} in {result['took_s']} s")
    if not result["passed"]:
        lines.append(f"  {result['why']}")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
