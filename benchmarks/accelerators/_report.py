"""The result in words: the table and the sentence."""

import math
from collections.abc import Sequence

from rich.table import Table

from ._measure import LIMIT, OURS, WITH_RATIO, Row


def table(rows: Sequence[Row]) -> Table:
    """One line for each case and mode: bytes and kernels over the other's, by target."""
    ours = [row for row in rows if row["library"] in WITH_RATIO]
    targets = list(dict.fromkeys(row["target"] for row in ours))
    other = {
        (row["case"], row["mode"]): row["library"]
        for row in rows
        if row["library"] not in WITH_RATIO
    }
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("case", "mode", "over", *targets):
        made.add_column(heading, no_wrap=True)
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in ours:
        lines.setdefault((row["case"], row["mode"]), {})[row["target"]] = row
    for key, line in lines.items():
        made.add_row(*key, other[key], *(_cell(line.get(target)) for target in targets))
    return made


def _cell(row: Row | None) -> str:
    if row is None or row["error"] is not None:
        return "" if row is None else "error"
    if row["bytes_ratio"] is None:
        return f"({row['kernels']} kernels)"
    return f"{row['bytes_ratio']:.3f} ({row['kernels']} kernels)"


def sentence(rows: Sequence[Row]) -> str:
    """What a person can quote: bytes over the usual form's, per target."""
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        ratios = [
            row["bytes_ratio"]
            for row in rows
            if row["target"] == target and row["library"] == OURS and row.get("bytes_ratio")
        ]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        above = sum(ratio > LIMIT for ratio in ratios)
        parts.append(
            f"on {target} {mean:.2f}x the bytes of the usual form in the geometric mean of "
            f"{len(ratios)} programs, {above} of them above {LIMIT}x"
        )
    return f"Compiled ahead of time: {OURS} moves {'; '.join(parts)}. Not device time."
