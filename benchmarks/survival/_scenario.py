"""What a scenario is: a task on real data, an axis of stress, and what each arm makes of it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from ._data import Split

Values = Mapping[str, Any]
Loss = Callable[[jax.Array, jax.Array, Values], jax.Array]
"""Mean loss of a model's outputs and targets; the stress values of the level come third."""


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of stress."""

    label: str
    """What the table prints."""
    values: Values = dataclasses.field(default_factory=dict)
    """Numbers on the stress axes, given to the compiled program as arrays."""
    optimizer: str = ""
    """Which of the scenario's optimizers; the first if empty."""
    fair: bool = True
    """Whether the information that the task needs is still in the data."""
    note: str = ""
    """Why a level is not fair."""


@dataclasses.dataclass(frozen=True)
class Remedy:
    """The advice usually given for a scenario, as people give it."""

    advice: str
    """In words."""
    removes_stress: str = ""
    """Why the remedy takes the stress away in place of bearing it, if it does."""
    loss: Loss | None = None
    """Loss in place of the naive one."""
    standardize: bool = False
    """Scale inputs (and numeric targets) to mean 0 and deviation 1."""
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None
    """Transform around the optimizer."""
    reinitialize: bool = False
    """Start from the library's initial weights, not from the scenario's."""
    lower_rate: bool = False
    """Use the tuned learning rate, not the scenario's multiple of it."""
    drop_bad_rows: bool = False
    """Leave out rows with a NaN or inf."""
    model: Callable[[Any], Any] | None = None
    """Model in place of the scenario's."""
    resets: tuple[str, ...] = ()
    """Names of stress values that are those of stress 0 in the optimizer."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A task, its stress axis, and the losses that the arms use."""

    number: int
    name: str
    """As on the command line."""
    title: str
    """One line: what goes wrong."""
    story: str
    """The docstring: what is told, what was measured, which levels are fair."""
    axis: str
    """The stress axis in words."""
    levels: tuple[Level, ...]
    """Rising stress; the first of each optimizer is healthy."""
    quick: tuple[int, ...]
    """Indices of the levels of a default run."""
    data: Callable[[int, Values], Split]
    """Seed and stress values to a split; the held-out rows are clean."""
    model: Callable[[Any], Any]
    """`nnx.Rngs` to a module."""
    naive_loss: Loss
    """The loss as it is usually written."""
    optax_loss: Loss
    """The nearest that `optax.losses` offers."""
    robustops_loss: Loss
    """The same from robustops."""
    control_loss: Loss
    """The textbook's stable form, for the control run."""
    remedy: Remedy
    """What people advise."""
    metric: str
    """"accuracy" or "r2"."""
    optimizers: Mapping[str, Callable[[Any, Values], optax.GradientTransformation]]
    """Learning rate and stress values to optimizer, by name."""
    robustops_model: Callable[[Any], Any] | None = None
    """The model as robustops has it, where it differs."""
    stress_init: Callable[[Any, Values], None] | None = None
    """Changes the initial parameters of a module in place."""
    scaling_removes_stress: str = ""
    """Why a scaler takes the stress away, if it does: said of optax+scaler and robustops."""
    audit_removes_stress: str = ""
    """Why the initialisation audit of the robustops arm takes the stress away, if it does."""
    robustops_removes_stress: str = ""
    """Any other reason why the robustops arm takes the stress away."""
    steps: int = 300
    batch: int = 64

    def optimizer_of(self, level: Level) -> str:
        """Name of the optimizer of a level."""
        return level.optimizer or next(iter(self.optimizers))

    def healthy(self, optimizer: str) -> Level:
        """The level at stress 0 of an optimizer."""
        return next(level for level in self.levels if self.optimizer_of(level) == optimizer)


SCENARIOS: dict[str, Scenario] = {}
"""All scenarios by name; `all_scenarios` imports and sorts them."""

# What several scenarios share.
ADAM = {"adam": lambda rate, values: optax.adam(rate)}
SGD = {"sgd": lambda rate, values: optax.sgd(rate)}
UNIT = "scaled data do not depend on the unit"
AUDIT = "rescale_init brings the initial weights back to unit size"


def levels(name: str, *values: float) -> tuple[Level, ...]:
    """Levels of one number."""
    return tuple(Level(f"{value:g}", {name: value}) for value in values)


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:g}%"


def scenario(number: int) -> Callable[[Callable[[], dict[str, Any]]], Callable[[], dict[str, Any]]]:
    """Registers a scenario: its name is the function's, its story the docstring."""

    def register(build: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        title, _, story = (build.__doc__ or "").partition("\n")
        name = build.__name__.replace("_", "-")
        story = re.sub(r"\n +", "\n", story).strip()
        SCENARIOS[name] = Scenario(
            number=number, name=name, title=title.strip(), story=story, **build()
        )
        return build

    return register


def skill(kind: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    """Skill above trivial on held-out rows: 0 for a constant guess, 1 for perfection.

    For "r2" it is `1 - sum(e^2) / sum((y - mean(y))^2)` in float64; for "accuracy" the share of
    right classes, rescaled so that always naming the largest class gives 0. NaN where a prediction
    is not finite.
    """
    predictions = np.asarray(predictions, np.float64)
    if not np.isfinite(predictions).all():
        return float("nan")
    if kind == "r2":
        targets = np.asarray(targets, np.float64)
        unit = np.abs(targets).max()
        errors = ((predictions - targets) / unit) ** 2
        spread = ((targets - targets.mean(0)) / unit) ** 2
        return float(1 - errors.sum() / spread.sum())
    if predictions.shape[-1] == 1:
        named = (predictions[:, 0] > 0).astype(int)
    else:
        named = predictions.argmax(-1)
    largest = np.bincount(targets).max() / len(targets)
    return float(((named == targets).mean() - largest) / (1 - largest))
