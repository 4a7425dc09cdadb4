"""Losses of a ranked list, and the smoothing of labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import broadcast_mask, cast, normalize_axes, promote
from ..ops import safe_div, safe_mean
from ..ops._reduce import count_of, keep
from ._common import Axis, floating, product, saturated_sum
from ._cross_entropy import soft_cross_entropy, soft_labels


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable | None = jnp.mean,
) -> jax.Array:
    """Softmax cross-entropy between the scores of a list and the relevance of its items.

    sum_i w_i y_i (logsumexp(s) - s_i) along the last axis, then `reduce_fn` over the lists.

    Edges: as `softmax_cross_entropy`; a list without valid items has the loss 0 and does not count
    in a mean, and a mean of none is 0.

    Args:
      logits: scores s, shape `[..., list_size]`.
      labels: relevances y, of that shape; they take the dtype of the logits.
      where: boolean, True for valid items; of the shape of the logits.
      weights: weights w of the items; broadcasts.
      reduce_fn: `jax.numpy.mean`, `jax.numpy.sum`, another function that takes `where=`, or None
        for the loss of each list. The first two cannot overflow on the way.

    Returns:
      A scalar, or the shape of `logits` without the last axis.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: logits that are not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.ranking_softmax_loss`.
    """
    name = "ranking_softmax_loss"
    (s,) = floating(name, logits=logits)
    y = cast(jnp.asarray(labels), s.dtype)
    mask = broadcast_mask(name, where, s.shape)
    y = keep(y, mask)  # before the weights: what is masked may be NaN in either
    if weights is not None:
        y = product(*promote(name, y, weights))
    arrays, axes = soft_labels(name, s, y, -1, mask)
    loss = soft_cross_entropy(*arrays, axis=axes)
    lists = None if mask is None else jnp.any(arrays[2], axis=-1)
    if reduce_fn is None:
        return loss
    if reduce_fn is jnp.mean:
        return safe_mean(loss, where=lists)
    if reduce_fn is jnp.sum:
        return saturated_sum(loss, tuple(range(loss.ndim)), lists)
    return reduce_fn(loss, where=lists)


def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Label smoothing: a share `alpha` of each distribution is spread over its classes.

    (1 - alpha) z + alpha / n, n the number of classes that take part.

    Edges: where no class takes part nothing is added.

    Args:
      labels: one-hot or soft labels, shape `[..., num_classes]`.
      alpha: share in [0, 1], a number or an array that broadcasts.
      axis: axis or axes of the classes; None means all.
      where: boolean, True takes part; broadcast to `labels`.

    Returns:
      Smoothed labels, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: labels that are not real and floating, or a `where` that is not boolean.

    Reference: Müller et al. 2019 (arXiv:1906.02629); signature of `optax.losses.smooth_labels`.
    """
    name = "smooth_labels"
    z, alpha = promote(name, *floating(name, labels=labels), alpha)
    mask = broadcast_mask(name, where, z.shape)
    n = count_of(z, mask, normalize_axes(name, axis, z.ndim))
    return product(1 - alpha, z) + safe_div(alpha, n)
