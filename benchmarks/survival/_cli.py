"""The command line of the survival benchmark."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from ._arms import ARMS
from ._picture import pyplot, write_picture
from ._report import listing, sentence, table
from ._runner import (
    GRID,
    QUICK,
    SCENARIOS,
    TUNING_SEEDS,
    choose_levels,
    planned,
    run,
    save_rates,
    tune,
    verify,
)

REPORT = Path("benchmarks/out/survival")
"""Where the page of a default run goes."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks survival",
        description="Ways to lose a training run, on real data, under five arms.",
    )
    names = lambda text: [name.strip() for name in text.split(",") if name.strip()]
    made.add_argument("--only", type=names, metavar="A,B", help="scenarios (see --list)")
    made.add_argument("--arms", type=names, metavar="A,B", help=f"arms, of {', '.join(ARMS)}")
    made.add_argument("--seeds", type=int, metavar="N", help="number of seeds (1; 5 with --full)")
    made.add_argument("--levels", metavar="I,J", help="quick, all, or indices of levels")
    size_options(
        made,
        f"{len(QUICK)} scenarios; like the default, three levels and one seed",
        "all levels and five seeds",
    )
    output_options(made)
    made.add_argument("--picture", type=Path, metavar="FILE.svg", help="write an overview")
    made.add_argument("--list", action="store_true", help="list the scenarios and stop")
    made.add_argument("--tune", action="store_true", help="tune and freeze the rates, and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    chosen = parsed(options, argv)
    out = console()
    if chosen.list:
        out.print(listing())
        return 0
    begin = time.perf_counter()
    try:
        what = _selection(chosen)
        total = planned(**what)
        if chosen.tune:
            return _tune(chosen.only)
        if not (chosen.json or chosen.report or chosen.picture):
            chosen.report = REPORT
        kept = journal(chosen)
    except ValueError as error:
        options.error(str(error))
    if chosen.picture:
        pyplot()  # a missing matplotlib is told before the run, not after it
    with progress(total) as advance:
        rows = run(**what, once=kept.once, advance=advance)
    if chosen.picture:
        write_picture(rows, chosen.picture)
        out.print(f"wrote {chosen.picture}", highlight=False)
    return conclude(
        chosen, rows, begin, [table(rows)], sentence(rows), lambda: verify(rows, **what)
    )


def _tune(only: Sequence[str] | None) -> int:
    runs = sum(len(SCENARIOS[n].optimizers) for n in choose("scenario", only, SCENARIOS))
    with progress(runs * (len(ARMS) + 1) * len(GRID) * len(TUNING_SEEDS)) as advance:
        save_rates(tune(only, advance=advance))
    return 0


def _selection(chosen: argparse.Namespace) -> dict[str, Any]:
    levels: Any = chosen.levels or ("all" if chosen.full else "quick")
    if levels not in ("quick", "all"):
        try:
            levels = [int(index) for index in levels.split(",")]
        except ValueError:
            raise ValueError(
                f"--levels must be quick, all or indices such as 0,2, got {levels!r}"
            ) from None
    seeds = chosen.seeds if chosen.seeds is not None else (5 if chosen.full else 1)
    only = chosen.only or (QUICK if chosen.quick else None)
    for name in choose("scenario", only, SCENARIOS):
        choose_levels(SCENARIOS[name], levels)
    return {"only": only, "arms": chosen.arms, "seeds": seeds, "levels": levels}
