"""The angle and the length of (x, y): arctan2 and hypot."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import (
    cast,
    flush,
    held,
    largest,
    promote,
    saturated,
    smallest,
    widen,
)
from .._spec import op, total

inf = math.inf
nan = math.nan


def _scaled(x, y):
    """x and y over their larger magnitude s, 1 / s, and where that is 0: at the origin or far out.

    The select keeps XLA from making x^2 / s^2 of (x / s)^2.
    """
    x, y = widen(x + jnp.zeros_like(y)), widen(y + jnp.zeros_like(x))
    larger = jnp.maximum(abs(x), abs(y))
    inverse = 1 / jnp.where(larger < smallest(larger.dtype), inf, larger)
    undirected = inverse == 0
    x, y = (jnp.where(undirected, 1, a * inverse) for a in (x, y))
    return x, y, inverse, undirected


_OTHER = {"real": "imaginary", "imaginary": "real"}


# The derivatives of the angle are those of Im log z, z = x + iy: they belong to a family, the
# real and imaginary parts of z^-k, each of whose derivatives is another member.
@total(
    lambda out, x, y, *, c, k, part: pole(x, y, c=-c * k, k=k + 1, part=part),
    lambda out, x, y, *, c, k, part: pole(
        x, y, c=c * k if part == "real" else -c * k, k=k + 1, part=_OTHER[part]
    ),
)
def _pole(x, y, *, c, k, part):
    dtype = jnp.result_type(x, y)
    x, y, inverse, undirected = _scaled(x, y)
    square = x * x + y * y
    u, v = x / square, -y / square  # 1 / z
    re, im = u, v
    for _ in range(k - 1):
        re, im = re * u - im * v, re * v + im * u
    w = c * (re if part == "real" else im)
    for _ in range(k):
        w = held(w * inverse, w.dtype)
    return jnp.where(undirected, 0, held(w, dtype))


def pole(x: jax.Array, y: jax.Array, *, part: str, c: float = 1.0, k: int = 1) -> jax.Array:
    """Return the real or imaginary part of c (x + iy)^-k, saturated, and 0 at the origin."""
    return _pole(x, y, c=c, k=k, part=part)


@total(
    lambda out, y, x: pole(x, y, part="real"),
    lambda out, y, x: pole(x, y, part="imaginary"),
)
def _safe_arctan2(y, x):
    dtype = jnp.result_type(x, y)
    # Of two subnormal numbers XLA's arctan2 is NaN.
    return cast(jnp.arctan2(flush(widen(y)), flush(widen(x))), dtype)


@op(
    naive=jnp.arctan2,
    reference=lambda mp, y, x: mp.atan2(y, x),
    domain=[(-inf, inf), (-inf, inf)],
    edges=[
        ((1.0, 1.0), math.pi / 4, (0.5, -0.5)),
        ((1.0, 0.0), math.pi / 2, (0.0, -1.0)),
        ((0.0, 1.0), 0.0, (1.0, 0.0)),
        ((0.0, -1.0), math.pi, (-1.0, 0.0)),
        ((-0.0, -1.0), -math.pi, (-1.0, 0.0)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
        ((1.0, inf), 0.0, (0.0, 0.0)),
        ((inf, inf), math.pi / 4, (0.0, 0.0)),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="atan2",
    hint="the derivative of arctan2 at (0, 0) is 0 / 0, and its x^2 + y^2 underflows at 1e-19 in "
    "float32: use robustops.safe_arctan2.",
)
def safe_arctan2(y: ArrayLike, x: ArrayLike, /) -> jax.Array:
    """Angle of the point (x, y), with a finite derivative everywhere, 0 at the origin.

    arctan2(y, x) in [-pi, pi]; the derivatives x / (x^2 + y^2) and -y / (x^2 + y^2) are right
    wherever they are representable, at (1e-25, 1e-25) too, and saturate where they are not.

    Edges: the origin gives 0 or +-pi by the signs of its zeros, with derivative 0; infinities give
    the limit along the axis or the diagonal; NaN gives NaN.

    Args:
      y: real array, the ordinate.
      x: real array, the abscissa; the shapes broadcast.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    y, x = promote("safe_arctan2", y, x)
    return _safe_arctan2(y, x)


# d/dx x/h = y^2 / h^3 and d/dy x/h = -x y / h^3, with what comes through h.
@total(
    lambda out, x, y, h: _curvature(x, y, h, lambda u, v: v * v),
    lambda out, x, y, h: _curvature(x, y, h, lambda u, v: -u * v),
    lambda out, x, y, h: jnp.zeros_like(out),
)
def _cosine(x, y, h):
    """x / h with h = hypot(x, y), 0 at the origin and where h saturates."""
    x, h, dtype = widen(x), widen(h), h.dtype
    return cast(jnp.where(h >= largest(dtype), 0, x / jnp.where(h == 0, 1, h)), dtype)


def _curvature(x, y, h, numerator):
    dtype = h.dtype
    x, y, inverse, undirected = _scaled(x, y)
    r = jax.lax.rsqrt(x * x + y * y)
    curvature = held(numerator(x * r, y * r) * r * inverse, dtype)
    return jnp.where(undirected | saturated(h), 0, curvature)


@total(
    lambda out, x, y: _cosine(x, y, out),
    lambda out, x, y: _cosine(y, x, out),
)
def _safe_hypot(x, y):
    x, y = x + jnp.zeros_like(y), y + jnp.zeros_like(x)
    a, b = abs(flush(widen(x))), abs(flush(widen(y)))
    larger, smaller = jnp.maximum(a, b), jnp.minimum(a, b)
    slope = jnp.minimum(smaller, largest(a.dtype)) / jnp.maximum(larger, smallest(a.dtype))
    return held(larger * jnp.sqrt(1 + slope * slope), x.dtype, x, y)


@op(
    naive=lambda x, y: jnp.sqrt(x * x + y * y),
    reference=lambda mp, x, y: mp.hypot(x, y),
    domain=[(-inf, inf), (-inf, inf)],
    edges=[
        ((3.0, 4.0), 5.0, (0.6, 0.8)),
        ((-3.0, 0.0), 3.0, (-1.0, 0.0)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
        ((lambda i: float(i.max), 0.0), lambda i: float(i.max), None),
        ((lambda i: float(i.max), lambda i: float(i.max)), lambda i: float(i.max), (0.0, 0.0)),
        ((inf, 1.0), inf, (0.0, 0.0)),
        ((nan, inf), nan, None),
    ],
    ulps=(4, 8),
    replaces="hypot",
    hint="sqrt(x^2 + y^2) overflows from 1.8e19 in float32, is 0 below 1e-19, and its gradient at "
    "0 is NaN: use robustops.safe_hypot.",
    cost="On GPU with gradient twice the naive form's bytes: the value is kept, since the "
    "derivatives are formed from it.",
)
def safe_hypot(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Length of (x, y) that neither overflows nor underflows, with derivative 0 at the origin.

    sqrt(x^2 + y^2), formed from x and y over a power of two near the larger; right at 1e30 and
    1e-30 in float32, as are the derivatives x / h and y / h.

    Edges: the origin gives 0 with derivative 0; a length beyond the largest finite number gives
    that number with derivative 0; an infinity gives inf; NaN gives NaN, beside an infinity too.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    x, y = promote("safe_hypot", x, y)
    return _safe_hypot(x, y)
