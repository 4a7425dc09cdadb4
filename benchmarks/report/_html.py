"""Pieces of the page: escaping, tables that sort, bars."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A table's cell: what is shown, and what it is sorted by."""

    html: str
    key: float | str = ""
    style: str = ""


def text(value: Any) -> Cell:
    """A cell of words."""
    return Cell(escape(str(value)), str(value))


def number(value: float | None, digits: str = ".2f", unit: str = "") -> Cell:
    """A cell of one figure; an empty one for None."""
    if value is None:
        return Cell("", -math.inf)
    return Cell(f"{value:{digits}}{unit}", value, "n")


def bar(value: float | None, largest: float, *, digits: str = ".2f", style: str = "") -> Cell:
    """A cell of one figure with a bar as long as its share of the largest."""
    if value is None:
        return Cell("", -math.inf)
    share = 100 * min(value / largest, 1) if largest else 0
    made = f'<span class="bar {style}" style="--w:{share:.1f}%"></span>{value:{digits}}'
    return Cell(made, value, "n b")


def table(heading: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> str:
    """A table whose columns sort by a click on their headings."""
    head = "".join(f'<th scope="col"><button>{escape(h)}</button></th>' for h in heading)
    body = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table class="sort">{said}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _td(cell: Cell) -> str:
    key = cell.key
    if isinstance(key, float):
        key = f"{key:.6g}".replace("inf", "Infinity")  # as the script's numbers are read
    style = f' class="{cell.style}"' if cell.style else ""
    return f'<td{style} data-key="{escape(str(key))}">{cell.html}</td>'


def fold(summary: str, inside: str) -> str:
    """Something that opens when its line is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def paragraph(words: str, style: str = "") -> str:
    """A paragraph of plain words."""
    return f"<p{f' class={style}' if style else ''}>{escape(words)}</p>"
