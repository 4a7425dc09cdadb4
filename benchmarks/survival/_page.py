"""The result in pictures: one HTML page that needs nothing else, and one overview."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._report import STATES, arms_of, counts, levels_of, scenarios_of, sentence
from ._runner import LEARNED, SCENARIOS, Row, load_rates, summary

# Dark, middle and white in grey too; blue and yellow are told apart by all kinds of colour vision.
FILL = {"learned": "#1f5a94", "alive": "#f2bf4a", "died": "#ffffff"}
INK = {"learned": "#ffffff", "alive": "#222222", "died": "#222222"}
WORDS = {"learned": "learned", "alive": "survived, did not learn", "died": "died (NaN or inf)"}
TEXT = "#222222"

Tally = dict[str, int]


def pyplot() -> Any:
    """matplotlib, set up for SVG; an ImportError names the extra to install."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "benchmarks needs matplotlib: run `pip install -e '.[benchmarks]'` in the checkout"
        ) from error
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "text.color": TEXT,
            "hatch.color": "#8a8a8a",
            "hatch.linewidth": 0.8,
        }
    )
    from matplotlib import pyplot as plotting

    return plotting


def _svg(figure: Any, salt: str) -> str:
    """A figure as an SVG element; the salt keeps the ids of several in one page apart."""
    plotting = pyplot()
    with plotting.rc_context({"svg.hashsalt": salt}):
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    plotting.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # matplotlib falls back on no other font in its output: readers without it need one.
    return text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def _inline(svg: str) -> str:
    """An SVG for an HTML page, where namespaces are known and declarations need no address."""
    return re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)


def _cell(axes: Any, x: float, y: float, width: float, height: float, tally: Tally) -> None:
    """One level under one arm: a slice for each outcome, as wide as its share of the seeds."""
    from matplotlib.patches import Rectangle

    total = sum(tally.values())
    for name in STATES:
        part = width * tally[name] / total
        if part:
            hatch = "////" if name == "died" else None
            axes.add_patch(Rectangle((x, y), part, height, fc=FILL[name], ec="none", hatch=hatch))
        x += part
    axes.add_patch(
        Rectangle((x - width, y), width, height, fc="none", ec="#555555", lw=0.6, clip_on=False)
    )


def _legend(axes: Any, x: float, y: float, width: float, height: float, step: float) -> None:
    for place, name in enumerate(STATES):
        left = x + place * step
        _cell(axes, left, y, width, height, {n: int(n == name) for n in STATES})
        axes.text(left + width * 1.3, y + height / 2, WORDS[name], va="center", fontsize=9)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """A white sheet with coordinates in inches from the upper left corner."""
    figure = pyplot().figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def overview(rows: Sequence[Row]) -> str:
    """All scenarios, levels and arms in one SVG: a row each, a block for each arm."""
    arms, names, found = arms_of(rows), scenarios_of(rows), counts(rows)
    total = summary(rows)
    left, block, gap, line, head = 2.35, 1.3, 0.12, 0.3, 0.62
    width = left + len(arms) * (block + gap) + 0.1
    height = head + len(names) * line + 0.5
    figure, axes = _canvas(width, height)
    for column, arm in enumerate(arms):
        x = left + column * (block + gap)
        count = total.get(arm)
        axes.text(x + block / 2, 0.2, arm, ha="center", va="center", fontsize=10.5, weight="bold")
        words = f"learned {count['learned']} of {count['runs']}" if count else "no fair level"
        axes.text(x + block / 2, 0.42, words, ha="center", va="center", fontsize=8.5)
    for place, name in enumerate(names):
        y = head + place * line
        label = f"{SCENARIOS[name].number}  {name.replace('-', ' ')}"
        axes.text(0.12, y + 0.12, label, va="center", fontsize=9.5)
        levels = levels_of(rows, name)
        # A scenario with two optimizers has two axes: a gap stands between them.
        named = [SCENARIOS[name].optimizer_of(level) for _, level in levels]
        axis = [list(dict.fromkeys(named)).index(each) for each in named]
        space = 0.05
        size = (block - space * axis[-1]) / len(levels)
        for column, arm in enumerate(arms):
            for step, (index, _) in enumerate(levels):
                tally = found.get((name, index, arm))
                if tally:
                    x = left + column * (block + gap) + step * size + space * axis[step]
                    _cell(axes, x, y, size, line * 0.8, tally)
    _legend(axes, left, height - 0.38, 0.3, 0.22, 2.3)
    axes.text(0.12, height - 0.27, "stress rises to the right", va="center", fontsize=9)
    return _svg(figure, "overview")


