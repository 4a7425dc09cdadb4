"""`python -m benchmarks [SUITE] [options]`: runs a benchmark suite, `survival` if none is named."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

SUITES = ("survival", "accuracy", "speed", "optimizers", "accelerators")
"""Subpackages with a `main(argv)`; imported when they run, since each needs other packages."""


def main(argv: Sequence[str]) -> int:
    """Runs one suite, or all of them; returns the exit status."""
    name, rest = "survival", list(argv)
    if rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
    if name == "all":
        return _every(rest)
    if name not in SUITES:
        valid = ", ".join([*SUITES, "all"])
        print(
            f"python -m benchmarks: unknown suite {name!r}; choose from: {valid}", file=sys.stderr
        )
        return 2
    return import_module(f"benchmarks.{name}").main(rest)


def _every(argv: Sequence[str]) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks all", description="Every suite with its default peers and arms."
    )
    options.add_argument("--quick", action="store_true", help="the smallest size of each")
    options.add_argument("--full", action="store_true", help="the largest size of each")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows; the suite's name is put in"
    )
    chosen = options.parse_args(argv)
    status = 0
    for name in SUITES:
        size = [f"--{key}" for key in ("quick", "full") if getattr(chosen, key)]
        file = chosen.json and chosen.json.with_stem(f"{chosen.json.stem}-{name}")
        rest = [*size, *(["--json", str(file)] if file else [])]
        status = max(status, import_module(f"benchmarks.{name}").main(rest))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
