"""The result in words: the tables and the sentences."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ._exhaustive import FAULTS
from ._measure import OURS, Row, summary


def figure(v: float | None) -> str:
    """An error in ulps, in three digits."""
    return "" if v is None else f"{v:.3g}"


def place(at: Any) -> str:
    """Arguments in a few digits."""
    if isinstance(at, list | tuple):
        return ", ".join(map(place, at)) if at else ""
    return "" if at is None else f"{at:.6g}"


def errors_of(row: Row, kind: str) -> str:
    """Largest / 99.9th percentile / median error, and how often the result was not finite."""
    if row[f"{kind}_failed"] is None:
        return ""
    three = " / ".join(figure(row[f"{kind}_{key}"]) for key in ("max", "p999", "median"))
    return three + (f"; not finite {row[f'{kind}_failed']}x" if row[f"{kind}_failed"] else "")


def table(rows: Sequence[Row]) -> Table:
    """Ops and dtypes down, one line for each library."""
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("op", "dtype", "library"):
        made.add_column(heading, no_wrap=True)
    for heading in ("value ulps: max / 99.9% / median", "at", "derivative", "at"):
        made.add_column(heading)
    last = None
    for row in rows:
        here = row["op"], row["dtype"]
        if last not in (None, here):
            made.add_section()
        named = ("", "") if here == last else here
        last = here
        if row["error"]:
            made.add_row(*named, row["library"], row["error"], "", "", "")
            continue
        cells = (
            cell
            for kind in ("value", "derivative")
            for cell in (errors_of(row, kind), place(row[f"{kind}_at"]))
        )
        made.add_row(*named, row["library"], *cells)
    return made


def sentence(rows: Sequence[Row]) -> str:
    """What a person can quote: worst errors and failures, ours and each library's."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    device = rows[0]["device"]
    parts = []
    for library, total in sorted(summary(rows).items(), key=lambda item: item[0] != OURS):
        slope = total["derivative_max"]
        parts.append(
            f"{library} is off by up to {figure(total['value_max'])} ulp"
            + (f" (derivative {figure(slope)})" if slope is not None else "")
            + f" and not finite at {total['failed']:,} of {total['compared']:,} points"
            + ("" if library == OURS else f" ({total['ops']} ops)")
        )
    ops = len({row["op"] for row in rows})
    return (
        f"On {ops} ops and losses in {', '.join(dtypes)} on {device}, where the true value is "
        f"representable: {'; '.join(parts)}."
    )


def exhaustive_table(rows: Sequence[Row]) -> Table:
    """One line for each op that was tried on every input."""
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("op", "inputs", "faults", "value ulps", "at", "derivative ulps", "at", "date"):
        made.add_column(heading)
    for row in rows:
        made.add_row(
            row["op"],
            f"{row['inputs']:,}",
            str(sum(row[key] for key in FAULTS)),
            figure(row["value_ulps"]),
            place(row["value_at"]),
            figure(row["derivative_ulps"]),
            place(row["derivative_at"]),
            row["date"],
        )
    return made


def exhaustive_sentence(rows: Sequence[Row]) -> str:
    """What a person can quote of the exhaustive runs."""
    lost = sum(row["nonfinite_values"] + row["nonfinite_derivatives"] for row in rows)
    return (
        f"{len(rows)} ops were tried on {rows[0]['inputs']:,} float32 inputs each: "
        f"{lost} values or derivatives are not finite at a finite input; the largest error is "
        f"{figure(max(row['value_ulps'] for row in rows))} ulp in value and "
        f"{figure(max(row['derivative_ulps'] for row in rows))} ulp in derivative."
    )