def picture(rows: Sequence[Row], name: str) -> str:
    """One scenario as an SVG: levels across, arms down, mean skill of the living in the cells."""
    arms, levels, found = arms_of(rows), levels_of(rows, name), counts(rows)
    left, size, line, head = 1.25, max(1.0, 6.6 / len(levels)), 0.36, 0.34
    width, height = left + len(levels) * size + 0.1, head + len(arms) * line + 0.45
    figure, axes = _canvas(width, height)
    for step, (_, level) in enumerate(levels):
        label = level.label if level.fair else f"({level.label})"
        axes.text(left + (step + 0.5) * size, 0.2, label, ha="center", va="center", fontsize=9)
    for place, arm in enumerate(arms):
        y = head + place * line
        axes.text(0.1, y + line * 0.43, arm, va="center", fontsize=9.5)
        for step, (index, _) in enumerate(levels):
            tally = found.get((name, index, arm))
            if not tally:
                continue
            x = left + step * size
            _cell(axes, x, y, size, line * 0.86, tally)
            worst = [n for n in STATES if tally[n]][-1]
            axes.text(
                x + size / 2,
                y + line * 0.43,
                _skill(rows, name, index, arm),
                ha="center",
                va="center",
                fontsize=8.5,
                color=INK[worst] if sum(map(bool, tally.values())) == 1 else TEXT,
                bbox={"fc": FILL[worst], "ec": "none", "pad": 1.5},
            )
    axes.text(left, height - 0.25, f"stress: {SCENARIOS[name].axis}", va="center", fontsize=9)
    return _svg(figure, name)


def _skill(rows: Sequence[Row], name: str, index: int, arm: str) -> str:
    key = (name, index, arm)
    mine = [row for row in rows if (row["scenario"], row["level"], row["arm"]) == key]
    alive = [row["metric"] for row in mine if row["survived"]]
    if not alive:
        return "died"
    mean = sum(alive) / len(alive)
    words = f"{mean:.2f}" if mean > -9.995 else f"{mean:.0e}"
    return words if len(alive) == len(mine) else f"{words} ({len(alive)} of {len(mine)} alive)"


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; border-radius: 6px; }
h2 { margin-top: 3rem; font-size: 1.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
td, th { padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; }
details { margin: 0.5rem 0; }
"""


def page(rows: Sequence[Row]) -> str:
    """The whole result as one HTML page: no script, no font, no address outside it."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Survival benchmark</title><style>{STYLE}</style></head><body>",
        "<h1>Survival benchmark</h1>",
        f"<p><strong>{html.escape(sentence(rows))}</strong></p>",
        "<p>A run survived if every loss, every parameter after every step and every held-out "
        f"output was finite. It learned if it also reached {LEARNED:.0%} of the skill above "
        "trivial of a control run: standardized clean data, the textbook's stable loss, the bare "
        "optimizer. The numbers are skill on clean held-out data in the original units (0: a "
        "constant guess, 1: perfect), the mean of the runs alive. Learning rates were tuned at "
        "stress 0 on other seeds, then frozen. Levels in brackets are not fair and not counted."
        "</p>",
        "<p>Blue: learned. Yellow: survived, did not learn. White, hatched: died. A cell is "
        "divided by the share of the seeds.</p>",
    ]
    rates = load_rates()
    for name in scenarios_of(rows):
        scenario = SCENARIOS[name]
        parts += [
            f'<section id="{name}"><h2>{scenario.number}. {html.escape(scenario.title)}</h2>',
            _inline(picture(rows, name)),
            f"<p>{html.escape(scenario.story)}</p>",
            f"<p>Remedy: {html.escape(scenario.remedy.advice)}.</p>",
            _notes(rows, name),
            "<details><summary>Learning rates</summary>",
            *(_rates(key, rates[key]) for key in rates if key.split("/")[0] == name),
            "</details></section>",
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _notes(rows: Sequence[Row], name: str) -> str:
    notes = {
        (row["arm"], row["mark"], row["note"])
        for row in rows
        if row["scenario"] == name and row["note"]
    }
    items = [f"<li>{arm}: {mark} ({html.escape(note)})</li>" for arm, mark, note in sorted(notes)]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _rates(key: str, found: dict[str, dict[str, float]]) -> str:
    cells = [
        f"<tr><td>{arm}</td><td>{value['rate']:g}</td><td>{value['skill']:.2f}</td></tr>"
        for arm, value in found.items()
    ]
    heading = "<tr><th>arm</th><th>rate</th><th>skill when tuned</th></tr>"
    return f"<p>{html.escape(key)}</p><table>{heading}{''.join(cells)}</table>"


def write_page(rows: Sequence[Row], path: Path) -> None:
    """Writes the HTML page."""
    path.write_text(page(rows), encoding="utf-8")


def write_picture(rows: Sequence[Row], path: Path) -> None:
    """Writes the overview as an SVG file."""
    path.write_text(overview(rows), encoding="utf-8")
