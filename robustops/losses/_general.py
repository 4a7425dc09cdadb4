"""The general robust loss of Barron: squares, Charbonnier, Cauchy, Geman-McClure, Welsch in one.

With v = |e| / scale, b = |alpha - 2| and h = sqrt(1 + v^2 / b) it is (b / alpha) (h^alpha - 1).
Written in terms of l = b log(h), which tends to v^2 / 2 at infinite alpha, and of
y = alpha log(h), which is 0 at alpha = 0, it has no singularity there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import narrow, promote, widen
from .._spec import total
from ..ops import safe_exp
from ._common import product
from ._robust import MEMBERS, log1p_square, ratios


class _Parts(NamedTuple):
    a: jax.Array
    """alpha; an infinite one as 1 / eps^2, from where on the loss no longer changes."""
    b: jax.Array
    """|alpha - 2|, at least the spacing of numbers there: the slope by alpha is infinite at 2."""
    v: jax.Array
    h: jax.Array
    log: jax.Array
    """log(1 + v^2 / b) = 2 log(h)."""
    w: jax.Array
    """1 - 1 / h^2."""
    l: jax.Array
    y: jax.Array


def _parts(r, alpha) -> _Parts:
    v, a = jnp.broadcast_arrays(abs(widen(r)), widen(alpha))
    eps = float(jnp.finfo(v.dtype).eps)
    a = jnp.clip(a, -(eps**-2), eps**-2)
    b = jnp.maximum(abs(a - 2), 2 * eps)
    s = narrow(v / jnp.sqrt(b), v.dtype)
    large = s > 1
    u, up = jnp.where(large, 0, s), 1 / jnp.where(large, s, 1)
    h = jnp.where(large, narrow(s * jnp.sqrt(1 + up * up), v.dtype), jnp.sqrt(1 + u * u))
    w = jnp.where(large, 1 / (1 + up * up), u * u / (1 + u * u))
    log = log1p_square(s)
    # For small t = s^2, which may underflow, b log1p(t) / 2 = v^2 / 2 (1 - t / 2 + t^2 / 3).
    flat = narrow(v * v, v.dtype) / 2 * (1 - u * u * (0.5 - u * u / 3))
    l = jnp.where(s < 1e-3, flat, b * log / 2)
    return _Parts(a, b, v, h, log, w, l, a / b * l)


def _power(p: _Parts, c: int):
    """h^(alpha + c) for c <= 0; by exp where alpha would amplify the rounding of h."""
    small = abs(p.a) < 8
    # alpha + c is exact from 1 to 2 only. Below, where h^alpha cannot overflow, it is taken apart.
    apart = p.a < 1
    direct = jnp.power(p.h, jnp.where(small, jnp.where(apart, p.a, p.a + c), 0))
    for _ in range(-c):  # one at a time: 1 / h may underflow where the quotient does not
        direct = jnp.where(apart, direct / p.h, direct)
    direct = narrow(direct, p.v.dtype)
    return jnp.where(small, direct, safe_exp(jnp.where(small, 0, p.y + c / 2 * p.log)))


def _log_less_w(p: _Parts):
    """log(1 + t) - t / (1 + t), by its series for small t = v^2 / b."""
    t = jnp.where(p.w < 0.01, p.w, 0)  # in w: -log(1 - w) - w
    series = t * t * (1 / 2 + t * (1 / 3 + t * (1 / 4 + t * (1 / 5 + t * (1 / 6 + t / 7)))))
    return jnp.where(p.w < 0.01, series, p.log - p.w)


def _moments(y):
    """Return (f, g) with f exp(y) + g the integral of u^n exp(u y) over [0, 1], for n = 1, 2."""
    near = abs(y) <= 1
    z, u = jnp.where(near, 1, y), jnp.where(near, y, 0)
    first, second, term = 0.5 + 0 * u, 1 / 3 + 0 * u, 1 + 0 * u
    for k in range(1, 20 if u.dtype == jnp.float64 else 12):
        term = term * u / k
        first, second = first + term / (k + 2), second + term / (k + 3)
    i = 1 / z
    far = (((1 - i) * i, i * i), ((1 - 2 * i + 2 * i * i) * i, -2 * i * i * i))
    return [
        (jnp.where(near, 0, f), jnp.where(near, s, g))
        for s, (f, g) in zip((first, second), far, strict=True)
    ]


def _times_exp(p: _Parts, factor, rest):
    """factor exp(y) + rest, saturated."""
    return product(_power(p, 0), narrow(factor, p.v.dtype)) + rest


def _cross(out, r, alpha):
    return product(_slope(r, alpha), _log_less_w(_parts(r, alpha)) / 2)


def _curvature(out, r, alpha):
    p = _parts(r, alpha)
    return jnp.where(p.a == 2, 1, product(_power(p, -2), 1 + (p.a - 2) * p.w))


@total(_curvature, _cross)
def _slope(r, alpha):
    """(v / h) h^(alpha - 1), with the sign of the error: no factor overflows before the product."""
    p = _parts(r, alpha)
    slope = jnp.where(p.a == 2, p.v, product(p.v / p.h, _power(p, -1)))
    return narrow(jnp.sign(widen(r)) * slope, jnp.result_type(r, alpha))


def _alpha_curvature(out, r, alpha):
    p = _parts(r, alpha)
    side = jnp.where(p.a > 2, -1, 1).astype(p.v.dtype)
    (f, g), (f_y, g_y) = _moments(p.y)
    # d/dalpha of log, y and of log - w
    log_a = side * p.w / p.b
    y_a = p.log / 2 + p.a / 2 * log_a
    less_a = log_a * p.w
    square, cross = p.log * p.log, 2 * p.log * log_a
    factor = cross * f + square * f_y * y_a - (y_a * _log_less_w(p) + less_a)
    rest = cross * g + square * g_y * y_a
    return narrow(side / 2 * _times_exp(p, factor, rest), p.v.dtype)


@total(_cross, _alpha_curvature)
def _alpha_slope(r, alpha):
    """+-(log^2 F(y) - exp(y) (log - w)) / 2, with F the first of `_moments`."""
    p = _parts(r, alpha)
    side = jnp.where(p.a > 2, -1, 1).astype(p.v.dtype)
    (f, g), _ = _moments(p.y)
    square = p.log * p.log
    slope = side / 2 * _times_exp(p, square * f - _log_less_w(p), square * g)
    slope = jnp.where(jnp.isinf(alpha), 0, slope)
    return narrow(slope, jnp.result_type(r, alpha))


@total(lambda out, r, alpha: _slope(r, alpha), lambda out, r, alpha: _alpha_slope(r, alpha))
def _general(r, alpha):
    p = _parts(r, alpha)
    grown = jnp.where(p.y > 1, _power(p, 0) - 1, jnp.expm1(jnp.minimum(p.y, 1)))
    ratio = jnp.where(p.y == 0, 1, p.a / p.b)
    y = jnp.where(p.y == 0, p.l, grown / ratio)
    y = jnp.where(p.a == 2, p.v * p.v / 2, y)
    return narrow(y, jnp.result_type(r, alpha))


def general_robust_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    alpha: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
) -> jax.Array:
    """General robust loss: one family from squares to losses that ignore outliers.

    (b / alpha) ((r^2 / b + 1)^(alpha / 2) - 1) with r = e / scale and b = |alpha - 2|, and its
    limits: r^2 / 2 at alpha = 2, `charbonnier` at 1, `cauchy` at 0, 2 r^2 / (r^2 + 4) at -2,
    `welsch` at -inf, exp(r^2 / 2) - 1 at inf. A Python number among 2, 1, 0, -2 and -inf takes a
    fraction of the time of others. It is differentiable by the error, `alpha` and
    `scale`, so the two can be learned (with a regulariser: alone they would make every loss small).

    Below alpha = 1 an outlier pulls less the farther it is, and below 0 the loss is bounded: with a
    `scale` far below the errors learning can stop. Start near alpha = 2 or at a large scale and
    lower it.

    Edges: overflow saturates. The slope by alpha grows without bound as alpha nears 2, and is taken
    there at the nearest number; at infinite alpha it is 0. An infinite error gives the bound, and
    where there is none the largest finite number, or inf if `alpha` is the Python number 2, 1 or 0;
    NaN gives NaN.

    Args:
      predictions: array of any shape.
      targets: array of the same shape; default 0.
      alpha: shape of the loss, a number from -inf to inf or an array that broadcasts.
      scale: positive number in the units of the error, or an array that broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: the shapes differ, or `scale` is a number that is not positive.
      TypeError: predictions that are not real and floating.

    Reference: Barron 2019 (arXiv:1701.03077).
    """
    name = "general_robust_loss"
    if isinstance(alpha, int | float) and alpha in MEMBERS:
        return MEMBERS[alpha](name, predictions, targets, scale)
    return _general(*promote(name, ratios(name, predictions, targets, scale), alpha))
