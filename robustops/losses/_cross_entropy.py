"""Cross-entropies over classes: from logits with soft or integer labels, and from probabilities."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._apart import apart, constants
from .._numerics import (
    cast,
    largest,
    narrow,
    normalize_axes,
    promote,
    widen,
)
from .._spec import total
from .._zmul import zmul
from ..ops import log_softmax, safe_log
from ..ops._reduce import keep, max_of, sum_of
from ..ops._softmax import (
    at_least,
    exp_less,
    log_of_sum,
    row,
    rule_softmax,
    shift,
    wide_softmax,
)
from ._common import Axis, class_axes, class_indices, floating, product, saturated_sum

inf = math.inf


def _rule_soft_slope(out, arrays, tangents, *, axis):
    x, z, *mask = arrays
    t, u = tangents[:2]
    slope = jnp.zeros_like(widen(out))
    if t is not None:
        weight = sum_of(widen(keep(z, mask[0] if mask else None)), axis)
        p_dot = rule_softmax(slope, (widen(x), *mask), (widen(t),), axis=axis)
        slope += zmul(weight, p_dot)
    if u is not None:
        u = widen(keep(u, mask[0] if mask else None))
        slope += zmul(wide_softmax((x, *mask), axis), sum_of(u, axis)) - u
    return cast(slope, out.dtype)


@total(jvp=_rule_soft_slope)
def soft_slope(x, z, mask=None, *, axis):
    """sum(z) softmax(x) - z, right where one class holds nearly all; 0 in a row of only -inf."""
    w = widen(keep(z, mask))
    v = widen(keep(x, mask, -inf))
    m = shift(v, axis)
    e = exp_less(v, m)
    s = at_least(sum_of(e, axis), 0.5)
    ratio = jnp.where(s < 1, 0, sum_of(w, axis)) / s
    # These sum to 0, so that of a class with p > 1/2 is formed from the others.
    lone = (v >= m) & (s < 2)
    others = jnp.where(lone, 0, e * ratio - w)
    slope = jnp.where(lone, -row(sum_of(others, axis)), others)
    slope, most = jnp.where(s < 1, 0, slope), largest(x.dtype)
    slope = jnp.where(slope > most, most, jnp.where(slope < -most, -most, slope))
    return keep(cast(slope, x.dtype), mask)


def _rule_soft(out, arrays, tangents, *, axis):
    x, z, *mask = arrays
    t, u = tangents[:2]
    parts = jnp.zeros_like(x)
    if t is not None:
        parts += zmul(soft_slope(x, z, *mask, axis=axis), t)
    if u is not None:
        gap = -jnp.maximum(log_softmax(x, axis, *mask), -largest(x.dtype))
        parts += zmul(keep(gap, mask[0] if mask else None), u)
    return jnp.sum(widen(parts), axis=axis).astype(out.dtype)


@total(jvp=_rule_soft)
def soft_cross_entropy(x, z, mask=None, *, axis):
    """sum_j z_j (logsumexp(x) - x_j), each summand formed without cancellation."""
    w = widen(keep(z, mask))
    v = widen(keep(x, mask, -inf))
    m = shift(v, axis)
    log, big = log_of_sum(v, m, axis), largest(v.dtype)
    n = 2.0 ** math.ceil(math.log2(max(math.prod(x.shape[a] for a in axis), 1)))

    def summed(scale):
        fall = m - v
        gap = jnp.where(fall < 0, 0, fall) + log
        term = w * scale * jnp.where(gap > big, big, gap)
        term = jnp.where(term > big, big, jnp.where(term < -big, -big, term))
        # A label on -inf costs inf, the limit; 0 absorbs.
        return sum_of(jnp.where(v == -inf, jnp.where(w == 0, 0, w * inf), term), axis)

    def again(y):
        # A sum that overflows is formed again over n: opposite overflows would meet as inf - inf.
        over = summed(1 / n)
        far = jnp.where(jnp.isinf(over), over, narrow(over * n, v.dtype))
        return jnp.where((abs(y) < big / 4) & (abs(over) < big / n / 4), y, far)

    def in_one_pass():
        nought, far, more = constants(v, 0, big, big)
        # The second is 0 for a label 0, so that it absorbs an infinite gap, and else inf.
        gap = jnp.minimum(jnp.maximum(apart(m) - v, nought) + log, abs(w) * far * more)
        y = sum_of(w * gap, axis)
        y = jnp.where(jnp.isnan(log), log, y)  # a minimum may lose a NaN, see `nan_of`
        return lax.cond(jnp.all(abs(y) < big / 4), lambda y: y, again, y)

    # On accelerators a branch costs more than the second sum, which rides along in one kernel.
    y = lax.platform_dependent(cpu=in_one_pass, default=lambda: again(summed(1)))
    lost = jnp.isinf(y) & (max_of(v, axis) > -inf)
    return jnp.squeeze(jnp.where(lost, cast(y, x.dtype), narrow(y, x.dtype)), axis)


def soft_labels(
    name: str, logits: ArrayLike, labels: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Return the arrays (logits, labels, and the mask if there is one) and the class axes."""
    (x,) = floating(name, logits=logits)
    axes, mask = class_axes(name, x, axis, where)
    x, z = promote(name, x, labels)
    if z.ndim > x.ndim:  # axes count from the end, as they do for the logits
        axes = tuple(a - x.ndim for a in axes)
        axes = normalize_axes(name, axes, z.ndim)
    arrays = [*jnp.broadcast_arrays(x, z)]
    if mask is not None:
        arrays.append(jnp.broadcast_to(mask, arrays[0].shape))
    return arrays, axes


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy between soft labels and the softmax of logits, accurate when confident.

    sum_j z_j (logsumexp(x) - x_j) along `axis`; the derivative by x_j is p_j sum(z) - z_j. At a
    margin of 20 loss and gradient are 2e-9, where subtracting logsumexp gives 0.

    Edges: a zero label absorbs, so logits of -inf where the label is 0 are right in value and
    gradient; a positive label on a logit of -inf gives inf, the limit, with finite derivatives; a
    row of only -inf gives the largest finite number with derivative 0 (0 if its labels are 0); an
    example without classes, or masked as a whole, gives 0. An infinite logit counts as the largest
    finite number. NaN gives NaN. Labels need not sum to 1; negative ones continue the formula.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: target distributions; `logits` and `labels` broadcast.
      axis: axis or axes of the classes; None means all.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: logits that are not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.softmax_cross_entropy`.
    """
    arrays, axes = soft_labels("softmax_cross_entropy", logits, labels, axis, where)
    return soft_cross_entropy(*arrays, axis=axes)


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy in which a zero label absorbs a logit of -inf, as `softmax_cross_entropy` does.

    The two are one function here; the name is kept for code written for Optax, whose `safe_`
    variant has a NaN tangent in forward mode.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: target distributions; `logits` and `labels` broadcast.

    Returns:
      Loss per example, shape `[...]`.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: logits that are not real and floating.

    Reference: same signature as `optax.losses.safe_softmax_cross_entropy`.
    """
    arrays, axes = soft_labels("safe_softmax_cross_entropy", logits, labels, -1, None)
    return soft_cross_entropy(*arrays, axis=axes)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | Sequence[int] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy between class indices and the softmax of logits, accurate when confident.

    logsumexp(x) - x_y along `axis`. At a margin of 20 loss and gradient are 2e-9, where
    subtracting gives 0.

    Edges: a label on a logit of -inf gives inf, the limit, with finite derivatives; in a row of
    only -inf, or on a masked class, it gives the largest finite number with derivative 0; an
    example masked as a whole gives 0; a label outside [0, num_classes) gives NaN, since hiding it
    would train on another class. NaN logits give NaN.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: integer class indices, the shape of `logits` without `axis`.
      axis: axis of the classes, or several, which are then numbered in row-major order.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range or None, no classes, or shapes that do not agree.
      TypeError: logits that are not real and floating, labels that are not integers, or a `where`
        that is not boolean.

    Reference: same signature as `optax.losses.softmax_cross_entropy_with_integer_labels`.
    """
    name = "softmax_cross_entropy_with_integer_labels"
    if axis is None:
        raise ValueError(f"{name}: axis must be an int or a tuple of ints, got None.")
    (x,) = floating(name, logits=logits)
    axes, mask = class_axes(name, x, axis, where)
    batch = tuple(a for a in range(x.ndim) if a not in axes)
    order = tuple(a % x.ndim for a in axis) if isinstance(axis, Sequence) else axes
    shape = tuple(x.shape[a] for a in batch)
    classes = math.prod(x.shape[a] for a in axes)
    arrays = [
        v.transpose(batch + order).reshape(*shape, classes)
        for v in ([x] if mask is None else [x, mask])
    ]
    chosen, inside = class_indices(name, labels, shape, classes)
    loss = jnp.where(inside, _class_cross_entropy(arrays[0], chosen, *arrays[1:]), math.nan)
    if mask is None:
        return loss
    named = jnp.take_along_axis(arrays[1], chosen, axis=-1)[..., 0]
    loss = jnp.where(named | ~inside, loss, largest(loss.dtype))
    return jnp.where(jnp.any(arrays[1], -1), loss, 0)


def _class_terms(x, label, mask):
    """Return m - x_y, exp(x_y - m), those of the other j with their sum, and where j = y."""
    z = widen(keep(x, mask, -inf))
    m = shift(z, (-1,))
    here = jnp.arange(x.shape[-1], dtype=label.dtype) == label
    e = jnp.where(here, 0, exp_less(z, m))
    chosen = jnp.take_along_axis(z, label, axis=-1)
    others = at_least(sum_of(e, -1), 0)
    return m - jnp.minimum(chosen, m), exp_less(chosen, m), e, others, here


def _rule_class_slope(out, arrays, tangents):
    x, _, *mask = arrays
    return rule_softmax(out, (x, *mask), tangents, axis=(-1,))


@total(jvp=_rule_class_slope)
def _class_slope(x, label, mask=None):
    """softmax(x) less 1 at the label, there as minus the sum of the other weights."""
    _, e_label, e, others, here = _class_terms(x, label, mask)
    # At a label on -inf the others sum to 1; in a row of only -inf everything is 0.
    p = jnp.where(here, -others, e) / at_least(others + e_label, 0.5)
    return cast(keep(p, mask), x.dtype)


def _rule_class_cross_entropy(out, arrays, tangents):
    return jnp.sum(zmul(_class_slope(*arrays), tangents[0]), axis=-1)


@total(jvp=_rule_class_cross_entropy)
def _class_cross_entropy(x, label, mask=None):
    """(m - x_y) + log(sum_j exp(x_j - m)), from the sum over j != y where y is the largest."""
    gap, e_label, _, others, _ = _class_terms(x, label, mask)
    s = others + e_label
    # Where y is not the largest the other terms sum to at least 1: nothing cancels.
    y = jnp.where(gap == 0, jnp.log1p(others), gap + jnp.log(at_least(s, 0.5)))
    x_label = jnp.take_along_axis(x, label, axis=-1)
    lost = (x_label == -inf) & (s > 0)
    return jnp.where(lost, cast(y, x.dtype), narrow(y, x.dtype))[..., 0]


def categorical_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy between soft labels and probabilities, exact where they agree at 0 and 1.

    -sum_j z_j log(p_j) along `axis`, with p taken as it is, not divided by its sum. Below the
    smallest normal number the logarithm goes on along its tangent line, so a class that is wrongly
    held for impossible has a finite loss and a gradient that pushes it back.

    Edges (float32): p_y = 1 gives 0; p_y = 0 gives 88.3 with gradient -8.5e37: clip it, or use
    `softmax_cross_entropy`, which keeps the digits that a probability has lost. A zero label
    absorbs. NaN gives NaN.

    Args:
      probabilities: predictions in [0, 1], shape `[..., num_classes]`.
      labels: target distributions; the shapes broadcast.
      axis: axis or axes of the classes; None means all.
      where: boolean, True takes part; of the shape of `probabilities`, or without the class axis.

    Returns:
      Loss per example, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: probabilities that are not real and floating, or a `where` that is not boolean.
    """
    name = "categorical_cross_entropy"
    (p, z, *mask), axes = soft_labels(name, probabilities, labels, axis, where)
    terms = product(z, -safe_log(p, extend="linear"))
    return saturated_sum(terms, axes, *mask)
