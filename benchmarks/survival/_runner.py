"""Runs the scenarios, and counts what came of them."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from .._command import choose
from .._rows import Once, Row, failed, fresh, said
from . import (  # noqa: F401  They register the scenarios.
    _classification,
    _data_faults,
    _program_faults,
    _regression,
)
from ._arms import ARMS, CONTROL, recipe
from ._scenario import SCENARIOS as _REGISTERED
from ._scenario import Level, Scenario
from ._train import Outcome, trainer

SCENARIOS: Mapping[str, Scenario] = dict(
    sorted(_REGISTERED.items(), key=lambda item: item[1].number)
)
QUICK = (
    "autoencoder-tanh",
    "high-rate",
    "clip-bce",
    "outlier-regression",
    "division",
    "sigmoid-raw",
    "log-square",
    "nan-cells",
    "variance-cancellation",
    "weight-decay",
)
"""Scenarios of a quick run; nearly all of its time is compilation, one for each arm of each."""
RATES = Path(__file__).with_name("rates.json")
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
FIRST_SEED = 10
"""Seeds 0 to 4 were looked at while the scenarios were made; nothing was chosen by these."""
TUNING_SEEDS = (100, 101, 102)
LEARNED = 0.9
"""Share of the control's skill above trivial that counts as learned."""
HEALTHY = 0.6
"""A control is healthy with this share of the skill that it had when tuned: splits differ."""


def run(
    only: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    levels: Literal["quick", "all"] | Sequence[int] = "quick",
    *,
    steps: int | None = None,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, runs: None,
) -> list[Row]:
    """Runs scenarios and returns one row for each scenario, level, arm and seed.

    A run *survived* if every loss, every parameter after every step and every held-out output was
    finite; it *learned* if it survived and reached 90% of the skill above trivial of the control
    run of the same seed: standardized clean data, the textbook's stable loss, the bare optimizer.

    Args:
      only: names of scenarios; None for all.
      arms: names of arms; None for all five.
      seeds: number of seeds (from 10 on), or the seeds themselves.
      levels: "quick" for three levels of each scenario, "all", or indices of levels.
      steps: training steps in place of the scenarios' own, for tests.
      once: measures a unit, one run, unless its row is kept.
      advance: called with what was run and how many runs that was.

    Returns:
      Rows as dictionaries that JSON can hold; `metric` is the skill, None where an output was
      not finite.

    Raises:
      ValueError: an unknown scenario, arm or level, or no seed; the valid ones are listed.
    """
    arms = choose("arm", arms, ARMS)
    seeds = _seeds(seeds)
    rows = []
    for name in choose("scenario", only, SCENARIOS):
        scenario = SCENARIOS[name]
        chosen = choose_levels(scenario, levels)
        optimizers = dict.fromkeys(scenario.optimizer_of(level) for _, level in chosen)
        for optimizer in optimizers:
            mine = [(i, level) for i, level in chosen if scenario.optimizer_of(level) == optimizer]
            for arm in arms:
                for index, level in mine:
                    for seed in seeds:
                        unit = {
                            "suite": "survival",
                            "scenario": name,
                            "level": index,
                            "arm": arm,
                            "seed": seed,
                            "steps": steps or scenario.steps,
                        }
                        where = scenario, optimizer, level, arm, seed, steps
                        rows += once(unit, lambda where=where: [_one_run(*where)])
                        advance(f"{name}: {arm}", 1)
    return rows


@functools.cache
def compiled(name: str, optimizer: str, arm: str) -> Callable[..., Outcome]:
    """The trainer of an arm, kept, so that a second call need not compile again."""
    return trainer(SCENARIOS[name], optimizer, arm)


@functools.cache
def _control(name: str, optimizer: str, seed: int, steps: int | None) -> float:
    """Skill of the control run; NaN if it died."""
    scenario = SCENARIOS[name]
    train = compiled(name, optimizer, CONTROL)
    rate = load_rates()[f"{name}/{optimizer}"][CONTROL]["rate"]
    outcome = train(seed, scenario.healthy(optimizer), rate, steps)
    return outcome.skill if outcome.survived else math.nan


def _one_run(
    scenario: Scenario, optimizer: str, level: Level, arm: str, seed: int, steps: int | None
) -> Row:
    rate = load_rates()[f"{scenario.name}/{optimizer}"][arm]["rate"]
    control, problem = math.nan, None
    try:
        control = _control(scenario.name, optimizer, seed, steps)
        outcome = compiled(scenario.name, optimizer, arm)(seed, level, rate, steps)
    except Exception as error:  # A run that raises has died.
        outcome, problem = Outcome(False, math.nan, 0.0), said(error)
    removes = recipe(scenario, arm).removes_stress
    if not level.fair:
        mark, note = "information-destroyed", level.note
    elif removes and level is not scenario.healthy(optimizer):
        mark, note = "stress-removed", removes
    else:
        mark, note = "fair", ""
    return {
        "number": scenario.number,
        "stress": level.label,
        "optimizer": optimizer,
        "survived": outcome.survived,
        "learned": outcome.survived and outcome.skill >= LEARNED * control,
        "fair": level.fair,
        "mark": mark,
        "note": note,
        "metric": outcome.skill if math.isfinite(outcome.skill) else None,
        "measure": scenario.metric,
        "control": control if math.isfinite(control) else None,
        "rate": rate,
        "seconds": round(outcome.seconds, 4),
        "error": problem,
    }


