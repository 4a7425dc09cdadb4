"""Roots and powers: safe_sqrt, safe_rsqrt, safe_cbrt, safe_square, safe_pow."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants, copies
from .._numerics import (
    cast,
    held,
    infinite_with,
    largest,
    nan_of,
    promote,
    saturated,
    smallest,
    widen,
)
from .._spec import op, total
from ._families import cube_root, power_dx, power_dy, root_power
from ._floors import bounded, bounded_slope, options

inf = math.inf
nan = math.nan


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, lambda v: root_power(v, c=0.5)
    )
)
def _safe_sqrt(x, *, floor, linear):
    return bounded(x, floor, None, linear, jnp.sqrt, lambda end: 0.5 / math.sqrt(end))


@op(
    naive=jnp.sqrt,
    reference=lambda mp, x: mp.sqrt(x),
    domain=[(0, inf)],
    edges=[
        ((4.0,), 2.0, 0.25),
        ((0.0,), 0.0, 0.0),
        ((-1.0,), 0.0, 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(1, 8),
    replaces="sqrt",
    hint="sqrt is NaN below 0, with an infinite derivative at 0: use robustops.safe_sqrt, or "
    "robustops.safe_norm for the root of a sum of squares.",
)
def safe_sqrt(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Square root with a finite derivative everywhere, 0 at 0.

    sqrt(x) for x >= floor, else sqrt(floor) with derivative 0, or with `extend="linear"` the
    tangent sqrt(floor) + (x - floor) / (2 sqrt(floor)).

    Edges: 0 gives 0 with derivative 0, as does negative input; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / (2 sqrt(floor)). Default 0,
        and with `extend="linear"` the smallest normal number of the dtype.
      extend: "constant" or "linear", see above.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a negative `floor`, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_sqrt", x)
    boundary = smallest(x.dtype) if extend == "linear" else 0.0
    return _safe_sqrt(x, **options("safe_sqrt", x, floor, extend, boundary))


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, lambda v: root_power(v, c=-0.5, k=3)
    )
)
def _safe_rsqrt(x, *, floor, linear):
    return bounded(x, floor, None, linear, _rsqrt, lambda end: -0.5 / end / math.sqrt(end))


def _rsqrt(x):
    (one,) = constants(x, 1)
    return one / jnp.sqrt(x)


@op(
    naive=jax.lax.rsqrt,
    reference=lambda mp, x: 1 / mp.sqrt(x),
    domain=[(0, inf)],
    edges=[
        ((4.0,), 0.5, -0.0625),
        ((0.0,), lambda i: float(i.tiny) ** -0.5, 0.0),
        ((-1.0,), lambda i: float(i.tiny) ** -0.5, 0.0),
        ((inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="rsqrt",
    hint="rsqrt of a value that can reach 0: use robustops.safe_rsqrt with a floor, or "
    "robustops.safe_normalize for x / ||x||.",
)
def safe_rsqrt(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Reciprocal square root, finite with finite derivatives for every finite input.

    1 / sqrt(x) for x >= floor, else 1 / sqrt(floor) with derivative 0, or with `extend="linear"`
    the tangent there.

    Edges: 0 and negative input give 1 / sqrt(floor), 9.2e18 in float32; inf gives 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds value and derivative. Default: the smallest
        normal number of the dtype, 1.2e-38 in float32.
      extend: "constant" or "linear", see above. With the default floor the tangent is so steep that
        it saturates at once; give a floor with it.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` below the smallest normal number, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_rsqrt", x)
    return _safe_rsqrt(x, **options("safe_rsqrt", x, floor, extend, smallest(x.dtype)))


@total(lambda out, x: root_power(x, root=3, c=1 / 3, k=2))
def _safe_cbrt(x):
    z, again = (widen(a) for a in copies(x, 2))
    least, most, scale, one = constants(
        z, smallest(z.dtype), largest(z.dtype), 1 / smallest(z.dtype), 1
    )
    y = cube_root(jnp.minimum(jnp.maximum(abs(z), least), most), *constants(z, 1 / 3, 1 / 3))
    normal = jnp.floor(jnp.minimum(abs(again) * scale, one))
    return cast(infinite_with(y * normal * jnp.sign(widen(x)), x), x.dtype)


@op(
    naive=jnp.cbrt,
    reference=lambda mp, x: mp.sign(x) * mp.cbrt(abs(x)),
    domain=[(-inf, inf)],
    edges=[
        ((8.0,), 2.0, 1 / 12),
        ((-8.0,), -2.0, 1 / 12),
        ((0.0,), 0.0, 0.0),
        ((-0.0,), -0.0, 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), -inf, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="cbrt",
    hint="cbrt has an infinite derivative at 0: use robustops.safe_cbrt.",
)
def safe_cbrt(x: ArrayLike, /) -> jax.Array:
    """Cube root with a finite derivative everywhere, 0 at 0.

    x^(1/3), odd; the derivative is 1 / (3 x^(2/3)).

    Edges: 0 gives 0 with derivative 0, as does a subnormal number; +-inf gives +-inf; NaN gives
    NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("safe_cbrt", x)
    return _safe_cbrt(x)


