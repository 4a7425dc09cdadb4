"""Cross-entropies: from logits, and from probabilities where there are no logits."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._numerics import (
    broadcast_mask,
    cast,
    largest,
    narrow,
    normalize_axes,
    promote,
    saturated,
    widen,
)
from .._spec import total
from .._zmul import zmul
from ..ops import log_softmax, safe_log, safe_log1p, sigmoid
from ..ops._reduce import settle
from ..ops._softmax import rule_softmax, shifted_exp


@total(
    # sigmoid(x) - z without a difference where z is 0 or 1
    lambda out, x, z: zmul(1 - z, sigmoid(x)) - zmul(z, sigmoid(-x)),
    lambda out, x, z: -jnp.broadcast_to(x, out.shape),
)
def _sigmoid_binary_cross_entropy(x, z):
    dtype = jnp.result_type(x, z)
    x, z = jnp.broadcast_arrays(widen(x), widen(z))
    # One of the two last terms is 0 for a hard label; 0 times an infinite logit is 0 too.
    y = jnp.log1p(jnp.exp(-abs(x))) + zmul(z, jnp.maximum(-x, 0)) + zmul(1 - z, jnp.maximum(x, 0))
    return jnp.where(jnp.isinf(x), cast(y, dtype), narrow(y, dtype))


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary cross-entropy from logits, right to a few ulp for confident predictions too.

    -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x)), formed as
    log1p(exp(-|x|)) + z max(-x, 0) + (1 - z) max(x, 0). The derivative by x is
    (1 - z) sigmoid(x) - z sigmoid(-x), by z it is -x.

    Edges: an infinite logit that agrees with its hard label gives 0, one that does not gives inf.
    Labels outside [0, 1] continue the formula, which is linear in them; the loss is then unbounded
    below. NaN gives NaN.

    Args:
      logits: unnormalised log-odds, of any shape.
      labels: target probabilities in [0, 1]; booleans and integers become floats. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: same signature as `optax.losses.sigmoid_binary_cross_entropy`.
    """
    return _sigmoid_binary_cross_entropy(*promote("sigmoid_binary_cross_entropy", logits, labels))


