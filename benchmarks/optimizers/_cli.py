"""The command line of the optimizer benchmark."""

import argparse
import time
from collections.abc import Sequence

from .._command import conclude, console, journal, output_options, parsed, progress, size_options
from ._arms import ARMS, QUICK_TREE, TREES
from ._behaviour import DTYPES
from ._cost import COMPILES
from ._report import behaviour_table, cost_table, sentence
from ._run import ROUNDS, chosen, planned, run, verify


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks optimizers",
        description="What guards cost beside bare Adam, and what they do about faults.",
    )
    size = size_options(
        made,
        f"the tree of {QUICK_TREE}, 7 rounds, one compilation",
        "all dtypes in the table of behaviour",
    )
    size.add_argument("--trees", nargs="+", metavar="T", help=f"of {'; '.join(TREES)}")
    made.add_argument("--rounds", type=int, metavar="N", help=f"({ROUNDS})")
    made.add_argument("--compiles", type=int, metavar="N", help=f"of each arm ({COMPILES})")
    made.add_argument("--arms", nargs="+", metavar="A", help="arms under faults (see --list)")
    output_options(made)
    made.add_argument("--list", action="store_true", help="list the arms and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    given = parsed(options, argv)
    out = console()
    if given.list:
        out.print("\n".join(ARMS))
        return 0
    rounds = given.rounds if given.rounds is not None else 7 if given.quick else ROUNDS
    compiles = given.compiles if given.compiles is not None else 1 if given.quick else COMPILES
    trees = [QUICK_TREE] if given.quick else given.trees
    begin = time.perf_counter()
    try:
        what = chosen(trees, given.arms, list(DTYPES) if given.full else ["float32"])
        kept = journal(given)
        with progress(planned(*what)) as advance:
            rows = run(*what, rounds=rounds, compiles=compiles, once=kept.once, advance=advance)
    except ValueError as error:
        options.error(str(error))
    shown = [cost_table(rows), behaviour_table(rows)]
    return conclude(given, rows, begin, shown, sentence(rows), lambda: verify(rows, *what))