def _slope_of_square(out, x):
    return jnp.where(abs(x) >= 2.0 ** (jnp.finfo(x.dtype).maxexp // 2), 0, 2 * x)


@total(_slope_of_square)
def _safe_square(x):
    z = widen(x)
    (most,) = constants(z, largest(x.dtype))
    return cast(jnp.minimum(z * z, jnp.maximum(abs(z), most)) + nan_of(z), x.dtype)


@op(
    naive=jnp.square,
    reference=lambda mp, x: x * x,
    domain=[(-inf, inf)],
    edges=[
        ((3.0,), 9.0, 6.0),
        ((0.0,), 0.0, 0.0),
        ((lambda i: float(i.max),), lambda i: float(i.max), 0.0),
        ((inf,), inf, None),
        ((-inf,), inf, None),
        ((nan,), nan, nan),
    ],
    ulps=(1, 1),
    replaces="square",
    hint="a square overflows above 1.8e19 in float32 (256 in float16): use robustops.safe_square, "
    "or robustops.safe_norm for the root of a sum of squares.",
)
def safe_square(x: ArrayLike, /) -> jax.Array:
    """Square that saturates at the largest finite number instead of overflowing.

    x^2 where that is finite, else the largest finite number with derivative 0. The sum of it is the
    squared norm with the right gradient and Hessian everywhere, at 0 too.

    Edges: beyond 1.8e19 in float32 (256 in float16) 3.4e38 (65504); +-inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("safe_square", x)
    return _safe_square(x)


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, power_dx(x, y)),
    lambda out, x, y: jnp.where(saturated(out), 0, power_dy(x, y)),
)
def _safe_pow(x, y):
    # Sums with zeros give both arguments one shape and one sharding, which the selects need.
    x, y = x + jnp.zeros_like(y), y + jnp.zeros_like(x)
    u, v = widen(x), widen(y)
    # Of 0 and inf jnp.power makes what is wanted: 0^0 = 1, and inf is held at the largest number.
    nought = (abs(u) < smallest(u.dtype)) | ((u < 0) & (jnp.floor(v) != v))
    sign = jnp.where((u < 0) & (jnp.remainder(v, 2) == 1), -1, 1)
    q = held(sign * jnp.power(jnp.where(nought, 0, abs(u)), v), x.dtype, x, y)
    # NaN^0 and 1^NaN are NaN here.
    return jnp.where(jnp.isnan(x), x, jnp.where(jnp.isnan(y), y, q))


@op(
    naive=jnp.power,
    reference=lambda mp, x, y: mp.power(x, y),
    domain=[(0, inf), (-inf, inf)],
    edges=[
        ((2.0, 3.0), 8.0, (12.0, 8.0 * math.log(2.0))),
        ((0.0, 2.0), 0.0, (0.0, 0.0)),
        ((0.0, 1.0), 0.0, (1.0, 0.0)),
        ((0.0, 0.5), 0.0, (0.0, 0.0)),
        ((0.0, 0.0), 1.0, (0.0, 0.0)),
        ((-2.0, 2.0), 4.0, (-4.0, 0.0)),
        ((-2.0, 3.0), -8.0, (12.0, 0.0)),
        ((-2.0, 0.5), 0.0, (0.0, 0.0)),
        ((0.0, -1.0), lambda i: float(i.max), (0.0, 0.0)),
        ((inf, 2.0), inf, None),
        ((nan, 0.0), nan, None),
        ((1.0, nan), nan, None),
        ((0.0, inf), 0.0, None),
    ],
    ulps=(4, 8),
    replaces="pow",
    hint="pow with a base that can reach 0 has an infinite or NaN derivative: use "
    "robustops.safe_pow.",
    cost="On GPU with gradient 1.14 times the naive form's bytes: the value is kept, since the "
    "derivatives are formed from it.",
)
def safe_pow(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Power x^y, finite with finite derivatives for every finite base and exponent.

    x^y where it is a finite real number. Where it is none (x < 0 and y not an integer) it goes on
    as at x = 0; overflow saturates. The derivatives y x^(y-1) and x^y log(x) are right wherever
    they are representable; at x = 0 they are the limit where that is finite, else 0, and for x < 0
    the derivative by y is 0.

    Edges: 0^0 = 1; 0^y is 0 for y > 0 and the largest finite number for y < 0; NaN gives NaN, for
    x^0 too.

    Args:
      x: base, real array.
      y: exponent, real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    x, y = promote("safe_pow", x, y)
    return _safe_pow(x, y)
