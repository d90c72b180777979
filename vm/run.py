"""`make test-vm`: run scenarios on whole machines, one machine at a time, and say what was seen.

vm/run.py [--scenario NAME]... [--kernel VERSION]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import time
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


def installed(prepared: guest.Guest, payload: Path) -> Path:
    """Where the disks of a node with this package installed are kept, until it changes."""
    recipe = payload.with_name("payload.sum").read_text() + guest.INSTALL + node.CONFIGURATION
    recipe += (PROJECT / "vm" / "machine.py").read_text()  # a kept memory fits its devices only
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    nodes = prepared.disk.parent / "nodes"
    place = nodes / key
    if not place.exists():
        shutil.rmtree(nodes, ignore_errors=True)
        print("installing the package on a node for all scenarios", flush=True)
        (package,) = payload.with_name("payload").glob("dist/*.deb")
        making = nodes / f"{key}.new"
        guest.install(prepared, package, making, ves=node.VES, configuration=node.CONFIGURATION)
        making.rename(place)
    return place


def booted(place: Path, kernel: guest.Kernel, payload: Path) -> Disks:
    """Such a node, booted once with this kernel, and kept while it runs."""
    kept = place / f"booted-{kernel[0].split('+')[0]}"
    disks = Disks(root=place / "root.img", data=place / "data.img")
    if not kept.exists():
        print(f"booting the node with {kernel[0]} for all scenarios", flush=True)
        machine = Machine(place / "booting", disks, kernel, payload)
        try:
            machine.power_on()
            node.wait_daemon(machine)
            machine.keep_running(kept)
        finally:
            machine.close()
    return Disks(root=kept / "root.qcow2", data=kept / "data.img", memory=kept / "memory")


def run_one(
    scenario: ModuleType, kernel: guest.Kernel, disks: Disks, payload: Path
) -> dict[str, Any]:
    """One scenario on one kernel, with a machine of its own."""
    place = RESULTS / f"{scenario.NAME}-{kernel[0].split('+')[0]}"
    shutil.rmtree(place, ignore_errors=True)
    started = time.monotonic()
    machine = Machine(place, disks, kernel, payload)
    result: dict[str, Any] = {"scenario": scenario.NAME, "kernel": kernel[0]}
    try:
        result["boot_s"] = round(machine.power_on(), 1)
        result["seen"] = scenario.run(machine)
        result["passed"] = True
    except (MachineError, OSError, KeyError, IndexError, ValueError) as error:
        result["passed"], result["why"] = False, f"{type(error).__name__}: {error}"
    finally:
        try:
            node.collect(machine)
        except (MachineError, OSError, ValueError) as error:
            print(f"  nothing could be brought back: {error}", flush=True)
        finally:
            machine.close()
    result["took_s"] = round(time.monotonic() - started)
    return result


def main() -> int:
    """Exit code 1 where a scenario has failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no machine outlives its scenario
    known = all_scenarios()
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenario", action="append", choices=sorted(known))
    parser.add_argument("--kernel", help="only kernels that begin so")
    arguments = parser.parse_args()
    prepared = guest.prepare()
    kernels = [k for k in prepared.kernels if k[0].startswith(arguments.kernel or "")]
    results = []
    names = arguments.scenario or list(known)
    bare = {name for name in names if getattr(known[name], "BARE", False)}
    with tempfile.TemporaryDirectory(prefix="fswatchd-vm-") as directory:
        payload = make_payload(Path(directory), upgrade=bool(bare))
        for name in names:
            scenario = known[name]
            chosen = {"all": kernels, "oldest": kernels[:1], "newest": kernels[-1:]}
            for kernel in chosen[scenario.KERNELS]:
                print(f"{name} on {kernel[0]}: {scenario.TEXT}", flush=True)
                if name in bare:
                    disks = Disks(root=prepared.disk)
                else:
                    disks = booted(installed(prepared, payload), kernel, payload)
                result = run_one(scenario, kernel, disks, payload)
                results.append(result)
                show(result)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    failed = [result for result in results if not result["passed"]]
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed; details in {RESULTS}")
    return 1 if failed or not results else 0


def show(result: dict[str, Any]) -> None:
    """One result, for people."""
    for name, value in result.get("seen", {}).items():
        print(f"  {name}: {value}")
    print(f"  {'passed' if result['passed'] else 'FAILED'} in {result['took_s']} s", flush=True)
    if not result["passed"]:
        print(f"  {result['why']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
