"""Losses of an error e = predictions - targets: squared, and the robust ones."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from .._numerics import (
    broadcast_mask,
    cast,
    narrow,
    normalize_axes,
    power_of_two,
    promote,
    saturated,
    widen,
)
from .._spec import total
from .._zmul import zmul
from ..ops import safe_div, sigmoid
from ..ops._reduce import count_of, keep, pair, sum_of


def _errors(
    name: str, predictions: ArrayLike, targets: ArrayLike | None, *, broadcast: bool = False
) -> jax.Array:
    """Return predictions - targets, saturated; the shapes must be equal or, if asked, broadcast."""
    if targets is None:
        return promote(name, predictions)[0]
    p, t = promote(name, predictions, targets)
    if p.shape != t.shape and not broadcast:
        raise ValueError(
            f"{name}: predictions have shape {p.shape} and targets {t.shape}, which would "
            "broadcast example against example; make them equal, with targets[:, None] or "
            "predictions[:, 0]."
        )
    return _difference(p, t)


@total(lambda out, p, t: jnp.ones_like(out), lambda out, p, t: -jnp.ones_like(out))
def _difference(p, t):
    d = p - t
    return jnp.where(jnp.isinf(p) | jnp.isinf(t), d, narrow(d, d.dtype))


def _positive(name: str, option: str, value: Any) -> Any:
    """Check a number or array; a traced one cannot be looked at, and is taken as it is."""
    if not isinstance(value, Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name}: {option} must be > 0, got {value}.")
    return value


# The gradient of a square stays 2 e where the square itself saturates: descent must come back.
@total(lambda out, e: 2 * widen(e))
def _square(e):
    z = widen(e)
    return jnp.where(jnp.isinf(e), math.inf, narrow(z * z, e.dtype))


def squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Squared error (predictions - targets)^2, saturating instead of overflowing.

    The derivative is 2 (predictions - targets), also where the value stands at the largest finite
    number (errors above 1.8e19 in float32, 255 in float16).

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape; integers become floats.
      targets: array of the same shape; default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes differ; they are not broadcast.
      TypeError: complex input.

    Reference: same signature as `optax.losses.squared_error`.
    """
    return _square(_errors("squared_error", predictions, targets))


