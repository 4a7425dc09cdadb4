"""Losses of an error e = predictions - targets: squares, Huber, log-cosh, and of logarithms."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import (
    broadcast_mask,
    cast,
    held,
    largest,
    nan_of,
    narrow,
    normalize_axes,
    power_of_two,
    promote,
    saturated,
    widen,
)
from .._spec import total
from .._zmul import zmul
from ..ops._families import ratio
from ..ops._logexp import _log_cosh as log_cosh_of
from ..ops._reduce import count_of, keep, pair, sum_of
from ._common import Axis, compared, errors_of, of_error, positive, square
from ._robust import log1p_square

_square, _log_cosh, _log1p_square = map(of_error, (square, log_cosh_of, log1p_square))


def squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Squared error (predictions - targets)^2, saturating instead of overflowing.

    The derivative is 2 (predictions - targets), also where the value stands at the largest finite
    number (errors above 1.8e19 in float32, 255 in float16).

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: predictions that are not real and floating.

    Reference: same signature as `optax.losses.squared_error`.
    """
    return _square(compared("squared_error", predictions, targets), c=1.0)


def l2_loss(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Half the squared error, (predictions - targets)^2 / 2, saturating instead of overflowing.

    The derivative is predictions - targets, also where the value stands at the largest finite
    number.

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: predictions that are not real and floating.

    Reference: same signature as `optax.losses.l2_loss`.
    """
    return _square(compared("l2_loss", predictions, targets), c=0.5)


def _rule_mean_square(out, arrays, tangents, *, axis):
    e, mask = pair(arrays)
    z = widen(keep(e, mask))
    # Not 2 e, which overflows where e / (n / 2) does not; for n = 1 it is the larger one anyway.
    slope = held(z / (count_of(z, mask, axis, least=1) / 2), e.dtype)
    return jnp.sum(zmul(slope, tangents[0]), axis=axis)


@total(jvp=_rule_mean_square)
def _mean_square(e, mask=None, *, axis):
    z = widen(keep(e, mask))
    top = jnp.max(abs(z), axis=axis, keepdims=True, initial=0)
    s = power_of_two(top)
    r = z / s
    y = sum_of(r * r, axis) / count_of(z, mask, axis, least=1)
    y = jnp.where(top == math.inf, math.inf, narrow(y * s * s, e.dtype))
    return jnp.squeeze(y, axis)


def mean_squared_error(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    axis: Axis = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Mean of the squared errors, which overflows only where the mean itself is too large.

    sum over the True of `where` of (predictions - targets)^2, divided by their number; formed from
    errors over a power of two near the largest. The derivative 2 e / n is right even where the
    value saturates at the largest finite number.

    Edges: an empty or fully masked slice gives 0 with derivative 0; masked NaN and inf change
    neither value nor gradient; inf that takes part gives inf, NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      axis: axis or axes to average over; None means all.
      where: boolean, True takes part; broadcast to `predictions`.

    Returns:
      Array of the reduced shape, in the promoted dtype; float16 and bfloat16 accumulate in float32.

    Raises:
      ValueError: the shapes differ, or an axis is out of range.
      TypeError: predictions that are not real and floating, or a `where` that is not boolean.
    """
    name = "mean_squared_error"
    e = errors_of(name, predictions, targets)
    mask = broadcast_mask(name, where, e.shape)
    arrays = (e,) if mask is None else (e, mask)
    return _mean_square(*arrays, axis=normalize_axes(name, axis, e.ndim))


@of_error
@total(
    lambda out, e, delta: jnp.clip(e, -delta, delta),
    lambda out, e, delta: jnp.where(saturated(out), 0, jnp.maximum(abs(e) - delta, 0)),
)
def _huber(e, delta):
    dtype = jnp.result_type(e, delta)
    size = abs(widen(e))
    half, most = constants(size, 0.5, largest(dtype))
    inner = jnp.minimum(size, widen(delta))
    y = jnp.minimum(inner * (size - half * inner), jnp.maximum(size, most))
    return cast(y + nan_of(size), dtype)


def huber_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0
) -> jax.Array:
    """Huber loss: quadratic for errors up to `delta`, linear beyond.

    e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2); the derivative is e clipped to
    [-delta, delta].

    Edges: overflow saturates, with the derivative kept; inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array; broadcasts with `predictions`, as in optax. Default 0.
      delta: positive number, or an array that broadcasts.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes do not broadcast, or `delta` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Huber 1964, doi:10.1214/aoms/1177703732; signature of `optax.losses.huber_loss`.
    """
    arrays = compared("huber_loss", predictions, targets, broadcast=True)
    *arrays, delta = promote("huber_loss", *arrays, positive("huber_loss", "delta", delta))
    return _huber(arrays, delta)


