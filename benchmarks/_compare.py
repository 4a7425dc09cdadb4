"""`python -m benchmarks compare A B`: what of ours became worse from A to B, by ratio."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ._command import console
from ._rows import OURS, Row, name, read_rows

THRESHOLD = 1.1
IDENTITY = (
    "suite", "kind", "op", "case", "scenario", "level", "seed", "steps", "arm", "fault", "tree",
    "donated", "form", "target", "library", "mode", "dtype", "elements",
)  # fmt: skip
"""Fields that say what a row is of; rows that agree in them are compared."""
FIGURES = (
    "ratio", "compile_ratio", "bytes", "kernels", "temporaries",
    "value_max", "derivative_max", "value_failed", "derivative_failed",
)  # fmt: skip
"""What is better smaller."""
PROMISES = ("survived", "learned", "finite", "learning")
"""What is better true."""
FLOOR = 1.0
"""Errors below one ulp, and counts below one, are not told apart."""
SLACK = 3.0
"""Times differ between two runs of one program; a median worse by less than so many half distances
of the quartiles is not told apart either."""


def compare(before: Sequence[Row], after: Sequence[Row], threshold: float = THRESHOLD) -> list[Row]:
    """What became worse of ours: rows of `case`, `what`, `before`, `after`, `ratio`, worst first.

    A figure that grew by more than `threshold` times, a promise that no longer holds, a row that is
    now an error, and a row that is gone; the last three have the ratio inf.
    """
    then, now = _by_identity(before), _by_identity(after)
    worse = []
    for key, old in then.items():
        new = now.get(key)
        if new is None:
            worse.append(_worse(old, "row", "there", "gone", math.inf))
        elif old["error"] is None and new["error"] is not None:
            worse.append(_worse(old, "row", "there", new["error"], math.inf))
        elif old["error"] is None:
            worse += _changes(old, new, threshold)
    return sorted(worse, key=lambda row: -row["ratio"])


def _by_identity(rows: Sequence[Row]) -> dict[tuple, Row]:
    ours = (row for row in rows if row.get("library", OURS) == OURS)
    return {tuple(row.get(field) for field in IDENTITY): row for row in ours}


def _changes(old: Row, new: Row, threshold: float) -> list[Row]:
    found = [
        _worse(old, what, old[what], new[what], math.inf)
        for what in PROMISES
        if old.get(what) and not new.get(what)
    ]
    for what in FIGURES:
        a, b = old.get(what), new.get(what)
        if a is None or b is None:
            continue
        ratio = max(b, FLOOR) / max(a, FLOOR) if "ratio" not in what else b / a
        noisy = what == "ratio" and b - a < SLACK * max(_spread(old), _spread(new))
        if ratio > threshold and not noisy:
            found.append(_worse(old, what, a, b, ratio))
    return found


def _spread(row: Row) -> float:
    return (row.get("ratio_high", 0.0) - row.get("ratio_low", 0.0)) / 2


def _worse(row: Row, what: str, before: object, after: object, ratio: float) -> Row:
    case = f"{row['suite']}: {name(row)}"
    return {"case": case, "what": what, "before": before, "after": after, "ratio": ratio}


def main(argv: Sequence[str]) -> int:
    """Compares two files; the exit status is 0 if nothing became worse, 1 if something did."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="What of ours became worse from A to B. Exit status 1 if anything did.",
    )
    options.add_argument("before", type=Path, metavar="A", help="rows of an earlier run, --json")
    options.add_argument("after", type=Path, metavar="B", help="rows of a later run")
    options.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="R", help=f"ratio ({THRESHOLD})"
    )
    chosen = options.parse_args(argv)
    if not chosen.threshold >= 1:
        options.error(f"--threshold must be >= 1, got {chosen.threshold}")
    try:
        before, after = read_rows(chosen.before), read_rows(chosen.after)
    except (OSError, ValueError) as error:
        options.error(str(error))
    out = console()
    for line in _differences(before, after):
        out.print(line, highlight=False, markup=False)
    worse = compare(before, after, chosen.threshold)
    both = len(_by_identity(before).keys() & _by_identity(after).keys())
    if worse:
        out.print(_table(worse))
    out.print(
        f"{len(worse)} of {both} rows of {OURS} that both files hold became worse, by more than "
        f"{chosen.threshold:g}x.",
        highlight=False,
    )
    if not both:
        out.print("The files have no row in common.")
        return 1
    return 1 if worse else 0


def _differences(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """What else changed from one file to the other: versions, machine, device."""
    lines = []
    for what in ("versions", "machine"):
        a, b = (
            {k: v for row in rows for k, v in row.get(what, {}).items()} for rows in (before, after)
        )
        lines += [
            f"{key}: {a.get(key, 'none')} -> {b.get(key, 'none')}"
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key)
        ]
    a, b = ({row.get("device") for row in rows} for rows in (before, after))
    if a != b:
        lines.append(f"devices: {', '.join(map(str, a))} -> {', '.join(map(str, b))}")
    return lines


def _table(worse: Sequence[Row]) -> Table:
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("case", "what", "before", "after", "ratio"):
        made.add_column(heading)
    for row in worse:
        made.add_row(*(_figure(row[key]) for key in ("case", "what", "before", "after", "ratio")))
    return made


def _figure(v: object) -> str:
    return f"{v:.4g}" if isinstance(v, float) else str(v)
