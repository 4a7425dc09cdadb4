"""Kullback-Leibler divergences from logarithms of probabilities."""

import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import largest, nan_of, narrow, promote, smallest, within
from .._spec import total
from ..ops import safe_exp, safe_log
from ..ops._similarity import difference
from ._common import Axis, class_axes, floating, product, summed


def _two(name, axis, where, **arrays):
    """Return the arrays (the two, broadcast, and the mask if there is one) and the axes."""
    a, b = jnp.broadcast_arrays(*promote(name, *floating(name, **arrays)))
    axes, mask = class_axes(name, a, axis, where)
    return ((a, b) if mask is None else (a, b, mask)), axes


def _finite(x):
    """x with infinities as the largest finite numbers: zero times them is 0."""
    return narrow(x, x.dtype)


def _quick_kl(lp, t):
    # In one call, as the slopes ask for the same numbers in others: XLA merges calls alike.
    ends = smallest(t.dtype), -largest(t.dtype), largest(t.dtype)
    least, low, high, nought = constants(t, *ends, 0)
    y = t * (jnp.log(jnp.maximum(t, least)) - jnp.minimum(jnp.maximum(lp, low), high))
    return y + nought * jnp.sign(lp)  # see `nan_of`


@total(
    lambda out, lp, t: -t,
    lambda out, lp, t: difference(safe_log(t), _finite(lp)) + (t >= smallest(t.dtype)),
)
def _kl_terms(lp, t):
    """t (log t - lp), 0 for t = 0."""
    return product(t, difference(safe_log(t), _finite(lp)))


_kl = summed(_quick_kl)(_kl_terms)


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of predictions, given as logarithms, from targets.

    sum_j t_j (log(t_j) - lp_j) along `axis`.

    Edges: t_j = 0 gives 0 whatever lp_j is, -inf too, and a finite derivative: the logarithm goes
    on as a constant below the smallest normal number. t_j > 0 where lp_j = -inf, and overflow, give
    the largest finite number. NaN gives NaN.

    Args:
      log_predictions: logarithms of probabilities, shape `[..., dim]`.
      targets: probabilities, shape `[..., dim]`; the two broadcast.
      axis: axis or axes to sum over; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Divergence per example, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.kl_divergence`.
    """
    name, both = "kl_divergence", {"log_predictions": log_predictions, "targets": targets}
    arrays, axes = _two(name, axis, where, **both)
    return _kl(*arrays, axis=axes)


@total(
    lambda out, lp, lt: -safe_exp(lt),
    lambda out, lp, lt: product(safe_exp(lt), difference(lt + 1, lp)),
)
def _kl_terms_of_logs(lp, lt):
    """exp(lt) (lt - lp), 0 for lt = -inf."""
    return product(safe_exp(lt), difference(lt, lp))


def _quick_kl_of_logs(lp, lt):
    return jnp.exp(lt) * (within(lt, largest(lt.dtype)) - within(lp, largest(lp.dtype))) + nan_of(
        lp
    )


@summed(_quick_kl_of_logs)
def _kl_of_logs(lp, lt):
    return _kl_terms_of_logs(_finite(lp), _finite(lt))


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of predictions from targets, both given as logarithms.

    sum_j exp(lt_j) (lt_j - lp_j) along `axis`.

    Edges: lt_j = -inf gives 0 with derivative 0, whatever lp_j is; overflow, and lp_j = -inf
    elsewhere, give the largest finite number. NaN gives NaN.

    Args:
      log_predictions: logarithms of probabilities, shape `[..., dim]`.
      log_targets: logarithms of probabilities, shape `[..., dim]`; the two broadcast.
      axis: axis or axes to sum over; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Divergence per example, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.kl_divergence_with_log_targets`.
    """
    both = {"log_predictions": log_predictions, "log_targets": log_targets}
    arrays, axes = _two("kl_divergence_with_log_targets", axis, where, **both)
    return _kl_of_logs(*arrays, axis=axes)


@summed(lambda lp, t: _quick_kl(lp, t) + (jnp.exp(lp) - t))
def _generalized_kl(lp, t):
    return difference(_kl_terms(lp, t), difference(t, safe_exp(lp)))


def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of measures that need not sum to 1.

    sum_j t_j (log(t_j) - lp_j) + exp(lp_j) - t_j along `axis`, never negative.

    Edges: as `kl_divergence`; t_j = 0 leaves exp(lp_j).

    Args:
      log_predictions: logarithms of positive numbers, shape `[..., dim]`.
      targets: numbers >= 0, shape `[..., dim]`; the two broadcast.
      axis: axis or axes to sum over; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Divergence per example, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: Boyd and Vandenberghe 2004, p. 90; signature of
    `optax.losses.generalized_kl_divergence`.
    """
    name, both = (
        "generalized_kl_divergence",
        {"log_predictions": log_predictions, "targets": targets},
    )
    arrays, axes = _two(name, axis, where, **both)
    return _generalized_kl(*arrays, axis=axes)


def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Deprecated name of `generalized_kl_divergence`; it warns, as Optax's does."""
    warnings.warn(
        "convex_kl_divergence is deprecated; use generalized_kl_divergence.",
        DeprecationWarning,
        stacklevel=2,
    )
    return generalized_kl_divergence(log_predictions, targets, axis, where)