def planned(
    only: Sequence[str] | None,
    arms: Sequence[str] | None,
    seeds: int | Sequence[int],
    levels: Literal["quick", "all"] | Sequence[int],
) -> int:
    """Number of training runs of such a call of `run`, without the controls."""
    chosen = [
        level
        for name in choose("scenario", only, SCENARIOS)
        for level in choose_levels(SCENARIOS[name], levels)
    ]
    return len(chosen) * len(choose("arm", arms, ARMS)) * len(_seeds(seeds))


def summary(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Counts over the fair rows by arm: runs, survived, learned, learned with stress removed."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        if not row["fair"]:
            continue
        arm = counts.setdefault(
            row["arm"], {"runs": 0, "survived": 0, "learned": 0, "stress_removed": 0}
        )
        arm["runs"] += 1
        arm["survived"] += row["survived"]
        arm["learned"] += row["learned"]
        arm["stress_removed"] += row["learned"] and row["mark"] == "stress-removed"
    return counts


def verify(
    rows: Sequence[Row],
    only: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 1,
    levels: Literal["quick", "all"] | Sequence[int] = "quick",
) -> None:
    """Asserts that the rows are complete, no row contradicts itself, and each control was healthy.

    Raises:
      AssertionError: with the rows or the control concerned.
    """
    expected = {
        (name, index, arm, seed)
        for name in choose("scenario", only, SCENARIOS)
        for index, _ in choose_levels(SCENARIOS[name], levels)
        for arm in choose("arm", arms, ARMS)
        for seed in _seeds(seeds)
    }
    keys = [(row["scenario"], row["level"], row["arm"], row["seed"]) for row in rows]
    if len(keys) != len(set(keys)) or set(keys) != expected:
        wrong = sorted(expected.symmetric_difference(keys)) or "repeated"
        raise AssertionError(f"rows missing, repeated or not asked for: {wrong}")
    assert not failed(rows, "robustops"), "\n".join(failed(rows, "robustops"))
    rates = load_rates()
    for row in rows:
        where = f"{row['scenario']}, {row['stress']}, {row['arm']}, seed {row['seed']}"
        floor = HEALTHY * rates[f"{row['scenario']}/{row['optimizer']}"][CONTROL]["skill"]
        if row["control"] is None or row["control"] < floor:
            raise AssertionError(f"{where}: control not healthy: {row['control']} < {floor:.3f}")
        if row["learned"] and not row["survived"]:
            raise AssertionError(f"{where}: learned, but did not survive")
        if row["survived"] and row["metric"] is None:
            raise AssertionError(f"{where}: survived, but its predictions are not finite")


def tune(
    only: Sequence[str] | None = None,
    *,
    advance: Callable[[str, int], None] = lambda what, runs: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Finds the learning rate of every arm at stress 0: what `rates.json` holds.

    One grid for all arms and scenarios, mean skill of three seeds that the benchmark does not use;
    of the rates within 0.01 of the best the smallest. A run that dies has skill 0, and no skill
    counts below 0.
    """
    rates = {}
    for name in choose("scenario", only, SCENARIOS):
        scenario = SCENARIOS[name]
        for optimizer in scenario.optimizers:
            healthy = scenario.healthy(optimizer)
            found = rates[f"{name}/{optimizer}"] = {}
            for arm in (CONTROL, *ARMS):
                train = compiled(name, optimizer, arm)
                skills = {}
                for rate in GRID:
                    outcomes = [train(seed, healthy, rate) for seed in TUNING_SEEDS]
                    kept = [max(o.skill, 0.0) if o.survived else 0.0 for o in outcomes]
                    skills[rate] = sum(kept) / len(kept)
                    advance(f"tuning {name}: {arm}", len(TUNING_SEEDS))
                best = min(rate for rate in GRID if skills[rate] >= max(skills.values()) - 0.01)
                found[arm] = {"rate": best, "skill": round(skills[best], 4)}
    return rates


def load_rates() -> dict[str, dict[str, dict[str, float]]]:
    """The frozen learning rates, and the skill that each reached at stress 0."""
    return json.loads(RATES.read_text())


def save_rates(rates: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Freezes learning rates; scenarios that are not named keep theirs."""
    old = load_rates() if RATES.exists() else {}
    RATES.write_text(json.dumps(old | dict(rates), indent=1) + "\n")


def choose_levels(
    scenario: Scenario, levels: Literal["quick", "all"] | Sequence[int]
) -> list[tuple[int, Level]]:
    """Levels of a scenario with their indices."""
    if isinstance(levels, str):
        if levels not in ("quick", "all"):
            raise ValueError(f"levels must be 'quick', 'all' or indices, got {levels!r}")
        levels = scenario.quick if levels == "quick" else range(len(scenario.levels))
    unknown = [index for index in levels if not 0 <= index < len(scenario.levels)]
    if unknown or not len(levels):
        listed = ", ".join(f"{i} ({level.label})" for i, level in enumerate(scenario.levels))
        problem = f"has no level {', '.join(map(str, unknown))}" if unknown else "needs a level"
        raise ValueError(f"scenario {scenario.name!r} {problem}; choose from: {listed}")
    return [(index, scenario.levels[index]) for index in sorted(set(levels))]


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        chosen = list(range(FIRST_SEED, FIRST_SEED + seeds))
    else:
        chosen = list(dict.fromkeys(seeds))
    if not chosen or min(chosen) < 0:
        raise ValueError(f"seeds must be a number >= 1 or a list of seeds >= 0, got {seeds!r}")
    return chosen
