"""Negative log-likelihoods of counts and of normal variables, and the Gaussian KL of a VAE."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import (
    cast,
    held,
    infinite_with,
    largest,
    nan_of,
    narrow,
    promote,
    smallest,
    widen,
    within,
)
from .._spec import total
from ..ops import safe_div, safe_exp
from ..ops._families import ratio
from ..ops._similarity import difference
from ._common import Axis, class_axes, error, floating, product, square, summed


@total(lambda out, r, t: safe_exp(r), lambda out, r, t: -jnp.ones_like(out))
def _poisson_slope(r, t):
    """exp(r) - t; it stays where the value saturates: a rate that has overflowed must come down."""
    return held(jnp.exp(widen(r)) - widen(t), jnp.result_type(r, t), r, t)


@total(
    lambda out, r, t: _poisson_slope(r, t),
    lambda out, r, t: -jnp.broadcast_to(r, out.shape),
)
def _poisson(r, t):
    dtype = jnp.result_type(r, t)
    r, t = jnp.broadcast_arrays(widen(r), widen(t))
    most = largest(dtype)
    # For a count of 0 the product is 0 where the rate is infinite.
    slant = within(t * within(r, largest(r.dtype)), most)
    y = infinite_with(within(within(jnp.exp(r), most) - slant, most), r)
    return cast(y + nan_of(r) + nan_of(t), dtype)


def poisson_nll(log_rate: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Negative log-likelihood of counts under a Poisson law, from the logarithm of its rate.

    exp(r) - t r, without log(t!), which does not depend on the prediction; the derivative by r is
    exp(r) - t.

    Edges: above r = 88.7 in float32 the value saturates and the derivative goes on, so that
    descent can come back; inf gives inf; NaN gives NaN.

    Args:
      log_rate: predicted logarithm r of the rate, of any shape.
      targets: counts t >= 0; integers become floats. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: a log_rate that is not real and floating.
    """
    name = "poisson_nll"
    return _poisson(*promote(name, *floating(name, log_rate=log_rate), targets))


def _above_zero(v):
    return jnp.maximum(widen(v), smallest(widen(v).dtype))


def _excess(e, v):
    """e^2 / v - 1/2, by e / v, which overflows only where e^2 / v does."""
    return difference(product(e, safe_div(e, v)), jnp.full_like(e, 0.5))


@total(
    lambda out, e, v: ratio(widen(e), _above_zero(v), c=-1.0, k=2),
    lambda out, e, v: ratio(_excess(widen(e), _above_zero(v)), _above_zero(v), k=2),
)
def _by_variance(e, v):
    """(1 - e^2 / v) / (2 v); at v <= 0 the slope goes on, so that descent can come back."""
    wide, floored = widen(e), _above_zero(v)
    half = 0.5 * (_excess(wide, floored) - 0.5)  # 2 v would overflow
    return narrow(-safe_div(half, floored), e.dtype)


@total(
    lambda out, e, v: ratio(jnp.ones_like(widen(e)), _above_zero(v)),
    lambda out, e, v: ratio(widen(e), _above_zero(v), c=-1.0, k=2),
)
def _over(e, v):
    """e / v, saturated."""
    most = largest(e.dtype)
    return cast(jnp.clip(widen(e) / _above_zero(v), -most, most), e.dtype)


@total(
    lambda out, m, t, v: _over(difference(m, t), v),
    lambda out, m, t, v: -_over(difference(m, t), v),
    lambda out, m, t, v: _by_variance(difference(m, t), v),
)
def _gaussian(m, t, v):
    e, v = widen(error(m, t)), widen(v)
    least, tiny, half, far = constants(v, *[smallest(v.dtype)] * 2, 0.5, largest(v.dtype))
    most, factor = constants(v, largest(m.dtype), 0.5)
    # By e / v, which overflows only where e^2 / v does; inf / inf would be NaN.
    y = e / jnp.minimum(jnp.maximum(v, least), far) * (half * e)
    y = jnp.minimum(y, jnp.maximum(abs(e), most)) + factor * jnp.log(jnp.maximum(v, tiny))
    return cast(y + nan_of(e) + nan_of(v), m.dtype)