def binary_cross_entropy(probabilities: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary cross-entropy from probabilities, exact at 0 and 1 where the label agrees.

    -z log(p) - (1 - z) log(1 - p). Where it would be infinite both logarithms go on along their
    tangent lines, log(p) below the smallest normal number and log(1 - p) beside 1, so a
    prediction that is wrong at 0 or 1 has a finite loss and a gradient that pushes it back.

    Edges (float32): p = z in {0, 1} gives 0; p = 0, z = 1 gives 88.3 with gradient -8.5e37; p = 1,
    z = 0 gives 17.6 with gradient 1.7e7; p outside [0, 1] goes on along the tangents and saturates;
    NaN gives NaN. A gradient of 8.5e37 needs a clip: where there are logits use
    `sigmoid_binary_cross_entropy`, which is better behaved and more accurate.

    Args:
      probabilities: predictions in [0, 1], of any shape.
      labels: target probabilities in [0, 1]; outside, the loss is unbounded below. Booleans and
        integers become floats. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    p, z = promote("binary_cross_entropy", probabilities, labels)
    log_p = safe_log(p, extend="linear")
    log_q = safe_log1p(-p, extend="linear")
    return narrow(-zmul(z, log_p) - zmul(1 - z, log_q), log_p.dtype)


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy between soft labels and the softmax of logits, accurate when confident.

    -sum_j z_j log softmax(x)_j along `axis`; the derivative by x_j is p_j sum(z) - z_j. At a margin
    of 20 loss and gradient are 2e-9, where subtracting logsumexp gives 0.

    Edges: a zero label absorbs, so logits of -inf where the label is 0 are right in value and
    gradient; a positive label on a logit of -inf gives the largest finite number; an
    example masked as a whole gives 0. NaN gives NaN.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: target distributions; `logits` and `labels` broadcast.
      axis: axis or axes of the classes.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range, no classes, or shapes that do not broadcast.
      TypeError: complex input, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.softmax_cross_entropy`.
    """
    name = "softmax_cross_entropy"
    x, z = jnp.broadcast_arrays(*promote(name, logits, labels))
    axes = normalize_axes(name, axis, x.ndim)
    _check_classes(name, x, axes)
    mask = _class_mask(name, where, x, axes)
    lp = log_softmax(x, axes, mask)
    terms = zmul(z, jnp.maximum(lp, -largest(lp.dtype)))
    if mask is not None:
        terms = jnp.where(mask, terms, 0)
    return narrow(-jnp.sum(widen(terms), axis=axes), lp.dtype)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | Sequence[int] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cross-entropy between class indices and the softmax of logits, accurate when confident.

    -log softmax(x)_y along `axis`. At a margin of 20 loss and gradient are 2e-9, where subtracting
    logsumexp gives 0.

    Edges: an example masked as a whole gives 0; a label on a logit of -inf, or on a masked class,
    gives the largest finite number with derivative 0; a label outside [0, num_classes) gives NaN,
    since hiding it would train on another class. NaN logits give NaN.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: integer class indices, the shape of `logits` without `axis`.
      axis: axis of the classes, or several, which are then numbered in row-major order.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range, no classes, or shapes that do not agree.
      TypeError: complex logits, labels that are not integers, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.softmax_cross_entropy_with_integer_labels`.
    """
    name = "softmax_cross_entropy_with_integer_labels"
    (x,) = promote(name, logits)
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name}: labels must be integer class indices, got {labels.dtype}; "
            "for one-hot or soft labels use softmax_cross_entropy."
        )
    axes = normalize_axes(name, axis, x.ndim)
    _check_classes(name, x, axes)
    mask = _class_mask(name, where, x, axes)
    batch = tuple(a for a in range(x.ndim) if a not in axes)
    order = tuple(a % x.ndim for a in axis) if isinstance(axis, Sequence) else axes
    shape = tuple(x.shape[a] for a in batch)
    classes = math.prod(x.shape[a] for a in axes)
    arrays = [
        v.transpose(batch + order).reshape(*shape, classes)
        for v in ([x] if mask is None else [x, mask])
    ]
    try:
        labels = jnp.broadcast_to(labels, shape)
    except ValueError:
        raise ValueError(
            f"{name}: labels have shape {labels.shape}, but logits of shape {x.shape} with "
            f"axis={axis} need {shape}."
        ) from None
    # An int8 label must not be compared with a number of classes that int8 does not hold.
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    inside = (labels >= 0) & (labels < classes)
    chosen = jnp.where(inside, labels, 0)[..., None]
    loss = jnp.where(inside, _class_cross_entropy(arrays[0], chosen, *arrays[1:]), math.nan)
    return loss if mask is None else jnp.where(jnp.any(arrays[1], -1), loss, 0)


def _class_terms(x, label, mask):
    """Return m - x_y, exp(x_y - m), the sum of the other exp(x_j - m), those, and where j = y."""
    z = widen(x if mask is None else jnp.where(mask, x, -math.inf))
    z = jnp.minimum(z, largest(z.dtype))  # as shifted_exp does
    m, e = shifted_exp(z, (-1,))
    here = lax.broadcasted_iota(label.dtype, x.shape, x.ndim - 1) == label
    (others,) = settle(jnp.sum(jnp.where(here, 0, e), axis=-1, keepdims=True))
    gap = m - jnp.take_along_axis(z, label, axis=-1)
    return gap, jnp.take_along_axis(e, label, axis=-1), others, e, here


def _rule_class_slope(out, arrays, tangents):
    x, _, *mask = arrays
    return rule_softmax(out, (x, *mask), tangents, axis=(-1,))


@total(jvp=_rule_class_slope)
def _class_slope(x, label, mask=None):
    """softmax(x) less 1 at the label, there as minus the sum of the other weights."""
    _, e_label, others, e, here = _class_terms(x, label, mask)
    p = jnp.where(here, -others, e) / jnp.maximum(others + e_label, 0.5)
    return cast(p if mask is None else jnp.where(mask, p, 0), x.dtype)


def _rule_class_cross_entropy(out, arrays, tangents):
    slope = jnp.where(saturated(out)[..., None], 0, _class_slope(*arrays))
    return jnp.sum(zmul(slope, tangents[0]), axis=-1)


@total(jvp=_rule_class_cross_entropy)
def _class_cross_entropy(x, label, mask=None):
    """(m - x_y) + log(sum_j exp(x_j - m)), from the sum over j != y where y is the largest."""
    gap, e_label, others, _, _ = _class_terms(x, label, mask)
    # Where y is not the largest the other terms sum to at least 1: nothing cancels.
    y = jnp.where(gap == 0, jnp.log1p(others), gap + jnp.log(jnp.maximum(others + e_label, 0.5)))
    return narrow(y, x.dtype)[..., 0]


def _check_classes(name, x, axes):
    if math.prod(x.shape[a] for a in axes) == 0:
        raise ValueError(f"{name}: logits of shape {x.shape} have no classes along axis {axes}.")


def _class_mask(name, where, x, axes):
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.ndim == x.ndim - len(axes):
        where = jnp.expand_dims(where, axes)
    return broadcast_mask(name, where, x.shape)
