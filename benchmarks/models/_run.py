"""The suite as a function, and the checks that its rows stand for what was asked."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from robustops import train
from robustops.optim import dynamic_loss_scale, guard
from robustops.testing import inject_fault

from .._command import choose
from .._rows import Once, Row, failed, fresh
from ._tasks import DTYPES, TASKS, Task, principal_components

DATA = ("clean", "faulty")
EVERY = 100
"""Steps from one gradient fault to the next."""
OUTLIER = 1e6
POINT = 0.01
"""How far a low-precision or faulty run may be from the clean float32 one, in the mean."""


def run(
    tasks: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    *,
    seeds: int = 5,
    epochs: int | None = None,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Trains each task in each dtype, on clean and on faulty data, and scores the test rows.

    Faulty is 1% of the training rows NaN, 1% of the other training cells 1e6, and a NaN in every
    hundredth gradient; it is done in float32. Everything else is the same: `check_batch` finds the
    rows to leave out, `RobustScaler(max_sigmas=30)` scales by what it learned from the training
    rows, `fit` trains. A fifth of the rows is the test set; the recipes were chosen on validation
    rows of other splits, and are trained on all other rows here.

    Args:
      tasks: names of the tasks; None for all.
      dtypes: dtypes to compute in (parameters stay float32); None for all.
      data: "clean", "faulty"; None for both.
      seeds: splits, and initial parameters, of each.
      epochs: passes over the data; None for the recipe's.
      once: measures a run, unless its row is kept.
      advance: called with what is done and how much of it.

    Returns:
      One row a run.

    Raises:
      ValueError: an unknown name (the valid ones are listed), or no seed.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    tasks, dtypes, data = chosen(tasks, dtypes, data)
    rows = []
    for name, dtype, kind, seed in runs(tasks, dtypes, data, seeds):
        unit = {"suite": "models", "task": name, "dtype": dtype, "data": kind, "seed": seed}
        rows += once(unit, functools.partial(_train, name, dtype, kind == "faulty", seed, epochs))
        advance(f"{name}, {dtype}, {kind}", 1)
    return rows


def chosen(
    tasks: Sequence[str] | None, dtypes: Sequence[str] | None, data: Sequence[str] | None
) -> tuple[list[str], list[str], list[str]]:
    """The names, checked and in order."""
    return (
        choose("task", tasks, TASKS),
        choose("dtype", dtypes, DTYPES),
        choose("data", data, DATA),
    )


def spoilt(rows: train.Rows, seed: int) -> train.Rows:
    """A copy with 1% of the rows NaN, and 1% of the other rows' cells 1e6."""
    rng = np.random.default_rng([seed, 2])
    x = rows.inputs.copy()
    x[rng.random(x.shape) < 0.01] = OUTLIER
    x[rng.permutation(len(x))[: -(-len(x) // 100)]] = np.nan
    return train.Rows(x, rows.targets)


def _train(name: str, dtype: str, faulty: bool, seed: int, epochs: int | None) -> list[Row]:
    task = TASKS[name]
    data = task.data(seed=seed, validation=0.0)
    if faulty:
        data = dataclasses.replace(data, train=spoilt(data.train, seed))
    report = train.check_batch(
        data.train.inputs, data.train.targets, classes=len(data.classes) or None
    )
    left = train.Rows(*(part[~report.bad_rows] for part in data.train))
    data = dataclasses.replace(data, train=left)
    outliers = int(np.sum(data.train.inputs == OUTLIER))
    data = data.scaled(train.RobustScaler(max_sigmas=30), shared=task.shared)

    epochs = epochs or task.epochs
    rows = task.training_rows(data)
    batches = -(-len(rows.inputs) // task.batch_size)
    steps = epochs * batches
    faults = range(EVERY - 1, steps, EVERY) if faulty else ()
    model = task.model(dtype=DTYPES[dtype], rngs=nnx.Rngs(seed))
    begin = time.perf_counter()
    history = train.fit(
        model,
        _optimizer(task, steps, dtype, faults),
        rows.inputs if task.reconstructs else rows,
        task.loss,
        epochs=epochs,
        batch_size=task.batch_size,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    health = history.health
    row = {
        "library": "robustops",
        "goal": task.goal,
        "score": task.score(model, data.test),
        "components": principal_components(data) if task.reconstructs else None,
        "seconds": round(seconds, 2),
        "nan_rows": int(report.bad_rows.sum()),
        "outliers": outliers,
        "steps": int(health.steps),
        "asked": steps,
        "planted": len(faults),
        "skipped": int(health.skipped),
        "recorded": int(history.skipped.sum()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
    }
    return [row]


def _optimizer(task: Task, steps: int, dtype: str, faults: Sequence[int]) -> Any:
    schedule = optax.cosine_decay_schedule(task.rate, steps)
    tx = guard(optax.adamw(schedule, weight_decay=task.weight_decay))
    if dtype == "float16":
        tx = dynamic_loss_scale(tx)
    return optax.chain(inject_fault(float("nan"), at=list(faults)), tx) if faults else tx


def runs(
    tasks: Sequence[str], dtypes: Sequence[str], data: Sequence[str], seeds: int
) -> list[tuple[str, str, str, int]]:
    """Task, dtype, kind of data and seed of each run; faults in float32 only."""
    return [
        (task, dtype, kind, seed)
        for task in tasks
        for dtype in dtypes
        for kind in data
        for seed in range(seeds)
        if kind == "clean" or dtype == "float32"
    ]


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row for each task, dtype and kind of data: over the seeds, mean and worst score.

    `change` is how much better (> 0) the mean is than that of clean float32, None without it.
    """
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in (row for row in rows if row["error"] is None):
        cells.setdefault((row["task"], row["dtype"], row["data"]), []).append(row)
    table = []
    for (name, dtype, kind), found in cells.items():
        task, base = TASKS[name], cells.get((name, "float32", "clean"), [])
        sign = -1 if task.reconstructs else 1
        scores = [row["score"] for row in found]
        mean = float(np.mean(scores))
        clean = float(np.mean([row["score"] for row in base])) if base else None
        table.append(
            {
                "task": name,
                "dtype": dtype,
                "data": kind,
                "seeds": len(found),
                "goal": task.goal,
                "mean": mean,
                "worst": sign * min(sign * score for score in scores),
                "change": None if clean is None else sign * (mean - clean),
                "seconds": float(np.median([row["seconds"] for row in found])),
                **{key: sum(row[key] for row in found) for key in COUNTS},
            }
        )
    return table


COUNTS = ("nan_rows", "outliers", "steps", "planted", "skipped")


def verify(
    rows: Sequence[Row],
    tasks: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    data: Sequence[str] | None = None,
    seeds: int = 5,
) -> None:
    """Raises ValueError unless every run is there once and its counters add up.

    Every step asked for was counted, every planted fault refused, and nothing else but steps that
    overflowed in float16; `fit` and the guard counted the same.
    """
    tasks, dtypes, data = chosen(tasks, dtypes, data)
    wrong = failed(rows, "robustops")
    if wrong:
        raise ValueError("\n".join(wrong))
    seen = [(r["task"], r["dtype"], r["data"], r["seed"]) for r in rows]
    wanted = runs(tasks, dtypes, data, seeds)
    if sorted(seen) != sorted(wanted):
        raise ValueError(f"expected {len(wanted)} runs, got {len(set(seen))} of {len(seen)} rows")
    for row in rows:
        refused = row["skipped"] - row["planted"]
        allowed = row["steps"] // EVERY if row["dtype"] == "float16" else 0
        if row["steps"] != row["asked"] or row["recorded"] != row["skipped"]:
            raise ValueError(f"steps are missing: {row}")
        if not 0 <= refused <= allowed:
            raise ValueError(f"planted {row['planted']} faults, refused {row['skipped']}: {row}")
        if not np.isfinite(row["score"]):
            raise ValueError(f"no score: {row}")