def gaussian_nll(mean: ArrayLike, targets: ArrayLike, variance: ArrayLike) -> jax.Array:
    """Negative log-likelihood of normal variables with predicted mean and variance.

    (log(v) + (mean - targets)^2 / v) / 2, without log(2 pi) / 2. The derivative by v is
    (1 - e^2 / v) / (2 v): it lowers a variance above e^2 and raises one below.

    Edges: below the smallest normal number v counts as that number, with the derivative kept, so
    that a variance of 0 or less is raised again (or, for an error of 0, lowered: the likelihood is
    unbounded there; predict log(v) and add a floor). Overflow saturates; inf gives inf; NaN gives
    NaN.

    Args:
      mean: predicted means, of any shape.
      targets: observed values; broadcasts.
      variance: predicted variances v > 0; broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: a mean or variance that is not real and floating.

    Reference: Nix and Weigend 1994, doi:10.1109/ICNN.1994.374138.
    """
    name = "gaussian_nll"
    mean, variance = floating(name, mean=mean, variance=variance)
    mean, targets, variance = promote(name, mean, targets, variance)
    return _gaussian(*jnp.broadcast_arrays(mean, targets, variance))


def _half_exp(z):
    root = jnp.exp(z / 2)  # exp(z) overflows where its half does not
    return root / 2 * root


@total(lambda out, x: out + 0.5)
def _half_expm1(x):
    """(exp(x) - 1) / 2."""
    z = widen(x)
    return narrow(jnp.where(z > 80, _half_exp(z), jnp.expm1(z) / 2), x.dtype)


@total(lambda out, x: _half_expm1(x))
def _half_exp_beyond_line(x):
    """(exp(x) - 1 - x) / 2; by its series near 0, where the difference loses all digits."""
    z = widen(x)
    near = abs(z) < 1
    far = jnp.where(z > 80, _half_exp(z), (jnp.expm1(z) - z) / 2)
    return narrow(jnp.where(near, _series(jnp.where(near, z, 0)), far), x.dtype)


def _series(h):
    """(exp(h) - 1 - h) / 2 for |h| <= 1."""
    terms = 19 if h.dtype == jnp.float64 else 9
    y, *rest = constants(h, *(2 / math.factorial(k) for k in range(terms + 1, 1, -1)))
    for c in rest:
        y = c + h * y
    (quarter,) = constants(h, 0.25)
    return h * (quarter * h) * y


def _quick_gaussian_kl(m, l):
    half, other, cosh, sinh = constants(m, 0.5, 0.5, math.cosh(1), math.sinh(1))
    h = within(l, 1)
    g = l - h  # where it is not 0, h is 1 or -1
    far = other * ((cosh + h * sinh) * jnp.expm1(g) - g)
    return half * m * m + (_series(h) + far)


@summed(_quick_gaussian_kl)
def _gaussian_kl(m, l):
    return difference(square(m, c=0.5), -_half_exp_beyond_line(l))


def gaussian_kl(
    mean: ArrayLike, log_variance: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Kullback-Leibler divergence of diagonal Gaussians from the standard one, as in a VAE.

    sum_j (mean_j^2 + exp(l_j) - 1 - l_j) / 2 along `axis`, with l the logarithm of the variance;
    right near 0, where exp(l) - 1 - l cancels. The derivatives are mean and (exp(l) - 1) / 2.

    Edges: overflow saturates, with the derivatives kept, so that descent can come back; an infinite
    mean or variance gives the largest finite number; NaN gives NaN.

    Args:
      mean: shape `[..., dim]`.
      log_variance: shape `[..., dim]`; the two broadcast.
      axis: axis or axes of the independent variables; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Divergence per example, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
    """
    name = "gaussian_kl"
    both = floating(name, mean=mean, log_variance=log_variance)
    arrays = jnp.broadcast_arrays(*promote(name, *both))
    axes, mask = class_axes(name, arrays[0], axis, where)
    return _gaussian_kl(*arrays, *(() if mask is None else (mask,)), axis=axes)
