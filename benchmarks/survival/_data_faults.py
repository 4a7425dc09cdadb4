"""Scenarios whose fault is in the data; `_regression` says how to read the docstrings."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import robustops as ro
from robustops.models import Classifier

from . import _losses as losses
from ._data import Split, scaled, split, standardized
from ._scenario import ADAM, SGD, UNIT, Level, Remedy, Values, levels, scenario, share

OUTLIERS = "cells beyond 30 robust sigmas count as missing"
OFFSET = "scaled data do not depend on the offset"
LARGEST_LABEL = 2**31 - 1


def _binary(seed: int) -> Split:
    return standardized(split("breast_cancer", seed, held_out=0.5))


def _both(data: Split, change) -> Split:
    """The same change to training and held-out inputs."""
    return data._replace(x=change(data.x), x_test=change(data.x_test))


class _Normalized(nnx.Module):
    """A classifier whose inputs are normalized by the batch's own statistics."""

    def __init__(self, normalize, rngs: nnx.Rngs):
        self.normalize = normalize
        self.classifier = Classifier(30, (16,), 1, rngs=rngs)

    def __call__(self, x):
        return self.classifier(self.normalize(x))


def _by_deviation(x):
    return (x - x.mean(0)) / x.std(0)


def _by_deviation_with_eps(x):
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)


def _by_fast_variance(x):
    """E[x^2] - E[x]^2: one pass, and all digits lost beside a large mean."""
    mean = x.mean(0)
    return (x - mean) / jnp.sqrt((x**2).mean(0) - mean**2)


def _by_safe_deviation(x):
    return ro.safe_div(x - ro.safe_mean(x, axis=0), ro.safe_std(x, axis=0))


@scenario(13)
def unscaled_regression():
    """Linear regression on inputs in large units, SGD.

    Told: unscaled inputs make SGD diverge. Measured: from scale 10 the naive arm is dead, at
    any rate that learns at 1: the largest stable rate falls with the square of the scale.
    Standardizing, the advice, removes the stress, and so do the scalers of the arms
    optax+scaler and robustops.
    """

    def data(seed: int, values: Values) -> Split:
        return scaled(standardized(split("diabetes", seed), targets=True), values["scale"])

    return {
        "axis": "scale of the standardized features",
        "levels": levels("scale", 1, 10, 1e3, 1e10, 1e20, 1e30),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(10, (), 1, rngs=rngs),
        "naive_loss": losses.mse,
        "optax_loss": losses.optax_mse,
        "robustops_loss": losses.ro_mse,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("standardize the features", UNIT, standardize=True),
        "metric": "r2",
        "optimizers": SGD,
        "scaling_removes_stress": UNIT,
    }


@scenario(14)
def outlier_targets():
    """Regression with outliers among the targets.

    Told: a few wild targets ruin a squared error. Measured: under Adam 2% of outliers of 10
    deviations already take most of the skill (0.45 to 0.06), larger ones make the predictions
    hundreds of times worse than the mean; squares leave float32 at 1e25, and the naive arm
    dies. Huber, the remedy, bounds each outlier's gradient. The scaler of the robustops arm
    counts targets beyond 30 robust sigmas as missing, and puts the median in their place; those
    of 10 deviations it leaves.
    """

    def data(seed: int, values: Values) -> Split:
        clean = standardized(split("diabetes", seed), targets=True)
        rng = np.random.default_rng([seed, 2])
        outlier = rng.random(clean.y.shape) < values["share"]
        wild = values["size"] * rng.normal(size=clean.y.shape)
        return clean._replace(y=np.where(outlier, wild, clean.y))

    pairs = ((0, 1), (0.02, 10), (0.02, 1e3), (0.1, 1e3), (0.1, 1e10), (0.1, 1e25))
    return {
        "axis": "share of outliers among the targets, their size in deviations",
        "levels": tuple(Level(f"{share(p)}, {s:g}", {"share": p, "size": s}) for p, s in pairs),
        "quick": (0, 3, 5),
        "data": data,
        "model": lambda rngs: Classifier(10, (16,), 1, rngs=rngs),
        "naive_loss": losses.mse,
        "optax_loss": losses.optax_mse,
        "robustops_loss": losses.ro_mse,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("take Huber", loss=losses.optax_huber),
        "metric": "r2",
        "optimizers": ADAM,
        "robustops_removes_stress": OUTLIERS,
    }


