"""The command line of the survival benchmark."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._command import choose, console, progress
from ._arms import ARMS
from ._page import pyplot, write_page, write_picture
from ._report import listing, sentence, table
from ._runner import (
    GRID,
    SCENARIOS,
    TUNING_SEEDS,
    choose_levels,
    planned,
    run,
    save_rates,
    tune,
    verify,
)

PAGE = Path("benchmarks/out/survival.html")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks survival",
        description="Twelve ways to lose a training run, on real data, under five arms.",
    )
    names = lambda text: [name.strip() for name in text.split(",") if name.strip()]
    made.add_argument("--only", type=names, metavar="A,B", help="scenarios (see --list)")
    made.add_argument("--arms", type=names, metavar="A,B", help=f"arms, of {', '.join(ARMS)}")
    made.add_argument("--seeds", type=int, metavar="N", help="number of seeds (1; 5 with --full)")
    made.add_argument("--levels", metavar="I,J", help="quick, all, or indices of levels")
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three levels and one seed, the default")
    size.add_argument("--full", action="store_true", help="all levels and five seeds")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    made.add_argument("--html", type=Path, metavar="FILE", default=PAGE, help=f"page ({PAGE})")
    made.add_argument("--picture", type=Path, metavar="FILE.svg", help="write an overview")
    made.add_argument("--list", action="store_true", help="list the scenarios and stop")
    made.add_argument("--tune", action="store_true", help="tune and freeze the rates, and stop")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parser()
    chosen = options.parse_args(argv)
    out = console()
    if chosen.list:
        out.print(listing())
        return 0
    try:
        what = _selection(chosen)
        total = planned(**what)
    except ValueError as error:
        options.error(str(error))
    if chosen.tune:
        runs = sum(len(SCENARIOS[n].optimizers) for n in choose("scenario", chosen.only, SCENARIOS))
        with progress(runs * (len(ARMS) + 1) * len(GRID) * len(TUNING_SEEDS)) as advance:
            rates = tune(chosen.only, advance=advance)
        save_rates(rates)
        out.print_json(json.dumps(rates))
        return 0
    pyplot()  # A missing matplotlib is told before the run, not after it.
    begin = time.perf_counter()
    with progress(total) as advance:
        rows = run(**what, advance=advance)
    out.print(table(rows))
    out.print()
    out.print(sentence(rows))
    out.print(f"{len(rows)} runs in {time.perf_counter() - begin:.0f} s.")
    for path, write in [
        (chosen.json, lambda path: path.write_text(json.dumps(rows, indent=1) + "\n")),
        (chosen.html, lambda path: write_page(rows, path)),
        (chosen.picture, lambda path: write_picture(rows, path)),
    ]:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            out.print(f"wrote {path}", highlight=False)
    verify(rows, **what)
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
    for name in choose("scenario", chosen.only, SCENARIOS):
        choose_levels(SCENARIOS[name], levels)
    return {"only": chosen.only, "arms": chosen.arms, "seeds": seeds, "levels": levels}
