"""Elementary functions made total: logarithms, exponential, quotient, roots, powers."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import cast, flush, largest, narrow, promote, saturated, smallest, widen
from .._spec import op, total
from ._families import power_dx, power_dy, ratio, reciprocal, root_power

inf = math.inf
nan = math.nan


def _options(name: str, x: jax.Array, floor: float | None, extend: str, default: float) -> dict:
    """Check `floor` and `extend`, and return them as static options of the private function."""
    if extend not in ("constant", "linear"):
        raise ValueError(f"{name}: extend must be 'constant' or 'linear', got {extend!r}.")
    if floor is None:
        floor = default
    try:
        floor = float(floor)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(
            f"{name}: floor must be a Python number, fixed at trace time, got {floor!r}; "
            "for a bound that varies use jnp.maximum(x, bound)."
        ) from None
    if not default <= floor <= largest(x.dtype):
        raise ValueError(
            f"{name}: floor must be finite and at least {default:g}, the boundary in {x.dtype}, "
            f"got {floor}."
        )
    return {"floor": floor, "linear": extend == "linear"}


def _floored(x, floor, linear, value, slope):
    """`value(x)` above `floor`; below it a constant, or the tangent line there."""
    wide = widen(x)
    y = value(jnp.maximum(wide, floor))
    if linear:
        big = largest(x.dtype)
        y = y + max(-big, min(big, slope)) * (jnp.minimum(wide, floor) - floor)
    return jnp.where(jnp.isinf(x), cast(y, x.dtype), narrow(y, x.dtype))


def _floored_slope(out, x, floor, linear, slope):
    """The derivative of `_floored`; `slope` is a total function."""
    if linear:
        return jnp.where(saturated(out), 0, slope(jnp.maximum(x, floor)))
    # Not `x >= floor`: a NaN must reach `slope`.
    return jnp.where(x < floor, 0, slope(x))


@total(lambda out, x, *, floor, linear: _floored_slope(out, x, floor, linear, reciprocal))
def _safe_log(x, *, floor, linear):
    return _floored(x, floor, linear, jnp.log, 1 / floor)


@op(
    naive=jnp.log,
    reference=lambda mp, x: mp.log(x),
    domain=[(0, inf)],
    edges=[
        ((1.0,), 0.0, 1.0),
        ((0.0,), lambda i: math.log(i.tiny), 0.0),
        ((-0.0,), lambda i: math.log(i.tiny), 0.0),
        ((-1.0,), lambda i: math.log(i.tiny), 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), lambda i: math.log(i.tiny), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log",
    hint="log of a value that can reach 0: use robustops.safe_log, and for a probability "
    "keep its logit and use robustops.log_softmax or a loss from logits.",
)
def safe_log(x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant") -> jax.Array:
    """Natural logarithm, finite with finite derivatives for every finite input.

    log(x) for x >= floor, else log(floor) with derivative 0, or with `extend="linear"` the tangent
    log(floor) + (x - floor) / floor. Subnormal input counts as 0, as XLA treats it.

    Edges: 0 and below give log(floor), about -87.3 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / floor. Default: the
        smallest normal number of the dtype, 1.2e-38 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` below the smallest normal number, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log", x)
    return _safe_log(x, **_options("safe_log", x, floor, extend, smallest(x.dtype)))


@total(
    lambda out, x, *, floor, linear: _floored_slope(
        out, x, floor, linear, lambda v: reciprocal(1 + v)
    )
)
def _safe_log1p(x, *, floor, linear):
    return _floored(x, floor, linear, _log1p, 1 / (1 + floor))


def _log1p(x):
    if x.dtype != jnp.float64:
        return jnp.log1p(x)
    # In float64 XLA CPU of jax 0.10.2 is 128 ulp off in (-0.414, -0.3), and log(1 + x) 2.1 there.
    return jnp.where(x < -0.3, jnp.log(1 + x), jnp.log1p(x))


@op(
    naive=jnp.log1p,
    reference=lambda mp, x: mp.log1p(x),
    domain=[(-1, inf)],
    edges=[
        ((0.0,), 0.0, 1.0),
        ((-0.0,), -0.0, 1.0),
        ((-1.0,), lambda i: math.log(i.epsneg), 0.0),
        ((-2.0,), lambda i: math.log(i.epsneg), 0.0),
        ((inf,), inf, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log1p",
    hint="log1p of a value that can reach -1: use robustops.safe_log1p; for log(1 - p) of a "
    "probability keep the logit and use robustops.losses.sigmoid_binary_cross_entropy.",
)
def safe_log1p(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Natural logarithm of 1 + x, finite with finite derivatives for every finite input.

    log(1 + x) for x >= floor, else log(1 + floor) with derivative 0, or with `extend="linear"` the
    tangent log(1 + floor) + (x - floor) / (1 + floor).

    Edges: -1 and below give log(1 + floor), about -16.6 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is. Default: the number next to -1 in the dtype,
        -1 + 2^-24 in float32.
      extend: "constant" or "linear", see above.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` not above -1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log1p", x)
    boundary = float(jnp.finfo(x.dtype).epsneg) - 1
    return _safe_log1p(x, **_options("safe_log1p", x, floor, extend, boundary))


def _slope_of_exp(out, x):
    return jnp.where(saturated(out), 0, _safe_exp(x))


@total(_slope_of_exp)
def _safe_exp(x):
    z = widen(x)
    # XLA's exp is up to 5.5 ulp off in the last unit before it overflows, and 1 ulp below.
    last = z > math.log(largest(z.dtype)) - 1
    y = jnp.exp(jnp.where(last, z - 1, z)) * jnp.where(last, math.e, 1)
    return jnp.where(x == inf, inf, narrow(y, x.dtype))


