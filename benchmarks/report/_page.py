"""The page: headline figures, a section for each suite, what it ran on."""

import datetime
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .._rows import Row, name
from . import _functions, _training
from ._html import number, paragraph, table, text
from ._style import SCRIPT, STYLE

SECTIONS = {
    "survival": ("Survival: training runs under stress", _training.survival),
    "accuracy": ("Accuracy: errors against the truth", _functions.accuracy),
    "speed": ("Speed: time over that of a copy", _functions.speed),
    "optimizers": ("Optimizers: what guards cost and do", _training.optimizers),
    "accelerators": ("Accelerators: compiled for TPU and GPU", _functions.accelerators),
}


def write_report(rows: Sequence[Row], directory: Path, command: str) -> Path:
    """Writes `index.html` into a directory, which is made if need be; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "index.html"
    path.write_text(page(rows, command), encoding="utf-8")
    return path


def page(rows: Sequence[Row], command: str) -> str:
    """All rows as one HTML page: no font, no picture, no address outside it.

    Args:
      rows: of any suites.
      command: that made them, in words.
    """
    good = [row for row in rows if row["error"] is None]
    tiles, sections, links = [], [], []
    for suite, (title, build) in SECTIONS.items():
        mine = [row for row in good if row["suite"] == suite]
        if not mine:
            continue
        found, inside = build(mine)
        tiles += found
        links.append(f'<a href="#{suite}">{suite}</a>')
        sections.append(f'<section id="{suite}"><h2>{escape(title)}</h2>{inside}</section>')
    boxes = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(words)}</span></div>'
        for figure, words in tiles
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>robustops benchmark</title><style>{STYLE}</style></head><body>",
            "<h1>robustops benchmark</h1>",
            f'<p class="soft">{len(rows):,} rows, made with <code>{escape(command)}</code> on '
            f"{escape(_devices(rows))}, {datetime.date.today():%d %B %Y}.</p>",
            f"<nav>{' '.join(links)} <a href='#made'>made on</a></nav>",
            f'<div class="tiles">{boxes}</div>',
            *sections,
            _errors(rows),
            _made(rows, command),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _devices(rows: Sequence[Row]) -> str:
    return (
        ", ".join(dict.fromkeys(row["device"] for row in rows if row["suite"] != "accelerators"))
        or "no device"
    )


def _errors(rows: Sequence[Row]) -> str:
    bad = [row for row in rows if row["error"] is not None]
    if not bad:
        return ""
    lines = [
        [text(row["suite"]), text(name(row)), text(row.get("library", "")), text(row["error"])]
        for row in bad
    ]
    return (
        f'<section id="errors"><h2>{len(bad)} rows that are errors</h2>'
        f"{table(['suite', 'case', 'library', 'error'], lines)}</section>"
    )


def _made(rows: Sequence[Row], command: str) -> str:
    facts: dict[tuple[str, str], None] = {}
    for row in rows:
        for kind in ("machine", "versions"):
            for key, value in row.get(kind, {}).items():
                facts[key, str(value)] = None
        facts["device", row["device"]] = None
    suites = [
        [text(suite), number(sum(row["suite"] == suite for row in rows), "d")]
        for suite in dict.fromkeys(row["suite"] for row in rows)
    ]
    return "".join(
        [
            '<section id="made"><h2>Made on</h2>',
            f"<p>Command: <code>{escape(command)}</code></p>",
            table(["what", "value"], [[text(key), text(value)] for key, value in facts]),
            table(["suite", "rows"], suites),
            paragraph("Each row, as JSON, stands in the file that the command wrote.", "soft"),
            "</section>",
        ]
    )