@scenario(15)
def reciprocal():
    """Features that are 1 / x, with x near 0 in some cells.

    Told: 1 / x gives inf. Measured: only at an x of exactly 0 (or a subnormal one), where the
    naive arm dies; reciprocals up to 1e37 leave Adam alive, and three quarters of the way to
    perfection, on the other features. Rows that are not finite can be dropped, but a standard
    scaler squares 1e37 elsewhere. The scaler of the robustops arm counts such cells as missing.
    """

    def data(seed: int, values: Values) -> Split:
        clean = _binary(seed)
        rng = np.random.default_rng([seed, 2])
        x = np.exp(-clean.x / 2)
        near = rng.random(x.shape) < 0.01
        x = np.where(near, values["smallest"], x)
        with np.errstate(divide="ignore"):
            return clean._replace(x=1 / x, x_test=np.exp(clean.x_test / 2))

    smallest = (1.0, 1e-3, 1e-10, 1e-30, 1e-37, 0.0)
    return {
        "axis": "x in one cell of a hundred",
        "levels": levels("smallest", *smallest),
        "quick": (0, 3, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.optax_bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy(
            "drop rows that are not finite, standardize", standardize=True, drop_bad_rows=True
        ),
        "metric": "accuracy",
        "optimizers": ADAM,
        "robustops_removes_stress": OUTLIERS,
    }


@scenario(16)
def nan_cells():
    """NaN and inf in single cells, all over the training data.

    Told: NaN in the data kills the run. Measured: at one bad cell in a thousand, since some row
    of nearly every batch has one; a scaler that meets an inf makes a whole column NaN. Dropping
    the bad rows works up to a few cells of a hundred: at 10% only one row of 24 is whole, at
    30% none. All levels are fair: the features are redundant, and at 60% each row still has a
    dozen of the 30.
    """

    def data(seed: int, values: Values) -> Split:
        clean = _binary(seed)
        rng = np.random.default_rng([seed, 2])
        bad = rng.random(clean.x.shape) < values["share"]
        what = rng.choice([np.nan, np.inf, -np.inf], clean.x.shape, p=[0.8, 0.1, 0.1])
        return clean._replace(x=np.where(bad, what, clean.x))

    return {
        "axis": "share of bad cells",
        "levels": tuple(Level(share(p), {"share": p}) for p in (0, 1e-3, 0.01, 0.1, 0.3, 0.6)),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.optax_bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("drop the bad rows", standardize=True, drop_bad_rows=True),
        "metric": "accuracy",
        "optimizers": ADAM,
        "robustops_removes_stress": "cells that are not finite count as missing",
    }


@scenario(17)
def label_values():
    """Binary labels coded as 2 and -1, or as anything, among 1 and 0.

    Told: a label of 2 makes the cross-entropy negative, and the loss runs away. Measured: from
    probabilities, yes: with a label outside [0, 1] the loss falls without bound as p goes to 0
    or 1, and the naive arm is dead at 60% of such labels, or at 5% with the value 100. From
    logits every arm lives, but such rows pull without end: larger values weigh more than all
    others, and most arms fall short of the control. The labels' side is right, so all levels
    are fair.
    """

    def data(seed: int, values: Values) -> Split:
        clean = _binary(seed)
        rng = np.random.default_rng([seed, 2])
        wrong = rng.random(clean.y.shape) < values["share"]
        coded = np.where(clean.y == 1, values["label"], 1 - values["label"])
        return clean._replace(y=np.where(wrong, coded, clean.y).astype(np.int32))

    pairs = ((0, 2), (0.05, 2), (0.6, 2), (0.05, 100), (0.05, 10**6), (0.05, LARGEST_LABEL))
    return {
        "axis": "share of labels that are not 0 or 1, label of class 1",
        "levels": tuple(
            Level(f"{share(p)}, {label:.3g}", {"share": p, "label": label}) for p, label in pairs
        ),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("compute the loss from logits", loss=losses.optax_bce),
        "metric": "accuracy",
        "optimizers": ADAM,
    }


@scenario(18)
def random_labels():
    """Labels replaced by random classes.

    Told: noise in the labels is a robustness problem. Measured: nothing ever becomes NaN; the
    net fits the noise, and falls behind from 20% on, in every arm. No guard can know which
    label is wrong. The last level has no information left and is not counted.
    """

    def data(seed: int, values: Values) -> Split:
        clean = standardized(split("digits", seed))
        rng = np.random.default_rng([seed, 2])
        wrong = rng.random(clean.y.shape) < values["share"]
        y = np.where(wrong, rng.integers(0, 10, clean.y.shape), clean.y)
        return clean._replace(y=y.astype(np.int32))

    nothing = {"fair": False, "note": "no label says anything about its row"}
    return {
        "axis": "share of random labels",
        "levels": (
            *(Level(share(p), {"share": p}) for p in (0, 0.2, 0.4, 0.6, 0.8)),
            Level("100%", {"share": 1}, **nothing),
        ),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(64, (64,), 10, rngs=rngs),
        "naive_loss": losses.optax_cross_entropy,
        "optax_loss": losses.optax_cross_entropy,
        "robustops_loss": losses.ro_cross_entropy,
        "control_loss": losses.optax_cross_entropy,
        "remedy": Remedy("smooth the labels by 0.1", loss=losses.smoothed_cross_entropy(0.1)),
        "metric": "accuracy",
        "optimizers": ADAM,
    }


@scenario(19)
def constant_columns():
    """Columns that are constant, in a net that divides by the batch's deviation.

    Told: a column without variance gives 0 / 0. Measured: one such column kills the naive arm,
    and scaling does not help, since the net divides by the batch's own deviation. The remedy is
    the eps of every batch normalization; `safe_std` and `safe_div` need none, and give such a
    column the value 0.
    """

    def data(seed: int, values: Values) -> Split:
        columns = np.random.default_rng([seed, 2]).permutation(30)[: values["columns"]]
        constant = np.isin(np.arange(30), columns)
        return _both(_binary(seed), lambda x: np.where(constant, 3.0, x))

    return {
        "axis": "constant columns of 30",
        "levels": levels("columns", 0, 1, 5, 15, 25),
        "quick": (0, 1, 4),
        "data": data,
        "model": lambda rngs: _Normalized(_by_deviation, rngs),
        "robustops_model": lambda rngs: _Normalized(_by_safe_deviation, rngs),
        "naive_loss": losses.optax_bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy(
            "add 1e-5 to the variance", model=lambda rngs: _Normalized(_by_deviation_with_eps, rngs)
        ),
        "metric": "accuracy",
        "optimizers": ADAM,
    }


@scenario(20)
def variance_cancellation():
    """A net that normalizes by E[x^2] - E[x]^2, on data far from 0.

    Told: the one-pass variance loses its digits. Measured: from an offset of 1e3 deviations
    E[x^2] - E[x]^2 is negative for some batch and column, its root NaN, and the naive arm dead.
    Two passes, the remedy, and `safe_std` are right as far as the data are. Scaling first
    removes the offset.
    """

    def data(seed: int, values: Values) -> Split:
        return _both(_binary(seed), lambda x: x + values["offset"])

    lost = {
        "fair": False,
        "note": "float32 numbers near 1e8 are 8 apart: the data are rounded away",
    }
    return {
        "axis": "offset in deviations",
        "levels": (
            *levels("offset", 0, 1e2, 1e3, 1e4, 1e6),
            Level("1e+08", {"offset": 1e8}, **lost),
        ),
        "quick": (0, 3, 5),
        "data": data,
        "model": lambda rngs: _Normalized(_by_fast_variance, rngs),
        "robustops_model": lambda rngs: _Normalized(_by_safe_deviation, rngs),
        "naive_loss": losses.optax_bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy(
            "two passes, and 1e-5 added to the variance",
            model=lambda rngs: _Normalized(_by_deviation_with_eps, rngs),
        ),
        "metric": "accuracy",
        "optimizers": ADAM,
        "scaling_removes_stress": OFFSET,
    }