def log_cosh(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Logarithm of the hyperbolic cosine of the error, right for small and large errors.

    log(cosh(e)), which is e^2 / 2 near 0 and |e| - log 2 far away; the derivative is tanh(e).

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array; broadcasts with `predictions`, as in optax. Default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes do not broadcast.
      TypeError: predictions that are not real and floating.

    Reference: same signature as `optax.losses.log_cosh`.
    """
    return _log_cosh(compared("log_cosh", predictions, targets, broadcast=True))


def _boundary(dtype):
    """The smallest number above -1."""
    return float(jnp.finfo(dtype).epsneg) - 1


def _slope_log1p(x):
    return _over_near(jnp.ones_like(widen(x)), x)


def _over_near(y, x):
    """y / (1 + x), 0 for x <= -1; in one division, as 1 / (1 + x) is subnormal from 8e37 on."""
    z = widen(x)
    inside = z > -1
    return jnp.where(inside, ratio(y, 1 + jnp.where(inside, z, 0)), 0)


@total(
    lambda out, p, t: _over_near(2 * _slope_log1p(p) - out, p),
    lambda out, p, t: _over_near(-2 * _slope_log1p(t), p),
)
def _slope_squared_log(p, t):
    """2 log((1 + p) / (1 + t)) / (1 + p), 0 for p <= -1."""
    a, b = (jnp.maximum(x, _boundary(x.dtype)) for x in (p, t))
    gap, size = abs(a - b), 1 + jnp.minimum(a, b)
    large = gap * 2.0**-100 > size  # there the quotient could overflow
    y = jnp.log1p(jnp.where(large, gap * 2.0**-64, gap) / size)
    y = jnp.where(a < b, -2, 2) * (y + jnp.where(large, 64 * math.log(2), 0))
    return jnp.where(p <= -1, 0, y / (1 + a))


# In float16 the product of the two slopes would overflow if each were rounded.
@total(
    lambda out, p, t: _slope_squared_log(widen(p), widen(t)),
    lambda out, p, t: _slope_squared_log(widen(t), widen(p)),
)
def _squared_log_ratio(p, t):
    a, b = widen(p), widen(t)
    end, other = constants(a, *[_boundary(a.dtype)] * 2)
    a, b = jnp.maximum(a, end), jnp.maximum(b, other)
    one, unit, far, small = constants(a, 1, 1, 2.0**100, 2.0**-100)
    gap, size = abs(a - b), one + jnp.minimum(a, b)
    y = jnp.log1p(jnp.minimum(gap / size, far)) + jnp.log(jnp.maximum(gap * small / size, unit))
    return cast(y * y + nan_of(p) + nan_of(t), p.dtype)


def squared_log_error(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    """Squared difference of logarithms, (log(1 + p) - log(1 + t))^2, for targets of many sizes.

    The logarithm of (1 + p) / (1 + t) is formed from p - t, so that nothing cancels. The derivative
    by p is 2 log((1 + p) / (1 + t)) / (1 + p).

    Edges: at -1 and below, where there is no logarithm, each goes on as a constant (keep
    predictions above, by a softplus); inf gives inf; NaN gives NaN.

    Args:
      predictions: numbers p > -1, of any shape.
      targets: numbers t > -1, of the same shape.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: predictions that are not real and floating.
    """
    name = "squared_log_error"
    errors_of(name, predictions, targets)  # the checks
    p, t = promote(name, predictions, targets)
    return _squared_log_ratio(p, t)


def log1p_squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Logarithm of one plus the squared error, log(1 + (predictions - targets)^2).

    Quadratic for small errors, logarithmic for large ones: it cannot overflow, and an outlier pulls
    by 2 / e. The derivative is 2 e / (1 + e^2), largest at e = 1.

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: predictions that are not real and floating.
    """
    return _log1p_square(compared("log1p_squared_error", predictions, targets))
