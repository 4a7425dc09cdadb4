"""The result in words: the table and the sentence."""

from collections.abc import Sequence

from rich.table import Table

from ._measure import OURS, Row, main_rows, summary


def table(rows: Sequence[Row]) -> Table:
    """Ops down, libraries across: time over the copy's, value and value with gradient."""
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("op", "dtype", "elements", "mode", *libraries):
        made.add_column(heading, no_wrap=heading == "op")
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = row["op"], row["dtype"], f"{row['elements']:,}", row["mode"]
        lines.setdefault(key, {})[row["library"]] = row
    for key, line in lines.items():
        made.add_row(*key, *(_cell(line.get(library)) for library in libraries))
    return made


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["error"] is not None:
        return "error"
    # Half the distance of the quartiles.
    return f"{row['ratio']:.2f} ±{(row['ratio_high'] - row['ratio_low']) / 2:.2f}"


def sentence(rows: Sequence[Row]) -> str:
    """What a person can quote: our time against the naive form's and the fastest peer's."""
    first = rows[0]
    found = summary(rows)
    parts = []
    for library in ("naive", "double where", "fastest peer"):
        for mode in ("value", "gradient"):
            if (library, mode) not in found:
                continue
            of = found[library, mode]
            parts.append(
                f"{of['mean']:.2f}x {library} ({mode}, {of['cases']} cases, at most "
                f"{of['worst']:.2f}x: {of['worst_op']})"
            )
    sizes = dict.fromkeys((row["dtype"], row["elements"]) for row in main_rows(rows))
    sized = ", ".join(f"{elements:,} elements of {dtype}" for dtype, elements in sizes)
    calls = ", ".join(
        f"{found['naive', mode]['mean']:.2f}x to {words}"
        for mode, words in (("eager", "call eagerly"), ("trace", "trace"), ("compile", "compile"))
        if ("naive", mode) in found
    )
    return (
        f"Time on {first['device']}, {sized}, medians of {first['rounds']} "
        f"interleaved rounds, geometric means over the cases: {OURS} takes "
        f"{'; '.join(parts)}." + (f" Of the naive form's time it takes {calls}." if calls else "")
    )
