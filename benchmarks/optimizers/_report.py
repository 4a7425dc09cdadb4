"""The result in words: two tables and one sentence."""

from collections.abc import Sequence

from rich.table import Table

from .._rows import Row
from ._behaviour import FAULTS
from ._run import summary


def cost_table(rows: Sequence[Row]) -> Table:
    """Arms down, trees across: time over bare Adam's, and compile time."""
    rows = [row for row in rows if row["kind"] == "cost" and row["error"] is None]
    columns = list(dict.fromkeys((row["tree"], row["donated"]) for row in rows))
    made = Table(show_edge=False, pad_edge=False, title="time over bare Adam's (compile time)")
    made.add_column("arm", no_wrap=True)
    made.add_column("form", no_wrap=True)
    for tree, donated in columns:
        made.add_column(f"{tree}, {'donated' if donated else 'not donated'}")
    cells = {(r["arm"], r["form"], r["tree"], r["donated"]): r for r in rows}
    for arm, form in dict.fromkeys((row["arm"], row["form"]) for row in rows):
        line = [cells[arm, form, *column] for column in columns]
        made.add_row(arm, form, *(f"{r['ratio']:.2f} ({r['compile_ratio']:.1f})" for r in line))
    return made


def behaviour_table(rows: Sequence[Row]) -> Table:
    """Arms down, faults across: refused or taken, frozen if no learning follows, or NaN."""
    rows = [row for row in rows if row["kind"] == "behaviour" and row["error"] is None]
    made = Table(show_edge=False, pad_edge=False, title="after a fault")
    for heading in ("arm", "dtype", *FAULTS):
        made.add_column(heading, no_wrap=heading in ("arm", "dtype"))
    cells = {(r["arm"], r["dtype"], r["fault"]): r for r in rows}
    for arm, dtype in dict.fromkeys((row["arm"], row["dtype"]) for row in rows):
        made.add_row(arm, dtype, *(word(cells[arm, dtype, fault]) for fault in FAULTS))
    return made


def word(row: Row) -> str:
    """What an arm did about a fault."""
    if not row["finite"]:
        return "NaN"
    if not row["learning"]:
        return "frozen"
    return "refused" if row["unchanged"] else "taken"


def sentence(rows: Sequence[Row]) -> str:
    """What a person can quote."""
    found = summary(rows)
    cost = "; ".join(f"{name} {x:.2f}x" for name, x in found.items() if "survives" not in name)
    first = next(row for row in rows if row["kind"] == "cost")
    shares = [f"{name} {x:.0%} of the faults" for name, x in found.items() if "survives" in name]
    return (
        f"Time over bare Adam's on {first['device']} ({first['tree']}, donated, medians of "
        f"{first['rounds']} interleaved rounds): {cost}. {'; '.join(shares)}."
    )
