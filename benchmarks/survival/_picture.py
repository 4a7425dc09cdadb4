"""The overview of a result in one SVG."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._rows import Row
from ._report import STATES, arms_of, counts, levels_of, scenarios_of
from ._runner import SCENARIOS, summary

# Dark, middle and white in grey too; blue and yellow are told apart by all kinds of colour vision.
FILL = {"learned": "#1f5a94", "alive": "#f2bf4a", "died": "#ffffff"}
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
    """A figure as an SVG element; the salt makes its ids the same in each run."""
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


def write_picture(rows: Sequence[Row], path: Path) -> None:
    """Writes the overview as an SVG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(overview(rows), encoding="utf-8")
