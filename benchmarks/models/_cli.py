"""The command line of the models' benchmark."""

import argparse
import time
from collections.abc import Sequence

from .._command import conclude, console, journal, output_options, parsed, progress, size_options
from ._report import sentence, table
from ._run import DATA, chosen, run, runs, verify
from ._tasks import DTYPES, TASKS


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks models",
        description="What the reference models reach on real data, in three dtypes, and (float32) "
        "when 1% of the training rows are NaN, 1% of the cells 1e6 and every hundredth gradient is "
        "NaN.",
    )
    size_options(made, "one seed, two epochs, float32", "all dtypes")
    made.add_argument("--tasks", nargs="+", metavar="T", help=f"of {'; '.join(TASKS)}")
    made.add_argument("--dtypes", nargs="+", metavar="D", help=f"of {' '.join(DTYPES)} (float32)")
    made.add_argument("--data", nargs="+", metavar="K", help=f"of {' '.join(DATA)} (both)")
    made.add_argument("--seeds", type=int, metavar="N", help="splits of each (5)")
    output_options(made)
    made.add_argument("--list", action="store_true", help="list the tasks and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    given = parsed(options, argv)
    out = console()
    if given.list:
        out.print("\n".join(TASKS), highlight=False)
        return 0
    seeds = given.seeds if given.seeds is not None else 1 if given.quick else 5
    dtypes = given.dtypes or (list(DTYPES) if given.full else ["float32"])
    begin = time.perf_counter()
    try:
        what = chosen(given.tasks, dtypes, given.data)
        kept = journal(given)
        with progress(len(runs(*what, seeds))) as advance:
            rows = run(
                *what,
                seeds=seeds,
                epochs=2 if given.quick else None,
                once=kept.once,
                advance=advance,
            )
    except ValueError as error:
        options.error(str(error))
    check = lambda: verify(rows, *what, seeds=seeds)
    return conclude(given, rows, begin, [table(rows)], sentence(rows), check)
