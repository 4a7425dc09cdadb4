"""The command line of the accelerators benchmark."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .._command import choose, console, progress, write_rows
from ._measure import installed, run, verify
from ._targets import TARGETS

QUICK = ("safe_log", "safe_norm", "softmax", "sigmoid_binary_cross_entropy", "skip_nonfinite")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks accelerators",
        description="Kernels and bytes of ours over the usual form's, compiled for TPU and GPU.",
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few cases")
    size.add_argument("--full", action="store_true", help="all cases (the default)")
    made.add_argument("--ops", nargs="+", metavar="NAME", help="ops, losses, guards (see --list)")
    made.add_argument("--targets", nargs="+", metavar="T", help=f"of {', '.join(TARGETS)}")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    made.add_argument("--list", action="store_true", help="list the cases and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    from ._cases import names
    from ._report import sentence, table

    options = parser()
    chosen = options.parse_args(argv)
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
        begin = time.perf_counter()
        with progress(len(ops) * len(targets)) as advance:
            rows = run(ops, targets, advance=advance)
    except ValueError as error:
        options.error(str(error))
    out.print(table(rows))
    out.print()
    out.print(sentence(rows), highlight=False)
    out.print(f"{len(rows)} rows in {time.perf_counter() - begin:.0f} s.")
    write_rows(chosen.json, rows)
    verify(rows)
    return 0
