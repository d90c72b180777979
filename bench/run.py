"""`make bench`: all benchmarks, a table for people and `bench-results.json` for machines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import classify, idle, latency, repair, replay, rules, scale, soak, storm
from bench.bench import PROJECT, machine


def main() -> int:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description="Benchmarks of fswatchd; need root.")
    parser.add_argument(
        "names",
        nargs="*",
        help="latency, storm, idle, scale, repair, classify, rules, replay (default: all), or soak",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    arguments = parser.parse_args()
    quick = arguments.quick
    benchmarks = {
        "latency": lambda: latency.run(50 if quick else 300),
        "storm": lambda: storm.run(10_000, 100, 2.0) if quick else storm.run(),
        "idle": lambda: idle.run(10 if quick else 100, 10 if quick else 60),
        "scale": lambda: scale.run((10, 100), 10, 1) if quick else scale.run(),
        "repair": lambda: repair.run((("1G", 2000),) if quick else repair.SIZES),
        "classify": lambda: classify.run(100_000 if quick else 2_000_000),
        "rules": lambda: rules.run(1000, 1000 if quick else 20_000),
        "replay": lambda: replay.run(10_000 if quick else 100_000),
        "soak": lambda: soak.run(500) if quick else soak.run(),
    }
    results: dict[str, object] = {"machine": machine()}
    texts = []
    # The soak takes half an hour, and is run when it is asked for.
    for name in arguments.names or [name for name in benchmarks if name != "soak"]:
        print(f"{name} …", flush=True)
        results[name], text = benchmarks[name]()
        texts.append(text)
    (PROJECT / "bench-results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + "\n".join(texts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
