"""The command line of the speed benchmark."""

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
from .._losses import cases
from .._peers import PEERS, load
from ._measure import (
    DTYPES,
    ELEMENTS,
    FULL_ELEMENTS,
    QUICK_ELEMENTS,
    QUICK_ROUNDS,
    ROUNDS,
    SCALED,
    SCALING,
    run,
    verify,
)
from ._report import sentence, table


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks speed",
        description="Time of every op and loss over that of a copy, with and without gradient.",
    )
    size = size_options(
        made,
        f"{QUICK_ELEMENTS:,} elements, {QUICK_ROUNDS} rounds",
        f"{FULL_ELEMENTS['float32']:,} elements; {FULL_ELEMENTS['bfloat16']:,} of bfloat16 beside "
        f"the naive forms; {', '.join(SCALED)} at other sizes",
    )
    size.add_argument(
        "--elements", type=int, nargs="+", metavar="N", help=f"one or more sizes ({ELEMENTS:,})"
    )
    made.add_argument("--rounds", type=int, metavar="N", help=f"({ROUNDS})")
    made.add_argument("--ops", nargs="+", metavar="NAME", help="ops and losses (see --list)")
    made.add_argument(
        "--dtypes", nargs="+", metavar="D", help=f"float32 unless named, of {', '.join(DTYPES)}"
    )
    made.add_argument("--peers", nargs="+", metavar="P", help=f"of {', '.join(PEERS)}")
    output_options(made)
    made.add_argument("--list", action="store_true", help="list the ops and losses and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    chosen = parsed(options, argv)
    out = console()
    if chosen.list:
        out.print("\n".join(cases()))
        return 0
    quick, full = chosen.quick, chosen.full
    sizes = chosen.elements or [QUICK_ELEMENTS if quick else ELEMENTS]
    rounds = chosen.rounds if chosen.rounds is not None else QUICK_ROUNDS if quick else ROUNDS
    begin = time.perf_counter()
    try:
        ops = choose("op", chosen.ops, cases())
        asked = chosen.dtypes or (FULL_ELEMENTS if full else ["float32"])
        dtypes = choose("dtype", list(asked), DTYPES)
        peers, missing = load(chosen.peers)
        plan = [(ops, dtype, sizes, peers) for dtype in dtypes]
        if full:
            plan = [
                (ops, dtype, [FULL_ELEMENTS.get(dtype, ELEMENTS)], peers if i == 0 else [])
                for i, dtype in enumerate(dtypes)
            ]
            plan.append(([op for op in SCALED if op in ops], dtypes[0], list(SCALING), peers))
        plan = [part for part in plan if part[0]]
        kept = journal(chosen)
        for line in missing:
            out.print(line, highlight=False, markup=False)
        with progress(sum(len(names) * len(sizes) for names, _, sizes, _ in plan)) as advance:
            how = {"rounds": rounds, "calls": not quick, "once": kept.once, "advance": advance}
            rows = [
                row
                for names, dtype, sizes, beside in plan
                for row in run(names, [dtype], beside, elements=sizes, **how)
            ]
    except ValueError as error:
        options.error(str(error))
    return conclude(
        chosen, rows, begin, [table(rows)], sentence(rows), lambda: verify(rows, ops, dtypes)
    )
