"""Losses of an error that resist outliers, and the family of which they are members.

Each is a function of r = (predictions - targets) / scale. Those with a bounded slope or value learn
less from an error the larger it is; the docstrings say which can stop learning.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import cast, nan_of, promote, widen
from .._spec import total
from ..ops import safe_div
from ._common import compared, errors_of, of_error, positive, square

FAR = 2.0**60
"""From here on 1 + x^2 is x^2 to any dtype; the square does not overflow."""
ROOT = math.sqrt(0.5)


def ratios(
    name: str, predictions: ArrayLike, targets: ArrayLike | None, scale: ArrayLike
) -> jax.Array:
    e = errors_of(name, predictions, targets)
    return safe_div(*promote(name, e, positive(name, "scale", scale)))


def _of_ratio(fn):
    """Make a loss of (predictions - targets) / scale of one of the ratio."""
    plain = of_error(fn)

    def loss(name, predictions, targets, scale, **static):
        if isinstance(scale, float) and scale == 1:
            return plain(compared(name, predictions, targets), **static)
        return fn(ratios(name, predictions, targets, scale), **static)

    return loss


def _rational_slope(out, r, *, i, k):
    if i == k:  # the two terms below cancel for large r
        return i * rational(r, i=i - 1, k=k + 2)
    slope = -k * rational(r, i=i + 1, k=k + 2)
    return slope + i * rational(r, i=i - 1, k=k) if i else slope


@total(_rational_slope)
def rational(r, *, i, k):
    """r^i / (1 + r^2)^(k / 2) for i <= k / 2 and i = k = 1."""
    z = widen(r)
    if i == k:
        u = jnp.clip(z, -FAR, FAR)
        return cast(u / jnp.sqrt(1 + u * u), r.dtype)
    # Where r^2 overflows the last factor is 0, or not there; r / (1 + r^2) is not yet 0.
    h = 1 / (1 + z * z)
    y = lax.integer_pow(h, k // 2 - i)
    y = y * jnp.sqrt(h) if k % 2 else y
    return cast(lax.integer_pow(1 / (z + 1 / z), i) * y, r.dtype)


def _log1p_square(r, factor):
    z = widen(r)
    one, far, small = constants(z, 1, FAR, 1 / FAR)
    near = jnp.minimum(abs(z), far)
    square = near * near if factor == 1 else constants(z, factor)[0] * near * near
    beyond = jnp.log(jnp.maximum(abs(z) * small, one))
    return cast(jnp.log1p(square) + (beyond + beyond) + nan_of(z), r.dtype)


@total(lambda out, r: 2 * rational(r, i=1, k=2))
def log1p_square(r):
    """log(1 + r^2), which does not overflow where r^2 does."""
    return _log1p_square(r, 1)


@_of_ratio
@total(lambda out, r: 2 * ROOT * rational(ROOT * r, i=1, k=2))
def _log1p_half_square(r):
    """log(1 + r^2 / 2)."""
    return _log1p_square(r, 0.5)


@_of_ratio
@total(lambda out, r: rational(r, i=1, k=1))
def _root(r):
    """sqrt(1 + r^2) - 1 = r^2 / (1 + sqrt(1 + r^2))."""
    size = abs(widen(r))
    one, two, far = constants(size, 1, 1, FAR)
    u = jnp.minimum(size, far)
    return cast(size * (u / (one + jnp.sqrt(two + u * u))), r.dtype)


@_of_ratio
@total(lambda out, r: 2 * rational(r, i=1, k=4))
def _share(r):
    """r^2 / (1 + r^2), by 1 / r^2."""
    z = widen(r)
    one, two, three = constants(z, 1, 1, 1)
    return cast(one / (two + three / (z * z)), r.dtype)


def charbonnier(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, scale: ArrayLike = 1.0
) -> jax.Array:
    """Charbonnier (pseudo-Huber) loss: quadratic for small errors, linear for large ones.

    sqrt(1 + r^2) - 1 with r = e / scale; the derivative by e is r / sqrt(1 + r^2) / scale. It never
    stops learning: an outlier pulls by 1 / scale, however far it is.

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Charbonnier et al. 1994, doi:10.1109/ICIP.1994.413553; `general_robust_loss` with
    alpha = 1.
    """
    return _root("charbonnier", predictions, targets, scale)


def cauchy(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, scale: ArrayLike = 1.0
) -> jax.Array:
    """Cauchy (Lorentzian) loss: quadratic for small errors, logarithmic for large ones.

    log(1 + r^2 / 2) with r = e / scale; the derivative by e is r / (1 + r^2 / 2) / scale, largest
    at r = sqrt(2) and falling like 2 / e. It slows down far away and does not stop; with a `scale`
    far below the errors raise the learning rate, or take the scale from the residuals.

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Black and Anandan 1996, doi:10.1006/cviu.1996.0006; `general_robust_loss` with
    alpha = 0.
    """
    return _log1p_half_square("cauchy", predictions, targets, scale)


def geman_mcclure(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, scale: ArrayLike = 1.0
) -> jax.Array:
    """Geman-McClure loss, bounded by 1: an outlier costs no more than 1 and pulls hardly at all.

    e^2 / (e^2 + scale^2); the derivative is 2 e scale^2 / (e^2 + scale^2)^2, largest near
    e = 0.58 scale and falling like 1 / e^3. So with a `scale` far below the errors (the often
    quoted e^2 / (e^2 + 1e-7)) nothing is learned: take the scale from the residuals, such as their
    root mean square at the start, and lower it as they shrink.

    Edges: inf gives 1 with derivative 0; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element in [0, 1], in the promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Geman and McClure 1987; `general_robust_loss` with alpha = -2 and twice the error,
    over 2.
    """
    return _share("geman_mcclure", predictions, targets, scale)


def _times_gaussian(factor, r):
    """factor(z) exp(-z^2 / 2) with z = r, cut where the exponential vanishes."""
    z = jnp.clip(widen(r), -40, 40)
    info = jnp.finfo(z.dtype)
    # Half of the digits have an exact square; rounded, z^2 near 2 * 87 would cost 60 ulp.
    high = lax.reduce_precision(z, info.nexp, (info.nmant - 1) // 2)
    root = jnp.exp(-high * high / 4)  # its square may underflow where the product does not
    g = factor(z) * root * root
    d = (high - z) * (high + z) / 2  # below 0.05 where g is not 0: four terms of expm1
    return cast(g + g * (d * (1 + d / 2 * (1 + d / 3 * (1 + d / 4)))), r.dtype)


@total(lambda out, r: _times_gaussian(lambda z: (1 - z) * (1 + z), r))
def _welsch_slope(r):
    return _times_gaussian(lambda z: z, r)


@_of_ratio
@total(lambda out, r: _welsch_slope(r))
def _welsch(r):
    z = widen(r)
    (factor,) = constants(z, -0.5)
    return cast(-jnp.expm1(factor * (z * z)), r.dtype)


def welsch(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, scale: ArrayLike = 1.0
) -> jax.Array:
    """Welsch (Leclerc) loss, bounded by 1: an outlier is ignored altogether.

    1 - exp(-r^2 / 2) with r = e / scale; the derivative by e is r exp(-r^2 / 2) / scale, largest at
    r = 1. From r = 13.4 on it is 0 in float32, so a model whose errors are all that large learns
    nothing: start with a `scale` near the largest residual, or with `charbonnier`, and lower it.

    Edges: inf gives 1 with derivative 0; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element in [0, 1], in the promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Leclerc 1989, doi:10.1007/BF00054839; `general_robust_loss` with alpha = -inf.
    """
    return _welsch("welsch", predictions, targets, scale)


@_of_ratio
@total(lambda out, r: 2 * rational(0.5 * r, i=1, k=4))
def _twice_share(r):
    """2 r^2 / (4 + r^2)."""
    z = widen(r)
    two, one, four = constants(z, 2, 1, 4)
    return cast(two / (one + four / (z * z)), r.dtype)


MEMBERS = {
    2.0: functools.partial(_of_ratio(square), c=0.5),
    1.0: _root,
    0.0: _log1p_half_square,
    -2.0: _twice_share,
    -math.inf: _welsch,
}
"""Losses of the general family, by alpha."""
