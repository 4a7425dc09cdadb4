"""`python -m benchmarks [SUITE] [options]`: runs a benchmark suite, `survival` if none is named."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

SUITES = ("survival", "accuracy", "speed", "optimizers", "accelerators", "models")
"""Subpackages with a `main(argv)`; imported when they run, since each needs other packages."""
WITH_PEERS = ("accuracy", "speed")
IN_FULL = {
    "accuracy": [],
    "speed": ["--full", "--peers", "jax", "optax", "torch"],
    "models": ["--seeds", "2"],
}
"""What `all --full` gives a suite in place of `--full`, to end in about two hours on two cores."""


def main(argv: Sequence[str]) -> int:
    """Runs one suite, or all of them, or compares two files; returns the exit status."""
    name, rest = "survival", list(argv)
    if rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
    if name == "all":
        return _every(rest)
    if name == "compare":
        return import_module("benchmarks._compare").main(rest)
    if name not in SUITES:
        valid = ", ".join([*SUITES, "all", "compare"])
        print(
            f"python -m benchmarks: unknown suite {name!r}; choose from: {valid}", file=sys.stderr
        )
        return 2
    return import_module(f"benchmarks.{name}").main(rest)


def _every(argv: Sequence[str]) -> int:
    from ._command import console, journal, output_options, parsed, size_options
    from ._rows import read_rows

    options = argparse.ArgumentParser(
        prog="python -m benchmarks all", description="Every suite, into one file and one page."
    )
    size_options(
        options,
        "the smallest size of each: ten minutes on two cores",
        "the largest size of each, cut to about two hours: accuracy in 1000 samples, speed beside "
        "jax, optax and torch, models in float32 with two seeds",
    )
    options.add_argument(
        "--peers", nargs="+", metavar="P", help="libraries beside ours, in accuracy and speed"
    )
    output_options(options)
    chosen = parsed(options, argv)
    try:
        path = journal(chosen).path  # begins it anew, unless it is resumed
    except ValueError as error:
        options.error(str(error))
    kept = ["--json", str(path), "--resume"] if path else []
    out, status = console(), 0
    for name in SUITES:
        out.rule(name)
        size = ["--quick"] if chosen.quick else []
        if chosen.full:
            size = IN_FULL.get(name, ["--full"])
        peers = ["--peers", *chosen.peers] if chosen.peers and name in WITH_PEERS else []
        try:
            status = max(status, import_module(f"benchmarks.{name}").main([*size, *kept, *peers]))
        except ImportError as error:
            out.print(f"{name} is left out: {error}", highlight=False, markup=False)
            status = 1
    if chosen.report:
        from .report import write_report

        assert path is not None
        page = write_report(read_rows(path), chosen.report, chosen.command)
        out.print(f"wrote {page}", highlight=False)
    return status


if __name__ == "__main__":
    import jax

    from ._command import quiet

    with quiet():
        jax.devices()  # plugins of devices that are not there complain
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
