"""The page's sections on functions: accuracy, speed, accelerators."""

import math
from collections.abc import Callable, Sequence

from .._rows import OURS, Row
from ._html import Cell, bar, fold, number, paragraph, table, text
from ._plot import errors, legend, lines

Tile = tuple[str, str]
"""A headline figure, and what it says."""


def accuracy(rows: Sequence[Row]) -> tuple[list[Tile], str]:
    """Tiles and section of the accuracy suite."""
    from ..accuracy._measure import summary
    from ..accuracy._report import sentence

    total = summary(rows)
    libraries = _ours_first(rows)
    tiles = []
    if OURS in total:
        mine = total[OURS]
        tiles.append(
            (
                f"{mine['failed']:,} of {mine['compared']:,}",
                "results of ours that are not finite where the truth is",
            )
        )
        theirs = {name: t["failed"] for name, t in total.items() if name != OURS and t["failed"]}
        if theirs:
            worst = max(theirs, key=lambda name: theirs[name])
            tiles.append((f"{theirs[worst]:,}", f"results of {worst} that are not"))
    plots = []
    plotted = {row["op"]: row for row in rows if row.get("curve")}
    for op in plotted:
        mine = [row for row in rows if row["op"] == op and row.get("curve")]
        for kind in ("value", "derivative"):
            series = {library: [] for library in libraries}
            series |= {row["library"]: row["curve"][kind] for row in mine}
            drawn = errors(series, f"x of {op}")
            plots.append(f"<figure>{drawn}<figcaption>{op}, {kind}</figcaption></figure>")
    lines_of: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines_of.setdefault((row["op"], row["dtype"]), {})[row["library"]] = row
    kinds = [("value", "values"), ("derivative", "derivatives")]
    tables = [
        table(
            ["op", "dtype", "claimed", *libraries],
            [
                [
                    text(op),
                    text(dtype),
                    number(_claim(line.get(OURS), place), "g"),
                    *(_errors(line.get(library), kind) for library in libraries),
                ]
                for (op, dtype), line in lines_of.items()
            ],
            f"largest error of {words} in ulps; ∞: not finite where the truth is",
        )
        for place, (kind, words) in enumerate(kinds)
    ]
    return tiles, "".join(
        [
            paragraph(sentence(rows)),
            *(
                [
                    "<h3>Errors in ulps against the input, float32</h3>",
                    legend(libraries),
                    f'<div class="plots">{"".join(plots)}</div>',
                ]
                if plots
                else []
            ),
            *tables,
        ]
    )


def _claim(row: Row | None, place: int) -> float | None:
    return row["claimed_ulps"][place] if row else None


def _errors(row: Row | None, kind: str) -> Cell:
    if row is None or row[f"{kind}_failed"] is None:
        return Cell("", -math.inf)
    largest = row[f"{kind}_max"]
    figure = "" if largest is None else f"{largest:.3g}"
    if row[f"{kind}_failed"]:
        return Cell(f"{figure} ∞", math.inf, "n lost")
    return Cell(figure, largest or 0.0, "n")


def speed(rows: Sequence[Row]) -> tuple[list[Tile], str]:
    """Tiles and section of the speed suite."""
    from ..speed._measure import main_rows, summary
    from ..speed._report import sentence

    found = summary(rows)
    tiles = [
        (
            f"{found[other, 'gradient']['mean']:.2f}x",
            f"time with gradient over {words}, geometric mean of "
            f"{found[other, 'gradient']['cases']} cases on {rows[0]['device']}",
        )
        for other, words in (("fastest peer", "the fastest peer's"), ("naive", "the naive form's"))
        if (other, "gradient") in found
    ]
    cells: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in main_rows(rows):
        key = row["op"], row["dtype"], row["mode"]
        cells.setdefault(key, {})[row["library"]] = row["ratio"]
    made = [paragraph(sentence(rows))]
    headings = {
        "gradient": "value and gradient: time over that of a copy",
        "value": "value: time over that of a copy",
        "eager": "an eager call on 8 elements, over that of x + 1",
        "trace": "tracing value and gradient, over that of x + 1",
        "compile": "compiling value and gradient, over that of x + 1",
    }
    libraries = _ours_first(rows)
    for mode, words in headings.items():
        mine = {key: of for key, of in cells.items() if key[2] == mode}
        if not mine:
            continue
        present = [name for name in libraries if any(name in of for of in mine.values())]
        longest = sorted(v for of in mine.values() for v in of.values())
        longest = longest[int(0.95 * (len(longest) - 1))]
        body = [
            [text(op), text(dtype), *_bars(of, present, longest)]
            for (op, dtype, _), of in mine.items()
        ]
        block = table(["op", "dtype", "ours / fastest peer", *present], body, words)
        made.append(block if mode in ("gradient", "value") else fold(words, block))
    made.append(_scaling(rows))
    return tiles, "".join(made)


