"""The result in words: a table and one sentence."""

from collections.abc import Sequence

from rich.table import Table

from .._rows import Row
from ._run import POINT, summary
from ._tasks import TASKS


def table(rows: Sequence[Row]) -> Table:
    """One line for each task, dtype and kind of data."""
    made = Table(show_edge=False, pad_edge=False, title="test rows, mean over the seeds")
    for heading in ("task", "dtype", "data", "goal", "score", "worst", "change", "skipped", "s"):
        made.add_column(heading, no_wrap=True)
    for cell in summary(rows):
        made.add_row(
            cell["task"],
            cell["dtype"],
            cell["data"],
            ("<= " if TASKS[cell["task"]].reconstructs else ">= ") + f"{cell['goal']:.1%}",
            f"{cell['mean']:.2%}",
            f"{cell['worst']:.2%}",
            "" if cell["change"] is None else f"{100 * cell['change']:+.2f}",
            f"{cell['skipped']} of {cell['steps']}",
            f"{cell['seconds']:.1f}",
        )
    return made


def sentence(rows: Sequence[Row]) -> str:
    """What a person can quote."""
    cells = summary(rows)
    base = [c for c in cells if (c["dtype"], c["data"]) == ("float32", "clean")]
    others = [c for c in cells if c not in base and c["change"] is not None]
    reached = sum(TASKS[c["task"]].reaches(c["mean"]) for c in base)
    close = sum(c["change"] >= -POINT for c in others)
    skipped, planted = (sum(c[key] for c in cells) for key in ("skipped", "planted"))
    return (
        f"{reached} of {len(base)} tasks reach their goal in float32 on clean data; {close} of "
        f"{len(others)} runs in 16 bits or with faults are within one percentage point of it; "
        f"{planted} gradient faults planted, {skipped} steps refused, every step counted."
    )