def _rule_mean_square(out, arrays, tangents, *, axis):
    e, mask = pair(arrays)
    z = widen(keep(e, mask))
    slope = narrow(2 * z / count_of(z, mask, axis, least=1), e.dtype)
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
    axis: int | Sequence[int] | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Mean of the squared errors, which overflows only where the mean itself is too large.

    sum over the True of `where` of (predictions - targets)^2, divided by their number; formed from
    errors over a power of two near the largest. The derivative 2 e / n is right even where the
    value saturates at the largest finite number.

    Edges: an empty or fully masked slice gives 0 with derivative 0; masked NaN and inf change
    neither value nor gradient; inf that takes part gives inf, NaN gives NaN.

    Args:
      predictions: array of any shape; integers become floats.
      targets: array of the same shape; default 0.
      axis: axis or axes to average over; None means all.
      where: boolean, True takes part; broadcast to `predictions`.

    Returns:
      Array of the reduced shape, in the promoted dtype; float16 and bfloat16 accumulate in float32.

    Raises:
      ValueError: the shapes differ, or an axis is out of range.
      TypeError: complex input, or a `where` that is not boolean.
    """
    name = "mean_squared_error"
    e = _errors(name, predictions, targets)
    mask = broadcast_mask(name, where, e.shape)
    arrays = (e,) if mask is None else (e, mask)
    return _mean_square(*arrays, axis=normalize_axes(name, axis, e.ndim))


@total(
    lambda out, e, delta: jnp.clip(e, -delta, delta),
    lambda out, e, delta: jnp.where(saturated(out), 0, jnp.maximum(abs(e) - delta, 0)),
)
def _huber(e, delta):
    dtype = jnp.result_type(e, delta)
    size, d = abs(widen(e)), widen(delta)
    inner = jnp.minimum(size, d)
    y = jnp.where(size <= d, 0.5 * inner * inner, d * (size - 0.5 * d))
    return jnp.where(jnp.isinf(e), math.inf, narrow(y, dtype))


def huber_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0
) -> jax.Array:
    """Huber loss: quadratic for errors up to `delta`, linear beyond.

    e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2); the derivative is e clipped to
    [-delta, delta].

    Edges: overflow saturates, with the derivative kept; inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape; integers become floats.
      targets: array; broadcasts with `predictions`, as in optax. Default 0.
      delta: positive number, or an array that broadcasts.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes do not broadcast, or `delta` is a number that is not positive.
      TypeError: complex input.

    Reference: Huber 1964, doi:10.1214/aoms/1177703732; signature of `optax.losses.huber_loss`.
    """
    e = _errors("huber_loss", predictions, targets, broadcast=True)
    return _huber(*promote("huber_loss", e, _positive("huber_loss", "delta", delta)))


# tanh' = 4 sigmoid(2x) sigmoid(-2x); 1 - tanh^2 is 0 from x = 9 in float32.
@total(lambda out, x: 4 * sigmoid(2 * x) * sigmoid(-2 * x))
def _tanh(x):
    return cast(jnp.tanh(widen(x)), x.dtype)


@total(lambda out, e: _tanh(e))
def _log_cosh(e):
    size = abs(widen(e))
    # log cosh e = log1p(2 sinh(e/2)^2); the far form cancels below 1. XLA's sinh and expm1 are
    # up to 3 ulp off near 0, which the square doubles; the series is exact to 1 ulp for h <= 1/2.
    h = jnp.minimum(size, 1) / 2
    series = 1.0 + jnp.zeros_like(h)
    for k in range(16 if h.dtype == jnp.float64 else 8, 0, -2):
        series = 1 + h * h / (k * (k + 1)) * series
    near = jnp.log1p(2 * (h * series) ** 2)
    far = size + (jnp.log1p(jnp.exp(-2 * size)) - math.log(2))
    return cast(jnp.where(size < 1, near, far), e.dtype)


def log_cosh(predictions: ArrayLike, targets: ArrayLike | None = None) -> jax.Array:
    """Logarithm of the hyperbolic cosine of the error, right for small and large errors.

    log(cosh(e)), which is e^2 / 2 near 0 and |e| - log 2 far away; the derivative is tanh(e).

    Edges: inf gives inf; NaN gives NaN.

    Args:
      predictions: array of any shape; integers become floats.
      targets: array; broadcasts with `predictions`, as in optax. Default 0.

    Returns:
      Loss per element, in the promoted dtype.

    Raises:
      ValueError: the shapes do not broadcast.
      TypeError: complex input.

    Reference: same signature as `optax.losses.log_cosh`.
    """
    return _log_cosh(_errors("log_cosh", predictions, targets, broadcast=True))


def _rational_slope(out, r, *, i, j):
    # d/dr [r^i / (1 + r^2)^j] = i r^(i-1) / (1 + r^2)^j - 2 j r^(i+1) / (1 + r^2)^(j+1)
    if (i, j) == (2, 1):
        return 2 * _rational(r, i=1, j=2)  # the two terms cancel for large r
    slope = -2 * j * _rational(r, i=i + 1, j=j + 1)
    return slope + i * _rational(r, i=i - 1, j=j) if i else slope


@total(_rational_slope)
def _rational(r, *, i, j):
    """r^i / (1 + r^2)^j for i <= 2j, by r or by 1 / r, whichever is not above 1."""
    z = widen(r)
    large = abs(z) > 1
    v = 1 / jnp.where(large, z, 1)
    u = jnp.where(large, 0, z)
    far = v ** (2 * j - i) / (1 + v * v) ** j
    return cast(jnp.where(large, far, u**i / (1 + u * u) ** j), r.dtype)


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
      predictions: array of any shape; integers become floats.
      targets: array of the same shape; default 0.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element in [0, 1], in the promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: complex input.

    Reference: Geman and McClure 1987; Barron 2019 (arXiv:1701.03077), alpha = -2, which scales the
    error by 2 and the loss by 2.
    """
    e = _errors("geman_mcclure", predictions, targets)
    e, s = promote("geman_mcclure", e, _positive("geman_mcclure", "scale", scale))
    return _rational(safe_div(e, s), i=2, j=1)
