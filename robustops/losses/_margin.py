"""Losses that are 0 from a margin on: hinge, perceptron and sparsemax, binary and multi-class."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import (
    cast,
    infinite_with,
    largest,
    nan_of,
    narrow,
    promote,
    widen,
    within,
)
from .._spec import total
from .._zmul import zmul
from ..ops._reduce import sum_of
from ..ops._similarity import difference
from ._common import class_indices


def _slope_below(out, f, y, *, margin):
    short = margin - widen(f) * widen(y)
    return jnp.where(short < 0, 0, jnp.where(short == 0, -y / 2, -y))


@total(_slope_below, lambda out, f, y, *, margin: _slope_below(out, y, f, margin=margin))
def _below(f, y, *, margin):
    """max(margin - y f, 0), saturated."""
    dtype = jnp.result_type(f, y)
    f, y = jnp.broadcast_arrays(widen(f), widen(y))
    nought, most, start = constants(f, 0, largest(dtype), margin)
    # Both held: a score of 0 agrees with no target, an infinite one either.
    short = start - within(f, largest(f.dtype)) * within(y, largest(f.dtype))
    short = infinite_with(jnp.minimum(jnp.maximum(short, nought), most), f)
    return cast(short + nan_of(f) + nan_of(y), dtype)


def hinge_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Hinge loss max(0, 1 - y f) of binary classification.

    The derivative by f is -y where y f < 1, half of that at the kink, as in Optax.

    Edges: overflow saturates; inf gives 0 or inf; NaN gives NaN.

    Args:
      predictor_outputs: scores f of any shape; integers become floats.
      targets: -1 or 1; other numbers scale the margin. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: same signature as `optax.losses.hinge_loss`.
    """
    return _below(*promote("hinge_loss", predictor_outputs, targets), margin=1)


def perceptron_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Perceptron loss max(0, -y f) of binary classification.

    The derivative by f is -y where y f < 0, half of that at the kink, as in Optax.

    Edges: overflow saturates; inf gives 0 or inf; NaN gives NaN.

    Args:
      predictor_outputs: scores f of any shape; integers become floats.
      targets: -1 or 1, of the same shape.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: complex input.

    Reference: same signature as `optax.losses.perceptron_loss`.
    """
    name = "perceptron_loss"
    f, y = promote(name, predictor_outputs, targets)
    if f.shape != y.shape:
        raise ValueError(
            f"{name}: predictor_outputs have shape {f.shape} and targets {y.shape}; make them "
            "equal, with targets[:, None] or predictor_outputs[:, 0]."
        )
    return _below(f, y, margin=0)


def _slope_sparse(out, x, z):
    s = jnp.where(z != 0, -x, x)
    slope = jnp.clip(s, -1, 1) / 2 + 0.5
    return jnp.where(z != 0, -slope, slope)


@total(_slope_sparse, lambda out, x, z: jnp.zeros_like(out))
def _sparse_plus(x, z):
    """`sparsemax_loss` of a label that is 0 or not."""
    dtype = x.dtype
    x, z = jnp.broadcast_arrays(widen(x), widen(z))
    *ones, two, far, nought, quarter = constants(x, 1, 1, 1, 1, 2, largest(x.dtype), 0, 0.25)
    s = x * (ones[0] - two * jnp.minimum(abs(z) * far, ones[1]))
    c = within(s, 1) + ones[2]
    return cast(quarter * c * c + jnp.maximum(s - ones[3], nought) + nan_of(x), dtype)


def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Sparsemax loss of binary classification, 0 from a margin of 1 on.

    With s = -x for a true label and x for a false one: 0 for s <= -1, (s + 1)^2 / 4 between, s for
    s >= 1. The derivative by s is (s + 1) / 2, clipped to [0, 1].

    Edges: inf gives 0 or inf; NaN gives NaN.

    Args:
      logits: scores x of any shape; integers become floats.
      labels: 0 or 1, or booleans. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and the dtype of the logits.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: Blondel et al. 2020 (arXiv:1901.02324), section 4.4; signature of
    `optax.losses.sparsemax_loss`.
    """
    name = "sparsemax_loss"
    (x,) = promote(name, logits)
    promote(name, logits, labels)  # the shapes
    labels = jnp.asarray(labels)
    return _sparse_plus(x, labels if labels.dtype == x.dtype else cast(labels != 0, x.dtype))


def _labelled(name: str, scores: ArrayLike, labels: ArrayLike):
    """Return the scores, the label's index with one axis more, and where it names a class."""
    (x,) = promote(name, scores)
    if x.ndim == 0:
        raise ValueError(f"{name}: scores need an axis of classes, got a scalar.")
    return x, *class_indices(name, labels, x.shape[:-1], x.shape[-1])


