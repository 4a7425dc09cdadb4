"""Inverse trigonometric and hyperbolic functions: arcsin, arccos, arctanh, arccosh."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import narrow, promote, widen
from .._spec import op, total
from ._families import ratio, reciprocal, root_power
from ._floors import bounded, bounded_slope, options
from ._logarithms import log1p

inf = math.inf
nan = math.nan


def _one_minus_square(x):
    """1 - x^2 in the working precision, without cancellation; 0 from |x| = 1 on."""
    z = jnp.clip(widen(x), -1, 1)
    return (1 - z) * (1 + z)


def _end(dtype):
    """The distance to 1 of the number below it."""
    return float(jnp.finfo(dtype).epsneg)


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor - 1, 1 - floor, linear, lambda v: root_power(_one_minus_square(v))
    )
)
def _safe_arcsin(x, *, floor, linear):
    return bounded(x, floor - 1, 1 - floor, linear, _arcsin, _slope_of_arcsin)


def _arcsin(x):
    return jnp.arctan2(x, jnp.sqrt((1 - x) * (1 + x)))


def _slope_of_arcsin(end):
    return 1 / math.sqrt((1 - end) * (1 + end))


@op(
    naive=jnp.arcsin,
    reference=lambda mp, x: mp.asin(x),
    domain=[(-1, 1)],
    edges=[
        ((0.0,), 0.0, 1.0),
        ((-0.0,), -0.0, 1.0),
        ((0.5,), math.pi / 6, 2 / math.sqrt(3)),
        ((1.0,), math.pi / 2, 0.0),
        ((-1.0,), -math.pi / 2, 0.0),
        ((2.0,), math.pi / 2, 0.0),
        ((inf,), math.pi / 2, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="asin",
    hint="arcsin is NaN beyond 1, where rounding leads, and its derivative is infinite at 1: use "
    "robustops.safe_arcsin, or robustops.safe_arctan2 of both legs for an angle.",
)
def safe_arcsin(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Inverse sine with a finite derivative everywhere, 0 at -1 and 1 and beyond.

    arcsin(x) for |x| <= 1 - floor; beyond the constant +-arcsin(1 - floor), or with
    `extend="linear"` the tangent there.

    Edges: 1 and beyond gives pi/2, -1 and beyond -pi/2, both with derivative 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest distance of |x| from 1 that is taken as it is; bounds the derivative by
        1 / sqrt(2 floor - floor^2). Default 0, and with `extend="linear"` the distance of the
        number next to 1 in the dtype, 6.0e-8 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a `floor` below its default or above 1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_arcsin", x)
    least = _end(x.dtype) if extend == "linear" else 0.0
    return _safe_arcsin(x, **options("safe_arcsin", x, floor, extend, least, 1.0))


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor - 1, 1 - floor, linear, lambda v: root_power(_one_minus_square(v), c=-1.0)
    )
)
def _safe_arccos(x, *, floor, linear):
    slope = lambda end: -_slope_of_arcsin(end)
    return bounded(x, floor - 1, 1 - floor, linear, jnp.arccos, slope)


@op(
    naive=jnp.arccos,
    reference=lambda mp, x: mp.acos(x),
    domain=[(-1, 1)],
    edges=[
        ((0.0,), math.pi / 2, -1.0),
        ((0.5,), math.pi / 3, -2 / math.sqrt(3)),
        ((1.0,), 0.0, 0.0),
        ((-1.0,), math.pi, 0.0),
        ((2.0,), 0.0, 0.0),
        ((-inf,), math.pi, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="acos",
    hint="arccos is NaN beyond 1, where rounding leads, and its derivative is infinite at 1: use "
    "robustops.safe_arccos, or robustops.safe_arctan2 of both legs for an angle.",
)
def safe_arccos(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Inverse cosine with a finite derivative everywhere, 0 at -1 and 1 and beyond.

    arccos(x) for |x| <= 1 - floor; beyond the constant there, or with `extend="linear"` the
    tangent. The angle between nearly parallel vectors u and v is lost in the rounding of their
    cosine: use safe_arctan2(|u x v|, u . v).

    Edges: 1 and beyond gives 0, -1 and beyond pi, both with derivative 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest distance of |x| from 1 that is taken as it is; bounds the derivative by
        1 / sqrt(2 floor - floor^2). Default 0, and with `extend="linear"` the distance of the
        number next to 1 in the dtype, 6.0e-8 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a `floor` below its default or above 1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_arccos", x)
    least = _end(x.dtype) if extend == "linear" else 0.0
    return _safe_arccos(x, **options("safe_arccos", x, floor, extend, least, 1.0))


# 1 / (1 - x^2), with a derivative that saturates in float16.
@total(lambda out, x: ratio(2 * jnp.clip(widen(x), -1, 1), _one_minus_square(x), k=2))
def _slope_of_arctanh(x):
    return narrow(reciprocal(_one_minus_square(x)), x.dtype)


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor - 1, 1 - floor, linear, _slope_of_arctanh
    )
)
def _safe_arctanh(x, *, floor, linear):
    slope = lambda end: 1 / ((1 - end) * (1 + end))
    return bounded(x, floor - 1, 1 - floor, linear, _arctanh, slope)


def _arctanh(x):
    # 1 - |x| is exact where it matters, from 1/2 on.
    y = log1p(2 * abs(x) / (1 - abs(x))) / 2
    return jnp.where(x < 0, -y, jnp.where(x == 0, x, y))


@op(
    naive=jnp.arctanh,
    reference=lambda mp, x: mp.atanh(x),
    domain=[(-1, 1)],
    edges=[
        ((0.0,), 0.0, 1.0),
        ((-0.0,), -0.0, 1.0),
        ((0.5,), math.log(3) / 2, 4 / 3),
        ((1.0,), lambda i: math.atanh(1 - i.epsneg), 0.0),
        ((-1.0,), lambda i: -math.atanh(1 - i.epsneg), 0.0),
        ((2.0,), lambda i: math.atanh(1 - i.epsneg), 0.0),
        ((-inf,), lambda i: -math.atanh(1 - i.epsneg), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="atanh",
    hint="arctanh of a value that can reach 1, as a saturated tanh does: use "
    "robustops.safe_arctanh, or keep the argument of tanh.",
)
def safe_arctanh(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Inverse hyperbolic tangent, finite with finite derivatives for every finite input.

    arctanh(x) for |x| <= 1 - floor; beyond the constant +-arctanh(1 - floor), or with
    `extend="linear"` the tangent there.

    Edges: 1 and beyond gives arctanh(1 - floor), about 8.66 in float32, with derivative 0; NaN
    gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest distance of |x| from 1 that is taken as it is; bounds the derivative by
        1 / (2 floor - floor^2). Default: the distance of the number next to 1 in the dtype, 6.0e-8
        in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a `floor` below its default or above 1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_arctanh", x)
    return _safe_arctanh(x, **options("safe_arctanh", x, floor, extend, _end(x.dtype), 1.0))


def _inverse_root_of_arccosh(x):
    """1 / sqrt(x^2 - 1), where neither x^2 overflows nor the difference cancels; 0 up to 1."""
    z = jnp.maximum(widen(x), 1)
    return root_power(z - 1) * root_power(z + 1)


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, _inverse_root_of_arccosh
    )
)
def _safe_arccosh(x, *, floor, linear):
    slope = lambda end: 1 / math.sqrt((end - 1) * (end + 1))
    return bounded(x, floor, None, linear, _arccosh, slope)


def _arccosh(x):
    # From 1e15 on the 1 in sqrt(x^2 - 1) is below an ulp, and x + x could overflow.
    far = x > 1e15
    t = jnp.where(far, 1, x) - 1
    return jnp.where(far, jnp.log(x) + math.log(2), log1p(t + jnp.sqrt(t) * jnp.sqrt(t + 2)))


@op(
    naive=jnp.arccosh,
    reference=lambda mp, x: mp.acosh(x),
    domain=[(1, inf)],
    edges=[
        ((2.0,), math.acosh(2), 1 / math.sqrt(3)),
        ((1.0,), 0.0, 0.0),
        ((0.5,), 0.0, 0.0),
        ((-1.0,), 0.0, 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="acosh",
    hint="arccosh is NaN below 1, where rounding leads, and its derivative is infinite at 1: use "
    "robustops.safe_arccosh.",
)
def safe_arccosh(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Inverse hyperbolic cosine with a finite derivative everywhere, 0 at 1 and below.

    arccosh(x) for x >= floor, else arccosh(floor) with derivative 0, or with `extend="linear"` the
    tangent there.

    Edges: 1 and below gives 0 with derivative 0; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / sqrt(floor^2 - 1). Default
        1, and with `extend="linear"` the number above 1 in the dtype.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a `floor` below 1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_arccosh", x)
    least = 1 + float(jnp.finfo(x.dtype).eps) if extend == "linear" else 1.0
    return _safe_arccosh(x, **options("safe_arccosh", x, floor, extend, least))
