"""The result in words: the table, the sentence, the list of scenarios."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from .._rows import Row
from ._arms import ARMS
from ._runner import SCENARIOS, summary
from ._scenario import Level

STATES = ("learned", "alive", "died")


def state(row: Row) -> str:
    """What became of a run: it learned, it was alive but did not learn, or it died."""
    return "learned" if row["learned"] else "alive" if row["survived"] else "died"


def arms_of(rows: Iterable[Row]) -> list[str]:
    """The arms that occur, in their own order."""
    present = {row["arm"] for row in rows}
    return [arm for arm in ARMS if arm in present]


def scenarios_of(rows: Iterable[Row]) -> list[str]:
    """The scenarios that occur, in their own order."""
    present = {row["scenario"] for row in rows}
    return [name for name in SCENARIOS if name in present]


def levels_of(rows: Iterable[Row], scenario: str) -> list[tuple[int, Level]]:
    """The levels of a scenario that occur."""
    present = {row["level"] for row in rows if row["scenario"] == scenario}
    return [(index, SCENARIOS[scenario].levels[index]) for index in sorted(present)]


def counts(rows: Iterable[Row]) -> dict[tuple[str, int, str], dict[str, int]]:
    """How many seeds came to each state, by scenario, level and arm."""
    found: dict[tuple[str, int, str], dict[str, int]] = {}
    for row in rows:
        key = row["scenario"], row["level"], row["arm"]
        found.setdefault(key, dict.fromkeys(STATES, 0))[state(row)] += 1
    return found


def table(rows: Sequence[Row]) -> Table:
    """What became of every run: scenarios and levels down, arms across."""
    found, arms = counts(rows), arms_of(rows)
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("scenario", "stress"):
        made.add_column(heading, no_wrap=True)
    for arm in arms:
        made.add_column(arm)
    for name in scenarios_of(rows):
        for place, (index, level) in enumerate(levels_of(rows, name)):
            label = f"{SCENARIOS[name].number} {name}" if place == 0 else ""
            cells = [_cell(found.get((name, index, arm))) for arm in arms]
            made.add_row(label, level.label if level.fair else f"({level.label})", *cells)
        made.add_section()
    return made


def _cell(tally: dict[str, int] | None) -> Text:
    if tally is None:
        return Text("")
    reached = {name: count for name, count in tally.items() if count}
    if len(reached) == 1:
        (words,) = reached
    else:
        words = ", ".join(f"{count} {name}" for name, count in reached.items())
    worst = [name for name in STATES if tally[name]][-1]
    return Text(words, style={"learned": "green", "alive": "yellow", "died": "red"}[worst])


def sentence(rows: Sequence[Row]) -> str:
    """The counts for every arm, over the fair levels."""
    total = summary(rows)
    scenarios, seeds = len(scenarios_of(rows)), len({row["seed"] for row in rows})
    fair = {(row["scenario"], row["level"]) for row in rows if row["fair"]}
    parts = []
    for arm in reversed(arms_of(rows)):
        count = total.get(arm, {"runs": 0, "survived": 0, "learned": 0, "stress_removed": 0})
        removed = count["stress_removed"]
        parts.append(
            f"{arm} survived {count['survived']} and learned {count['learned']} of {count['runs']}"
            + (f" ({removed} with the stress removed)" if removed else "")
        )
    return (
        f"On {_plural(scenarios, 'scenario')}, {_plural(len(fair), 'fair stress level')} and "
        f"{_plural(seeds, 'seed')}: {'; '.join(parts)}."
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listing() -> Table:
    """The scenarios, with their axes and levels; quick levels are marked."""
    made = Table(show_edge=False, pad_edge=False)
    for heading in ("scenario", "what goes wrong", "stress axis", "levels (* default run)"):
        made.add_column(heading)
    for scenario in SCENARIOS.values():
        labels = [
            f"{index}: {level.label}{'*' if index in scenario.quick else ''}"
            for index, level in enumerate(scenario.levels)
        ]
        made.add_row(scenario.name, scenario.title, scenario.axis, "\n".join(labels))
        made.add_section()
    return made
