"""Losses of overlap between predicted and true regions: Dice in three forms."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from .._numerics import promote, widen
from ..ops import safe_div, safe_mean, safe_norm, sigmoid, softmax
from ..ops._similarity import difference
from ._common import misses, narrowed, product, saturated_sum


def _probabilities(name: str, predictions: jax.Array, apply: bool) -> tuple[jax.Array, jax.Array]:
    """Return probabilities p and 1 - p, each with its own digits."""
    x = widen(predictions)
    if apply:
        if x.shape[-1] == 1:
            return sigmoid(x), sigmoid(-x)
        p = softmax(x)
        return p, misses(p, (-1,))
    if not isinstance(x, Tracer):
        values = np.asarray(x)
        sums = values.sum(axis=-1)
        near = 1e-5 + 2 * x.shape[-1] * float(jnp.finfo(predictions.dtype).eps)
        one = x.shape[-1] == 1
        if one and not np.all((values >= 0) & (values <= 1) | np.isnan(values)):
            raise ValueError(f"{name}: without a sigmoid the predictions must lie in [0, 1].")
        if not one and np.any(abs(sums - 1) > near):
            raise ValueError(
                f"{name}: without a softmax the predictions must be valid probability "
                "distributions that sum to 1 along the last axis; found sums from "
                f"{sums.min():.6f} to {sums.max():.6f}. Pass logits, or divide by the sum."
            )
    return x, 1 - x


def _dice(
    name: str,
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None,
    smooth: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike,
    apply: bool,
    ignore_background: bool,
    axis: int | Sequence[int] | None,
) -> jax.Array:
    """The loss per example and class, in working precision."""
    x, t = promote(name, predictions, targets)
    if x.shape != t.shape or x.ndim == 0:
        raise ValueError(
            f"{name}: predictions and targets need one shape [..., num_classes], got {x.shape} and "
            f"{t.shape}."
        )
    p, q = _probabilities(name, x, apply)
    t = widen(t)
    axes = tuple(range(1, x.ndim - 1)) if axis is None else axis
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    both, extra, missed = (
        saturated_sum(product(a, b), axes) for a, b in ((p, t), (p, 1 - t), (q, t))
    )
    smooth, alpha, beta = (jnp.asarray(v, p.dtype) for v in (smooth, alpha, beta))
    # 1 - (both + smooth) / (both + smooth + wrong), with nothing subtracted
    wrong = difference(product(alpha, extra), -product(beta, missed))
    loss = safe_div(wrong, difference(wrong, -difference(both, -smooth)))
    if class_weights is not None:
        weights = jnp.asarray(class_weights, loss.dtype)
        if weights.ndim != 1:
            raise ValueError(
                f"{name}: class_weights need the shape [num_classes], got {weights.shape}."
            )
        loss = product(loss, weights)
    return loss[..., 1:] if ignore_background and x.shape[-1] > 1 else loss


def _reduced(name: str, loss: jax.Array, reduction: str) -> jax.Array:
    if reduction == "mean":
        return safe_mean(loss, axis=-1)
    return saturated_sum(loss, (loss.ndim - 1,)) if reduction == "sum" else loss


def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: str = "mean",
    ignore_background: bool = False,
    axis: int | Sequence[int] | None = None,
) -> jax.Array:
    """Soft Dice (Tversky) loss, right for nearly perfect overlap too.

    For each class 1 - (I + smooth) / (I + alpha F + beta M + smooth), with the sums I = sum p t,
    F = sum p (1 - t) and M = sum (1 - p) t; formed as (alpha F + beta M) / (I + alpha F + beta M +
    smooth), so nothing is subtracted from 1.

    Edges: smooth = 0 and a class that is neither there nor predicted gives 0; NaN gives NaN.

    Args:
      predictions: logits, shape `[batch, ..., num_classes]`; one class, or an axis of classes that
        only the targets have, means yes or no.
      targets: one-hot or soft regions of that shape.
      class_weights: weight of each class, shape `[num_classes]`.
      smooth: added to numerator and denominator.
      alpha: weight of what is predicted falsely.
      beta: weight of what is missed.
      apply_softmax: False if the predictions are probabilities already; concrete ones are checked
        to sum to 1 (one class: to lie in [0, 1]).
      reduction: over classes: "mean", "sum" or "none".
      ignore_background: leave out the first of several classes.
      axis: axis or axes to sum over; default all but the first and the last.

    Returns:
      Loss per example, or with "none" per example and class.

    Raises:
      ValueError: shapes that differ, an unknown `reduction`, or no probabilities where they are
        promised.
      TypeError: complex input.

    Reference: Milletari et al. 2016 (arXiv:1606.04797); signature of `optax.losses.dice_loss`.
    """
    name = "dice_loss"
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{name}: reduction must be "mean", "sum" or "none", got {reduction!r}.')
    x, t = jnp.asarray(predictions), jnp.asarray(targets)
    x = x[..., None] if x.ndim == t.ndim - 1 else x
    t = t[..., None] if t.ndim == x.ndim - 1 else t
    loss = _dice(
        name,
        x,
        t,
        class_weights=class_weights,
        smooth=smooth,
        alpha=alpha,
        beta=beta,
        apply=apply_softmax,
        ignore_background=ignore_background,
        axis=axis,
    )
    return narrowed(_reduced(name, loss, reduction), dtype=_dtype(name, x, t))


def _dtype(name, predictions, targets):
    return promote(name, predictions, targets)[0].dtype


def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
) -> jax.Array:
    """Dice loss with classes weighted by the inverse square of how often they occur.

    The mean over classes and examples of `dice_loss`, weighted by 1 / (n_c^2 + 1e-7), n_c the sum
    of the targets of class c, over the mean of these weights; right in float16 too.

    Edges: as `dice_loss`. A class that never occurs has by far the largest weight, as in Optax.

    Args:
      predictions: logits, shape `[batch, ..., num_classes]`.
      targets: one-hot or soft regions of that shape.
      smooth: added to numerator and denominator.
      apply_softmax: False if the predictions are probabilities already.
      ignore_background: leave out the first of several classes.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes that differ, or no probabilities where they are promised.
      TypeError: complex input.

    Reference: Sudre et al. 2017 (arXiv:1707.03237); signature of
    `optax.losses.multiclass_generalized_dice_loss`.
    """
    name = "multiclass_generalized_dice_loss"
    x, t = promote(name, predictions, targets)
    often = saturated_sum(widen(t), tuple(range(t.ndim - 1)))
    # sqrt(n^2 + 1e-7), whose square could overflow
    length = safe_norm(jnp.stack([often, jnp.full_like(often, 1e-7**0.5)]), axis=0)
    share = safe_div(jnp.min(length), length)
    weights = product(share, share)
    loss = _dice(
        name,
        x,
        t,
        class_weights=safe_div(weights, safe_mean(weights)),
        smooth=smooth,
        alpha=0.5,
        beta=0.5,
        apply=apply_softmax,
        ignore_background=ignore_background,
        axis=None,
    )
    return narrowed(safe_mean(loss), dtype=x.dtype)


def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
) -> jax.Array:
    """Dice loss of a region that is there or not.

    `dice_loss` of one class.

    Args:
      predictions: logits, shape `[batch, ...]` or `[batch, ..., 1]`.
      targets: 0 or 1, or soft, of that shape.
      smooth: added to numerator and denominator.
      apply_sigmoid: False if the predictions are probabilities already.

    Returns:
      Loss per example.

    Raises:
      ValueError: shapes that differ, or no probabilities where they are promised.
      TypeError: complex input.

    Reference: same signature as `optax.losses.binary_dice_loss`.
    """
    x, t = jnp.asarray(predictions), jnp.asarray(targets)
    if x.ndim == t.ndim and x.shape[-1:] != (1,):
        x, t = x[..., None], t[..., None]
    return dice_loss(x, t, smooth=smooth, apply_softmax=apply_sigmoid)