@op(
    naive=jnp.exp,
    reference=lambda mp, x: mp.exp(x),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), 1.0, 1.0),
        ((1e4,), lambda i: float(i.max), 0.0),
        ((-1e4,), 0.0, 0.0),
        ((inf,), inf, None),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="exp",
    hint="exp overflows above 88.7 in float32 (11.1 in float16): use robustops.safe_exp, or stay "
    "in log space with robustops.logsumexp or log_softmax.",
)
def safe_exp(x: ArrayLike, /) -> jax.Array:
    """Exponential that saturates at the largest finite number instead of overflowing.

    exp(x) where that is finite, else the largest finite number with derivative 0.

    Edges: above 88.72 in float32 (11.09 in float16) 3.4e38 (65504); inf gives inf, -inf gives 0;
    NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("safe_exp", x)
    return _safe_exp(x)


@total(
    lambda out, x, y, *, fill: jnp.where(saturated(out), 0, ratio(jnp.ones_like(x), y)),
    lambda out, x, y, *, fill: jnp.where(saturated(out), 0, ratio(x, y, c=-1.0, k=2)),
)
def _safe_div(x, y, *, fill):
    # XLA flushes a subnormal float32 in the quotient, but not always in a comparison with 0. (In
    # float16, computed with as float32, it is a number.)
    y = flush(widen(y))
    zero = y == 0
    q = widen(x) / jnp.where(zero, 1, y)
    q = jnp.where(jnp.isinf(x), cast(q, x.dtype), narrow(q, x.dtype))
    return jnp.where(zero & ~jnp.isnan(x), fill, q)


@op(
    naive=jnp.divide,
    reference=lambda mp, x, y: x / y,
    domain=[(-inf, inf), (-inf, inf)],
    edges=[
        ((1.0, 2.0), 0.5, (0.5, -0.25)),
        ((1.0, 0.0), 0.0, (0.0, 0.0)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
        ((1.0, -0.0), 0.0, (0.0, 0.0)),
        ((1.0, inf), 0.0, (0.0, 0.0)),
        ((inf, 2.0), inf, None),
        ((nan, 0.0), nan, None),
        ((1.0, nan), nan, (nan, nan)),
    ],
    ulps=(1, 8),
    replaces="div",
    hint="division by a value that can be 0: use robustops.safe_div, which gives `fill` there.",
)
def safe_div(x: ArrayLike, y: ArrayLike, /, *, fill: float = 0.0) -> jax.Array:
    """Quotient that gives `fill` where the denominator is 0, and saturates instead of overflowing.

    x / y; `fill` with zero derivatives where y = 0, whatever the sign of that zero. Derivatives are
    right where they are representable, for y = 1e-25 too, since x / y^2 is formed by two divisions.

    Edges: 0 / 0 and 1 / 0 give `fill`; an overflow gives the largest finite number with derivative
    0; x / inf gives 0; NaN gives NaN.

    Args:
      x: numerator, real array.
      y: denominator, real array; the shapes broadcast.
      fill: Python number, the value at the pole.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast, or a `fill` that is not finite.
      TypeError: complex input, or a `fill` that is no Python number.
    """
    x, y = promote("safe_div", x, y)
    try:
        fill = float(fill)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(
            f"safe_div: fill must be a Python number, got {fill!r}; "
            "for an array use jnp.where(y == 0, fill, safe_div(x, y))."
        ) from None
    if not abs(fill) <= largest(x.dtype):
        raise ValueError(f"safe_div: fill must be finite in {x.dtype}, got {fill}.")
    return _safe_div(x, y, fill=fill)


@total(
    lambda out, x, *, floor, linear: _floored_slope(
        out, x, floor, linear, lambda v: root_power(v, c=0.5)
    )
)
def _safe_sqrt(x, *, floor, linear):
    slope = 0.5 / math.sqrt(floor) if floor else 0.0
    return _floored(x, floor, linear, jnp.sqrt, slope)


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
    hint="sqrt has an infinite derivative at 0: use robustops.safe_sqrt, or robustops.safe_norm "
    "for the root of a sum of squares.",
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
    return _safe_sqrt(x, **_options("safe_sqrt", x, floor, extend, boundary))


@total(
    lambda out, x, *, floor, linear: _floored_slope(
        out, x, floor, linear, lambda v: root_power(v, c=-0.5, k=3)
    )
)
def _safe_rsqrt(x, *, floor, linear):
    return _floored(x, floor, linear, lambda v: 1 / jnp.sqrt(v), -0.5 / floor / math.sqrt(floor))


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
    return _safe_rsqrt(x, **_options("safe_rsqrt", x, floor, extend, smallest(x.dtype)))


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, power_dx(x, y)),
    lambda out, x, y: jnp.where(saturated(out), 0, power_dy(x, y)),
)
def _safe_pow(x, y):
    # Sums with zeros give both arguments one shape and one sharding, which the selects need.
    x, y = x + jnp.zeros_like(y), y + jnp.zeros_like(x)
    dtype, nan_in = x.dtype, jnp.isnan(x) | jnp.isnan(y)
    x, y = flush(widen(x)), flush(widen(y))
    outside = (x == 0) | ((x < 0) & (jnp.floor(y) != y))
    q = jnp.power(jnp.where(outside | nan_in, 1, x), jnp.where(nan_in, 1, y))
    q = jnp.where(jnp.isinf(x) | jnp.isinf(y), cast(q, dtype), narrow(q, dtype))
    at_zero = jnp.where(y > 0, 0, jnp.where(y < 0, largest(dtype), 1))
    return jnp.where(nan_in, nan, jnp.where(outside, at_zero, q))


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
