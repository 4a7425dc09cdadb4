"""The five arms, and the control: how each prepares data, starts, and steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import robustops.optim as ro_optim
import robustops.train as ro_train

from ._data import Split, moments
from ._scenario import Loss, Scenario

ARMS = ("naive", "remedy", "optax", "optax+scaler", "robustops")
CONTROL = "control"

Wrap = Callable[[optax.GradientTransformation], optax.GradientTransformation]

# One setting for all scenarios and levels, chosen once on the tuning seeds.
MAX_NORM, MAX_RELATIVE_UPDATE, EPS = 1.0, 0.02, 0.1
# Healthy cells reach 38 robust sigmas (breast_cancer): at 10, 3% of its rows lose a cell.
MAX_SIGMAS = 30.0
AUDIT_ROWS = 256


class Prepared(NamedTuple):
    """What an arm trains on."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    rows: np.ndarray
    """Indices of the training rows that may be used."""
    restore: Callable[[np.ndarray], np.ndarray]
    """Model outputs to predictions in the units of the targets."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an arm does to a scenario."""

    loss: Loss
    prepare: Callable[[Split], Prepared]
    wrap: Wrap
    model: Callable[[Any], Any] | None = None
    resets: tuple[str, ...] = ()
    audit: bool = False
    reinitialize: bool = False
    lower_rate: bool = False
    removes_stress: str = ""


def recipe(scenario: Scenario, arm: str) -> Recipe:
    """What `arm` does to `scenario`."""
    remedy = scenario.remedy
    if arm == CONTROL:
        return Recipe(scenario.control_loss, standard_scaling, _unguarded)
    if arm == "naive":
        return Recipe(scenario.naive_loss, no_scaling, _unguarded)
    if arm == "remedy":
        scaling = standard_scaling if remedy.standardize else no_scaling
        return Recipe(
            remedy.loss or scenario.naive_loss,
            _without_bad_rows(scaling) if remedy.drop_bad_rows else scaling,
            remedy.wrap or _unguarded,
            model=remedy.model,
            resets=remedy.resets,
            reinitialize=remedy.reinitialize,
            lower_rate=remedy.lower_rate,
            removes_stress=remedy.removes_stress,
        )
    if arm == "optax":
        return Recipe(scenario.optax_loss, no_scaling, _optax_guards)
    if arm == "optax+scaler":
        return Recipe(
            scenario.optax_loss,
            standard_scaling,
            _optax_guards,
            removes_stress=scenario.scaling_removes_stress,
        )
    reasons = (
        scenario.scaling_removes_stress,
        scenario.audit_removes_stress,
        scenario.robustops_removes_stress,
    )
    return Recipe(
        scenario.robustops_loss,
        robust_scaling,
        _robustops_guard,
        model=scenario.robustops_model,
        audit=True,
        removes_stress="; ".join(filter(None, reasons)),
    )


def _unguarded(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return tx


def _optax_guards(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The published defaults: norm 1, AGC 0.01 with eps 1e-3, five errors in a row."""
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adaptive_grad_clip(0.01), tx)
    return optax.apply_if_finite(clipped, max_consecutive_errors=5)


def _robustops_guard(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return ro_optim.guard(tx, max_norm=MAX_NORM, max_relative_update=MAX_RELATIVE_UPDATE, eps=EPS)


def no_scaling(data: Split) -> Prepared:
    """The data as they come."""
    data = _single(data)
    return Prepared(data.x, data.y, data.x_test, np.arange(len(data.x)), _same)


def standard_scaling(data: Split) -> Prepared:
    """Mean 0 and deviation 1, the moments in float64; numeric targets too."""
    data = _single(data)
    center, scale = moments(data.x)
    with np.errstate(all="ignore"):
        x, x_test = ((part - center) / scale for part in (data.x, data.x_test))
    y, restore = data.y, _same
    if np.issubdtype(y.dtype, np.floating):
        y_center, y_scale = moments(y)
        with np.errstate(all="ignore"):
            y = (y - y_center) / y_scale
        restore = lambda out: np.asarray(out, np.float64) * y_scale + y_center
    scaled = _single(Split(x, y, x_test, data.y_test))
    return Prepared(scaled.x, scaled.y, scaled.x_test, np.arange(len(x)), restore)


def robust_scaling(data: Split) -> Prepared:
    """robustops' scaler: robust, cells that are not finite or beyond 30 sigmas imputed."""
    data = _single(data)
    x, x_test, _ = _robust_scaler(data.x, data.x_test)
    y, restore = data.y, _same
    if np.issubdtype(y.dtype, np.floating):
        y, _, scaler = _robust_scaler(y, data.y_test)
        restore = lambda outputs: np.asarray(scaler.inverse(outputs))
    return Prepared(x, y, x_test, np.arange(len(x)), restore)


@jax.jit
def _robust_scaler(train, test):
    scaler = ro_train.RobustScaler(max_sigmas=MAX_SIGMAS).fit(train)
    return scaler.transform(train), scaler.transform(test), scaler


def _without_bad_rows(scaling: Callable[[Split], Prepared]) -> Callable[[Split], Prepared]:
    def prepare(data: Split) -> Prepared:
        data = _single(data)
        good = np.isfinite(data.x).all(axis=tuple(range(1, data.x.ndim)))
        if not good.any():
            return no_scaling(data)._replace(rows=np.zeros(0, int))
        # The moments from the good rows only; the bad ones stay, unused, so that shapes agree.
        kept = data._replace(x=np.where(good.reshape(-1, *[1] * (data.x.ndim - 1)), data.x, np.nan))
        return scaling(kept)._replace(rows=np.flatnonzero(good))

    return prepare


def _single(data: Split) -> Split:
    """Float data in float32."""
    with np.errstate(over="ignore"):
        return Split(
            *(
                part.astype(np.float32) if np.issubdtype(part.dtype, np.floating) else part
                for part in data
            )
        )


def _same(outputs: Any) -> np.ndarray:
    return np.asarray(outputs, np.float64)
