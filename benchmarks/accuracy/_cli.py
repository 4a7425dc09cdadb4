"""The command line of the accuracy benchmark."""

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
from ._exhaustive import (
    CHUNKS,
    RESULTS,
    is_current,
    keep,
    kept_rows,
    one_argument,
    run_exhaustive,
    verify_exhaustive,
)
from ._measure import DTYPES, FULL_SAMPLES, QUICK_SAMPLES, SAMPLES, run, verify
from ._report import exhaustive_sentence, exhaustive_table, sentence, table


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks accuracy",
        description="Errors of every op and loss, ours and the peers', against mpmath, in ulps.",
    )
    size_options(
        made, f"{QUICK_SAMPLES} samples, float32", f"{FULL_SAMPLES} samples, not {SAMPLES}"
    )
    made.add_argument("--ops", nargs="+", metavar="NAME", help="ops and losses (see --list)")
    made.add_argument("--dtypes", nargs="+", metavar="D", help=f"of {', '.join(DTYPES)}")
    made.add_argument("--peers", nargs="+", metavar="P", help=f"of {', '.join(PEERS)}")
    output_options(made)
    made.add_argument("--list", action="store_true", help="list the ops and losses and stop")
    made.add_argument(
        "--exhaustive",
        action="store_true",
        help="all 2^32 float32 inputs of the ops of one argument, unless kept from this program",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    chosen = parsed(options, argv)
    out = console()
    if chosen.list:
        out.print("\n".join(cases()))
        return 0
    begin = time.perf_counter()
    try:
        if chosen.exhaustive:
            return _exhaustive(choose("op of one argument", chosen.ops, one_argument()), chosen)
        ops = choose("op", chosen.ops, cases())
        dtypes = choose("dtype", chosen.dtypes or (["float32"] if chosen.quick else None), DTYPES)
        peers, missing = load(chosen.peers)
        kept = journal(chosen)
    except ValueError as error:
        options.error(str(error))
    for line in missing:
        out.print(line, highlight=False, markup=False)
    samples = QUICK_SAMPLES if chosen.quick else FULL_SAMPLES if chosen.full else SAMPLES
    with progress(len(ops) * len(dtypes)) as advance:
        rows = run(ops, dtypes, peers, samples=samples, once=kept.once, advance=advance)
    return conclude(
        chosen, rows, begin, [table(rows)], sentence(rows), lambda: verify(rows, ops, dtypes)
    )


def _exhaustive(names: Sequence[str], chosen: argparse.Namespace) -> int:
    file = journal(chosen)
    kept = {row["op"]: row for row in kept_rows()}
    rows = [kept[name] for name in names if name in kept and is_current(kept[name])]
    done = {row["op"] for row in rows}
    with progress(len(names) * CHUNKS) as advance:
        advance("kept", len(rows) * CHUNKS)
        for name in names:
            if name not in done:
                rows += run_exhaustive([name], advance=advance)
                keep(rows)
    out = console()
    out.print(exhaustive_table(rows))
    out.print()
    out.print(exhaustive_sentence(rows), highlight=False)
    out.print(f"kept in {RESULTS}", highlight=False)
    for row in rows:
        file.once({"suite": "exhaustive", "op": row["op"]}, lambda row=row: [row])
    verify_exhaustive(rows)
    return 0