def _bars(of: dict[str, float], libraries: Sequence[str], longest: float) -> list[Cell]:
    peers = [v for k, v in of.items() if k not in (OURS, "naive", "double where")]
    against = of[OURS] / min(peers) if peers and OURS in of else None
    styles = {OURS: "ours", "naive": "", "double where": ""}
    return [
        number(against),
        *(bar(of.get(name), longest, style=styles.get(name, "peer")) for name in libraries),
    ]


def _scaling(rows: Sequence[Row]) -> str:
    """Time for each element against the number of elements, where several sizes were run."""
    figures = []
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if (row["op"], row["mode"]) == (op, "gradient")]
        if len({row["elements"] for row in mine}) < 3:
            continue
        series: dict[str, list[tuple[float, float]]] = {}
        for row in sorted(mine, key=lambda row: row["elements"]):
            if row["dtype"] == "float32":
                each = row["seconds"] / row["elements"] * 1e9
                series.setdefault(row["library"], []).append((row["elements"], each))
        drawn = lines(series, "elements", "ns an element")
        figures.append(
            f"<figure>{legend(list(series))}{drawn}<figcaption>{op}, value and gradient"
            "</figcaption></figure>"
        )
    if not figures:
        return ""
    return f'<h3>Scaling</h3><div class="plots">{"".join(figures)}</div>'


def accelerators(rows: Sequence[Row]) -> tuple[list[Tile], str]:
    """Tiles and section of the accelerators suite."""
    from ..accelerators._measure import LIMIT
    from ..accelerators._reasons import reason
    from ..accelerators._report import sentence

    ours = [row for row in rows if row["library"] == OURS]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    tiles = []
    for target in targets:
        mine = [row for row in ours if row["target"] == target and row["bytes_ratio"]]
        if mine:
            light = sum(row["bytes_ratio"] <= LIMIT for row in mine)
            tiles.append(
                (
                    f"{light} of {len(mine)}",
                    f"programs move no more bytes than the usual on {target}",
                )
            )
    other = {(row["case"], row["mode"]): row["library"] for row in rows if row["library"] != OURS}
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in ours:
        found.setdefault((row["case"], row["mode"]), {})[row["target"]] = row
    body = [
        [
            text(case),
            text(mode),
            text(other.get((case, mode), "")),
            *(
                cell
                for target in targets
                for cell in (
                    bar((line.get(target) or {}).get("bytes_ratio"), 2.0, style="ours"),
                    number((line.get(target) or {}).get("kernels"), "d"),
                    number((line.get(target) or {}).get("temporaries", 0) / 1e6, ".0f"),
                )
            ),
            text(_why(line, LIMIT, reason)),
        ]
        for (case, mode), line in found.items()
    ]
    heading = ["case", "mode", "over"]
    for target in targets:
        heading += [f"bytes, {target}", "kernels", "temporary MB"]
    return tiles, "".join(
        [
            paragraph(sentence(rows)),
            table(
                [*heading, "reason"], body, "bytes over those of the usual form, compiled, not run"
            ),
            paragraph("The figures are what the compiler does, not time on a device.", "soft"),
        ]
    )


def _why(line: dict[str, Row], limit: float, reason: Callable[[str], str | None]) -> str:
    """The reason of a case that moves more than the limit."""
    heavy = [row["case"] for row in line.values() if (row.get("bytes_ratio") or 0) > limit]
    return reason(heavy[0]) or "" if heavy else ""


def _ours_first(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys([OURS, *(row["library"] for row in rows)]))
