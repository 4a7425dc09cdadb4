"""The command line of the accelerators benchmark."""

import argparse
import time
from collections.abc import Sequence

from .._command import (
    choose,
    conclude,
    console,
    journal,
    output_options,
    parsed,
    progress,
    size_options,
)
from ._measure import installed, run, verify
from ._targets import TARGETS

QUICK = ("safe_log", "safe_norm", "softmax", "sigmoid_binary_cross_entropy", "skip_nonfinite")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks accelerators",
        description="Kernels and bytes of ours over the usual form's, compiled for TPU and GPU.",
    )
    size_options(made, "a few cases", "all cases (the default)")
    made.add_argument(
        "--ops", nargs="+", metavar="NAME", help="ops, losses, guards, train steps (see --list)"
    )
    made.add_argument("--targets", nargs="+", metavar="T", help=f"of {', '.join(TARGETS)}")
    output_options(made)
    made.add_argument("--list", action="store_true", help="list the cases and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    from ._cases import names
    from ._report import sentence, table

    options = parser()
    chosen = parsed(options, argv)
    out = console()
    if chosen.list:
        out.print("\n".join(names()))
        return 0
    try:
        ops = choose("op", chosen.ops or (QUICK if chosen.quick else None), names())
        targets = choose("target", chosen.targets, TARGETS)
        for target in targets:
            problem = TARGETS[target].problem()
            if problem:
                out.print(f"{target} is left out: {problem}", highlight=False, markup=False)
        targets = [target for target in targets if target in installed()]
        if not targets:
            return 0
        kept = journal(chosen)
        begin = time.perf_counter()
        with progress(len(ops) * len(targets)) as advance:
            rows = run(ops, targets, once=kept.once, advance=advance)
    except ValueError as error:
        options.error(str(error))
    return conclude(chosen, rows, begin, [table(rows)], sentence(rows), lambda: verify(rows))