def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Hinge loss of several classes: the largest violation of a margin of 1.

    max_j (s_j - s_y + [j != y]), formed from the differences, so that nothing cancels.

    Edges: overflow saturates; a label outside [0, num_classes) gives NaN; NaN gives NaN.

    Args:
      scores: shape `[..., num_classes]`; integers become floats.
      labels: integer class indices, shape `[...]`.

    Returns:
      Loss per example, shape `[...]`.

    Raises:
      ValueError: no classes, or shapes that do not agree.
      TypeError: complex scores, or labels that are not integers.

    Reference: same signature as `optax.losses.multiclass_hinge_loss`.
    """
    x, chosen, inside = _labelled("multiclass_hinge_loss", scores, labels)
    gap = difference(x, jnp.take_along_axis(x, chosen, axis=-1))
    here = jnp.arange(x.shape[-1]) == chosen
    margin = jnp.where(here, 0, difference(gap, -jnp.ones_like(gap)))
    return jnp.where(inside, jnp.max(margin, axis=-1), math.nan)


def multiclass_perceptron_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Perceptron loss of several classes: how far the label is below the best score.

    max_j (s_j - s_y).

    Edges: overflow saturates; a label outside [0, num_classes) gives NaN; NaN gives NaN.

    Args:
      scores: shape `[..., num_classes]`; integers become floats.
      labels: integer class indices, shape `[...]`.

    Returns:
      Loss per example, shape `[...]`.

    Raises:
      ValueError: no classes, or shapes that do not agree.
      TypeError: complex scores, or labels that are not integers.

    Reference: Collins 2002, doi:10.3115/1118693.1118694; signature of
    `optax.losses.multiclass_perceptron_loss`.
    """
    x, chosen, inside = _labelled("multiclass_perceptron_loss", scores, labels)
    gap = difference(x, jnp.take_along_axis(x, chosen, axis=-1))
    return jnp.where(inside, jnp.max(gap, axis=-1), math.nan)


def _threshold(x):
    """Return x less its maximum, and the t for which the sum of max(x - t, 0) is 1."""
    # What is more than 1 below the maximum does not count.
    d = jnp.maximum(difference(x, jnp.max(x, axis=-1, keepdims=True)), -2)
    down = -jnp.sort(-d, axis=-1)
    count = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    levels = (jnp.cumsum(down, axis=-1) - 1) / count
    size = jnp.sum(down > levels, axis=-1, keepdims=True)
    return d, jnp.take_along_axis(levels, jnp.maximum(size - 1, 0), axis=-1)


def _rule_sparsemax(out, arrays, tangents):
    # The mean of the tangents over the support is removed there.
    on = out > 0
    t = jnp.where(on, tangents[0], 0)
    return jnp.where(on, t - sum_of(t, -1) / jnp.maximum(sum_of(on, -1), 1).astype(t.dtype), 0)


@total(jvp=_rule_sparsemax)
def _sparsemax(x):
    d, t = _threshold(widen(x))
    return cast(jnp.maximum(d - t, 0), x.dtype)


def _rule_multiclass_sparsemax(out, arrays, tangents):
    x, here = arrays
    return jnp.sum(zmul(_slope_to(_sparsemax(x), here), tangents[0]), axis=-1)


def _slope_to(p, here):
    """p less the one-hot label, there as minus the sum of the other weights."""
    return jnp.where(here, -sum_of(jnp.where(here, 0, p), -1), p)


@total(jvp=_rule_multiclass_sparsemax)
def _multiclass_sparsemax(x, here):
    # |y - p|^2 / 2 + max(t - x_y, 0): nothing is subtracted from 1.
    z = widen(x)
    d, t = _threshold(z)
    apart = _slope_to(jnp.maximum(d - t, 0), here)
    top = jnp.max(z, axis=-1, keepdims=True)
    below = difference(jnp.broadcast_to(top, z.shape), z) + t
    y = jnp.sum(apart * apart, axis=-1) / 2
    return narrow(y + jnp.sum(jnp.where(here, jnp.maximum(below, 0), 0), axis=-1), x.dtype)


def multiclass_sparsemax_loss(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Sparsemax loss of several classes, 0 from a margin of 1 on.

    |y - p|^2 / 2 + max(t - s_y, 0), with p = max(s - t, 0) the projection of the scores onto the
    simplex and y the one-hot label; the derivative is p - y. Both summands are positive, so that a
    small loss keeps its digits.

    Edges: overflow saturates; a label outside [0, num_classes) gives NaN; NaN gives NaN.

    Args:
      scores: shape `[..., num_classes]`; integers become floats.
      labels: integer class indices, shape `[...]`.

    Returns:
      Loss per example, shape `[...]`.

    Raises:
      ValueError: no classes, or shapes that do not agree.
      TypeError: complex scores, or labels that are not integers.

    Reference: Martins and Astudillo 2016 (arXiv:1602.02068); signature of
    `optax.losses.multiclass_sparsemax_loss`.
    """
    x, chosen, inside = _labelled("multiclass_sparsemax_loss", scores, labels)
    here = jnp.arange(x.shape[-1]) == chosen
    return jnp.where(inside, _multiclass_sparsemax(x, here), math.nan)
