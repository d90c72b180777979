"""`make bench`: all benchmarks, a table for people and `bench-results.json` for machines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import classify, idle, latency, repair, replay, rules, scale, soak, start, storm
from bench.bench import PROJECT, machine


def main() -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description="Benchmarks of fswatchd; need root.")
    parser.add_argument(
        "names",
        nargs="*",
        help="latency, storm, idle, start, scale, repair, classify, rules, replay (all), "
        "stopped (a repair of what the kernel has stopped), or soak",
    )
    parser.add_argument(
        "--sizes",
        metavar="SIZE:FILES,…",
        help="what `repair` and `stopped` are tried with, as 1G:20000,4G:100000; else up to 64G",
    )
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md too")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    arguments = parser.parse_args()
    quick = arguments.quick
    sizes = repair.SIZES
    if arguments.sizes:
        pairs = [one.split(":") for one in arguments.sizes.split(",")]
        sizes = tuple((size, int(files)) for size, files in pairs)
    elif quick:
        sizes = (("1G", 2000),)
    benchmarks = {
        "latency": lambda: latency.run(50 if quick else 300),
        "storm": lambda: storm.run(10_000, 100, 2.0) if quick else storm.run(),
        "idle": lambda: idle.run(10 if quick else 100, 10 if quick else 60),
        "start": lambda: start.run(3 if quick else 11),
        "scale": lambda: scale.run((10, 100), 10, 1) if quick else scale.run(),
        "repair": lambda: repair.run(sizes),
        "stopped": lambda: repair.run(sizes, repair.STOPS),
        "classify": lambda: classify.run(100_000 if quick else 2_000_000),
        "rules": lambda: rules.run(1000, 1000 if quick else 20_000),
        "replay": lambda: replay.run(10_000 if quick else 100_000),
        "soak": lambda: soak.run(100, 20) if quick else soak.run(),
    }
    results: dict[str, object] = {"machine": machine()}
    texts = []
    # These take long, and are run when they are asked for.
    for name in arguments.names or [name for name in benchmarks if name not in {"stopped", "soak"}]:
        print(f"{name} …", flush=True)
        results[name], text = benchmarks[name]()
        texts.append(text)
        if arguments.readme:
            into_readme(name, text)
    (PROJECT / "bench-results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + "\n".join(texts))
    return 0


def into_readme(name: str, text: str) -> None:
    """Replace what stands between the marks of this benchmark, where README.md has such."""
    readme = PROJECT / "README.md"
    begin, end = f"<!-- bench {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = readme.read_text().partition(begin)
    if found:
        lines = [line for line in text.splitlines() if line.startswith("|")]
        readme.write_text("\n".join((f"{before}{begin}", *lines, f"{end}{rest.partition(end)[2]}")))


if __name__ == "__main__":
    raise SystemExit(main())
