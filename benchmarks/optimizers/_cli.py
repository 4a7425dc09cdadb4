"""The command line of the optimizer benchmark."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .._command import console, progress, write_rows
from ._arms import ARMS, QUICK_TREE, TREES
from ._behaviour import DTYPES
from ._report import behaviour_table, cost_table, sentence
from ._run import ROUNDS, chosen, planned, run, verify


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks optimizers",
        description="What guards cost beside bare Adam, and what they do about faults.",
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"the tree of {QUICK_TREE}, 7 rounds")
    size.add_argument("--full", action="store_true", help="all dtypes in the table of behaviour")
    size.add_argument("--trees", nargs="+", metavar="T", help=f"of {'; '.join(TREES)}")
    made.add_argument("--rounds", type=int, metavar="N", help=f"({ROUNDS})")
    made.add_argument("--arms", nargs="+", metavar="A", help="arms under faults (see --list)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    made.add_argument("--list", action="store_true", help="list the arms and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    given = options.parse_args(argv)
    out = console()
    if given.list:
        out.print("\n".join(ARMS))
        return 0
    rounds = given.rounds if given.rounds is not None else 7 if given.quick else ROUNDS
    trees = [QUICK_TREE] if given.quick else given.trees
    begin = time.perf_counter()
    try:
        what = chosen(trees, given.arms, list(DTYPES) if given.full else ["float32"])
        with progress(planned(*what)) as advance:
            rows = run(*what, rounds=rounds, advance=advance)
    except ValueError as error:
        options.error(str(error))
    out.print(cost_table(rows))
    out.print()
    out.print(behaviour_table(rows))
    out.print()
    out.print(sentence(rows), highlight=False)
    out.print(f"{len(rows)} rows in {time.perf_counter() - begin:.0f} s.")
    write_rows(given.json, rows)
    verify(rows, *what)
    return 0
