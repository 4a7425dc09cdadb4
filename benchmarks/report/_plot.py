"""Plots as SVG elements, coloured by the page's style sheet."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float | None]]

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 18, 34
COLOURS = 9
"""Of the style sheet: as many as there are libraries and forms of one function."""


def errors(series: Mapping[str, Points], label: str) -> str:
    """Errors in ulps against the input; None, at the top, is a result that is not finite.

    The input's axis is linear within 1e-3 of 0 and logarithmic beyond, the error's logarithmic.
    """
    shown = {name: [(x, y) for x, y in points if abs(x) <= 1e5] for name, points in series.items()}
    xs = [_symlog(x) for points in shown.values() for x, _ in points]
    if not xs:
        return ""
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _scale(-1, 9, HEIGHT - BOTTOM, TOP + 10)
    parts = [_line(LEFT, up(p), WIDTH - RIGHT, up(p), "grid") for p in range(-1, 9, 2)]
    parts += [_words(LEFT - 5, up(p) + 3, f"1e{p}", "end") for p in range(-1, 9, 2)]
    parts.append(_words(LEFT - 5, TOP + 5, "NaN, ∞", "end"))
    for sign in (-1, 1):
        for power in (-1, 1, 3, 5):
            x = _symlog(sign * 10.0**power)
            if min(xs) <= x <= max(xs):
                mark = f"{'−' if sign < 0 else ''}1e{power}"
                parts.append(_words(across(x), HEIGHT - BOTTOM + 13, mark, "middle"))
    parts.append(_words((LEFT + WIDTH) / 2, HEIGHT - 6, label, "middle"))
    for place, points in enumerate(shown.values()):
        for x, y in points:
            h = TOP + 2 if y is None else up(min(math.log10(max(y, 0.1)), 8.6))
            parts.append(
                f'<circle cx="{across(_symlog(x)):.1f}" cy="{h:.1f}" r="{2.6 - 0.2 * place:.1f}" '
                f'fill="var(--c{place % COLOURS})" fill-opacity="0.8"/>'
            )
    return _svg(parts, f"errors in ulps against {label}")


def lines(series: Mapping[str, Points], across_label: str, up_label: str) -> str:
    """Lines on two logarithmic axes."""
    points = [(x, y) for each in series.values() for x, y in each if y]
    if not points:
        return ""
    xs, ys = ([math.log10(p[k] or 1) for p in points] for k in (0, 1))
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    low, high = math.floor(min(ys)), math.ceil(max(ys))
    up = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = []
    for p in range(low, high + 1):
        parts += [_line(LEFT, up(p), WIDTH - RIGHT, up(p), "grid")]
        parts += [_words(LEFT - 5, up(p) + 3, f"1e{p}", "end")]
    for p in range(math.ceil(min(xs)), math.floor(max(xs)) + 1):
        parts.append(_words(across(p), HEIGHT - BOTTOM + 13, f"1e{p}", "middle"))
    parts.append(_words((LEFT + WIDTH) / 2, HEIGHT - 6, across_label, "middle"))
    parts.append(_words(4, 10, up_label, "start"))
    for place, each in enumerate(series.values()):
        at = [(across(math.log10(x)), up(math.log10(y))) for x, y in each if y]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        parts.append(f'<path class="line" stroke="var(--c{place % COLOURS})" d="M{path}"/>')
    return _svg(parts, f"{up_label} against {across_label}")


def legend(names: Sequence[str]) -> str:
    """The colours of the series."""
    items = (
        f'<span><i style="background:var(--c{place % COLOURS})"></i>{escape(name)}</span>'
        for place, name in enumerate(names)
    )
    return f'<p class="key">{"".join(items)}</p>'


def _symlog(x: float) -> float:
    return math.copysign(math.log10(1 + abs(x) / 1e-3), x)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1
    return lambda v: start + (v - low) / span * (end - start)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _words(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
