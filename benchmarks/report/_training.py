"""The page's sections on training: survival under stress, and optimizers."""

from collections.abc import Sequence
from html import escape

from .._rows import Row
from ._html import Cell, bar, fold, number, paragraph, table, text

Tile = tuple[str, str]
"""A headline figure, and what it says."""

WORDS = {"learned": "learned", "alive": "survived, did not learn", "died": "died (NaN or inf)"}


def survival(rows: Sequence[Row]) -> tuple[list[Tile], str]:
    """Tiles and section of the survival suite."""
    from ..survival._report import arms_of, counts, levels_of, scenarios_of, sentence
    from ..survival._runner import LEARNED, SCENARIOS, load_rates, summary

    arms, names, found, total = arms_of(rows), scenarios_of(rows), counts(rows), summary(rows)
    tiles = [
        (
            f"{total[arm]['learned']} of {total[arm]['runs']}",
            f"runs learned under {arm}; {total[arm]['survived']} survived",
        )
        for arm in ("robustops", "optax+scaler", "optax", "naive")
        if arm in total
    ]
    keys = "".join(
        f'<span><i><s class="{state}"></s></i>{escape(words)}</span>'
        for state, words in WORDS.items()
    )
    overview = []
    for name in names:
        cells = [
            Cell(f'<a href="#{name}">{name}</a>', SCENARIOS[name].number),
            *(_levels(name, levels_of(rows, name), arm, found) for arm in arms),
        ]
        overview.append(cells)
    parts = [
        paragraph(sentence(rows)),
        f'<p class="key">{keys}</p>',
        table(["scenario", *arms], overview, "stress rises to the right; faint: not fair"),
        paragraph(
            "A run survived if every loss, every parameter after every step and every held-out "
            f"output was finite. It learned if it also reached {LEARNED:.0%} of the skill above "
            "trivial of a control run: standardized clean data, the textbook's stable loss, the "
            "bare optimizer. Learning rates were tuned for each arm at stress 0 on other seeds, "
            "then frozen. Levels that are not fair are not counted.",
            "soft",
        ),
    ]
    rates = load_rates()
    for name in names:
        scenario = SCENARIOS[name]
        tuned = [
            [text(key), text(arm), number(value["rate"], "g"), number(value["skill"])]
            for key, of in rates.items()
            if key.split("/")[0] == name
            for arm, value in of.items()
        ]
        inside = [
            table(["stress: " + scenario.axis, *arms], _skills(rows, name, arms)),
            paragraph(scenario.story),
            paragraph(f"Remedy: {scenario.remedy.advice}."),
            _notes(rows, name),
            fold("learning rates", table(["run", "arm", "rate", "skill when tuned"], tuned)),
        ]
        line = fold(f"{scenario.number}. {scenario.title}", "".join(inside))
        parts.append(line.replace("<details>", f'<details id="{name}">', 1))
    return tiles, "".join(parts)


def _levels(name: str, levels: Sequence, arm: str, found: dict) -> Cell:
    """A box for each level, divided by the share of the seeds."""
    from ..survival._runner import SCENARIOS

    boxes, learned, optimizer = [], 0, None
    for index, level in levels:
        tally = found.get((name, index, arm))
        if tally is None:
            continue
        mine = SCENARIOS[name].optimizer_of(level)
        if optimizer not in (None, mine):
            boxes.append('<i class="gap"></i>')
        optimizer = mine
        learned += tally["learned"]
        slices = "".join(
            f'<s class="{state}" style="--f:{count}"></s>'
            for state, count in tally.items()
            if count
        )
        said = ", ".join(f"{count} {WORDS[state]}" for state, count in tally.items() if count)
        style = "" if level.fair else ' class="unfair"'
        label = escape(f"{level.label}: {said}", quote=True)
        boxes.append(f'<i{style} title="{label}">{slices}</i>')
    return Cell(f'<div class="levels">{"".join(boxes)}</div>', learned)


def _skills(rows: Sequence[Row], name: str, arms: Sequence[str]) -> list[list[Cell]]:
    """Mean skill of the living runs, by level and arm."""
    from ..survival._report import levels_of

    lines = []
    for index, level in levels_of(rows, name):
        label = level.label if level.fair else f"({level.label}: {level.note})"
        line = [Cell(escape(label), index)]
        for arm in arms:
            mine = [
                row
                for row in rows
                if (row["scenario"], row["level"], row["arm"]) == (name, index, arm)
            ]
            line.append(_skill(mine))
        lines.append(line)
    return lines


def _skill(mine: Sequence[Row]) -> Cell:
    if not mine:
        return text("")
    alive = [row["metric"] for row in mine if row["survived"]]
    if not alive:
        return Cell("died", float("-inf"), "lost")
    mean = sum(alive) / len(alive)
    words = f"{mean:.2f}" if mean > -9.995 else f"{mean:.0e}"
    learned = sum(row["learned"] for row in mine)
    if learned < len(mine):
        words += f" ({learned} of {len(mine)} learned, {len(alive)} alive)"
    return Cell(words, mean)


def _notes(rows: Sequence[Row], name: str) -> str:
    notes = {
        (row["arm"], row["mark"], row["note"])
        for row in rows
        if row["scenario"] == name and row["note"]
    }
    items = "".join(
        f"<li>{escape(arm)}: {escape(mark)} ({escape(note)})</li>"
        for arm, mark, note in sorted(notes)
    )
    return f"<ul>{items}</ul>" if items else ""


def optimizers(rows: Sequence[Row]) -> tuple[list[Tile], str]:
    """Tiles and section of the optimizer suite."""
    from ..optimizers._behaviour import FAULTS
    from ..optimizers._report import sentence, word
    from ..optimizers._run import summary

    found = summary(rows)
    tiles = []
    if "guard, guarded_apply" in found:
        tiles.append((f"{found['guard, guarded_apply']:.2f}x", "time of guard around Adam to Adam"))
    if "robustops survives" in found:
        theirs = (
            f"; optax's stack {found['optax survives']:.0%}" if "optax survives" in found else ""
        )
        tiles.append((f"{found['robustops survives']:.0%}", f"of gradient faults survived{theirs}"))
    cost = [row for row in rows if row["kind"] == "cost"]
    largest = max((row["ratio"] for row in cost), default=1)
    lines = [
        [
            text(row["arm"]),
            text(row["form"]),
            text(row["tree"]),
            text("yes" if row["donated"] else "no"),
            bar(row["ratio"], largest, style="peer" if "optax" in row["arm"] else "ours"),
            number(row["ratio_high"] - row["ratio_low"]),
            number(row["compile_ratio"], ".1f"),
        ]
        for row in cost
    ]
    heading = ["arm", "form", "tree", "donated", "time over Adam", "quartiles", "compile time"]
    cells = {(r["arm"], r["dtype"], r["fault"]): r for r in rows if r["kind"] == "behaviour"}
    behaviour = [
        [
            text(arm),
            text(dtype),
            *(_word(cells.get((arm, dtype, fault)), word) for fault in FAULTS),
        ]
        for arm, dtype in dict.fromkeys(key[:2] for key in cells)
    ]
    return tiles, "".join(
        [
            paragraph(sentence(rows)),
            table(heading, lines, "cost of one step"),
            table(["arm", "dtype", *FAULTS], behaviour, "after a fault in one gradient element"),
        ]
    )


def _word(row: Row | None, word) -> Cell:
    if row is None:
        return text("")
    said = word(row)
    return Cell(said, said, "lost" if said in ("NaN", "frozen") else "")
