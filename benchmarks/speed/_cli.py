"""The command line of the speed benchmark."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .._command import choose, console, progress, write_rows
from .._losses import cases
from .._peers import PEERS, load
from ._measure import DTYPES, ELEMENTS, FULL_ELEMENTS, QUICK_ELEMENTS, ROUNDS, run, verify
from ._report import sentence, table


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks speed",
        description="Time of every op and loss over that of a copy, with and without gradient.",
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"{QUICK_ELEMENTS:,} elements")
    size.add_argument("--full", action="store_true", help=f"{FULL_ELEMENTS:,} elements")
    size.add_argument("--elements", type=int, metavar="N", help=f"elements ({ELEMENTS:,})")
    made.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"({ROUNDS})")
    made.add_argument("--ops", nargs="+", metavar="NAME", help="ops and losses (see --list)")
    made.add_argument(
        "--dtypes", nargs="+", default=["float32"], metavar="D", help=f"of {', '.join(DTYPES)}"
    )
    made.add_argument("--peers", nargs="+", metavar="P", help=f"of {', '.join(PEERS)}")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    made.add_argument("--list", action="store_true", help="list the ops and losses and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    chosen = options.parse_args(argv)
    out = console()
    if chosen.list:
        out.print("\n".join(cases()))
        return 0
    elements = (
        QUICK_ELEMENTS
        if chosen.quick
        else FULL_ELEMENTS
        if chosen.full
        else ELEMENTS
        if chosen.elements is None
        else chosen.elements
    )
    try:
        ops = choose("op", chosen.ops, cases())
        dtypes = choose("dtype", chosen.dtypes, DTYPES)
        peers, missing = load(chosen.peers)
        for line in missing:
            out.print(line, highlight=False, markup=False)
        begin = time.perf_counter()
        with progress(len(ops) * len(dtypes)) as advance:
            rows = run(ops, dtypes, peers, elements=elements, rounds=chosen.rounds, advance=advance)
    except ValueError as error:
        options.error(str(error))
    out.print(table(rows))
    out.print()
    out.print(sentence(rows), highlight=False)
    out.print(f"{len(rows)} rows in {time.perf_counter() - begin:.0f} s.")
    write_rows(chosen.json, rows)
    verify(rows, ops, dtypes)
    return 0
