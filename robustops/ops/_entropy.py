"""Products of a number and a logarithm, 0 where the number is: entropies and divergences."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import cast, largest, nan_of, narrow, promote, saturated, smallest, widen
from .._spec import op, total
from ._families import ratio, reciprocal
from ._logarithms import safe_log, safe_log1p

inf = math.inf
nan = math.nan
_INVERSE_E = Fraction("0.36787944117144232159552377016146086744581113103177")


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, safe_log(y)),
    lambda out, x, y: jnp.where(saturated(out) | (y < smallest(y.dtype)), 0, ratio(x, y)),
)
def _xlogy(x, y):
    log = jnp.log(jnp.maximum(widen(y), smallest(y.dtype)))
    return _times(x, y, log)


def _times(x, y, log):
    """x times the logarithm of y, given; 0 where x is 0, infinite only where an input is."""
    zero = (x == 0) & ~jnp.isnan(y)
    q = jnp.where(zero, 0, widen(x) * jnp.where(zero, 1, log))
    return jnp.where(jnp.isinf(x) | jnp.isinf(y), cast(q, x.dtype), narrow(q, x.dtype))


@op(
    naive=lambda x, y: x * jnp.log(y),
    reference=lambda mp, x, y: x * mp.log(y),
    domain=[(-inf, inf), (0, inf)],
    edges=[
        ((2.0, 1.0), 0.0, (0.0, 2.0)),
        ((0.0, 0.0), 0.0, (lambda i: math.log(i.tiny), 0.0)),
        ((0.0, -1.0), 0.0, (lambda i: math.log(i.tiny), 0.0)),
        ((1.0, 0.0), lambda i: math.log(i.tiny), (lambda i: math.log(i.tiny), 0.0)),
        ((0.0, inf), 0.0, None),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="xlogy",
    hint="x log(y) with y that can reach 0: use robustops.xlogy, which is 0 at x = 0.",
    cost="On GPU with gradient twice the naive form's bytes: the derivative asks where the value "
    "saturated, so XLA writes it and reads it again.",
)
def xlogy(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Product x log(y), 0 where x is 0, finite with finite derivatives for every finite input.

    Where y is below the smallest normal number `tiny` of the dtype, log(y) goes on as the constant
    log(tiny), as in `safe_log`; overflow saturates.

    Edges: x = 0 gives 0 for every y but NaN; NaN in either argument gives NaN.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    x, y = promote("xlogy", x, y)
    return _xlogy(x, y)


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, safe_log1p(y)),
    lambda out, x, y: jnp.where(saturated(out) | (y <= -1), 0, ratio(x, 1 + y)),
)
def _xlog1py(x, y):
    return _times(x, y, widen(safe_log1p(y)))


@op(
    naive=lambda x, y: x * jnp.log1p(y),
    reference=lambda mp, x, y: x * mp.log1p(y),
    domain=[(-inf, inf), (-1, inf)],
    edges=[
        ((2.0, 0.0), 0.0, (0.0, 2.0)),
        ((0.0, -1.0), 0.0, (lambda i: math.log(i.epsneg), 0.0)),
        ((0.0, -2.0), 0.0, (lambda i: math.log(i.epsneg), 0.0)),
        ((1.0, -1.0), lambda i: math.log(i.epsneg), (lambda i: math.log(i.epsneg), 0.0)),
        ((0.0, inf), 0.0, None),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="xlog1py",
    hint="x log(1 + y) with y that can reach -1: use robustops.xlog1py, which is 0 at x = 0.",
    cost="On GPU with gradient twice the naive form's bytes: the derivative asks where the value "
    "saturated, so XLA writes it and reads it again.",
)
def xlog1py(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Product x log(1 + y), 0 where x is 0, finite with finite derivatives for every finite input.

    For y <= -1 the logarithm goes on as a constant, as in `safe_log1p`; overflow saturates.

    Edges: x = 0 gives 0 for every y but NaN; NaN in either argument gives NaN.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: same meaning as `jax.scipy.special.xlog1py`.
    """
    x, y = promote("xlog1py", x, y)
    return _xlog1py(x, y)


# The divergences take x below the smallest normal number of the working precision as 0, and y below
# the smallest normal number of its dtype as that number.
def _vanishes(x):
    z = widen(x)
    return z < smallest(z.dtype)


def _below(y):
    return y < smallest(y.dtype)


def _positive(x, y):
    """Both in working precision inside the domain; 1 where x vanishes."""
    return jnp.where(_vanishes(x), 1, widen(x)), jnp.maximum(widen(y), smallest(y.dtype))


def _less_by_e(x, y):
    """x - y / e with all its digits, x being near y / e."""
    bits = (jnp.finfo(y.dtype).nmant + 1) // 2
    # Of a constant y XLA would add the terms up before they meet x; a select hides it.
    y = jnp.where(jnp.isnan(x), x, y)
    y_high = lax.reduce_precision(y, jnp.finfo(y.dtype).nexp, bits - 1)
    rest = _INVERSE_E
    for i in (1, 2):
        # Pieces of half the digits each, whose products with the halves of y are exact.
        piece = Fraction(math.floor(rest * 2 ** (i * bits + 1)), 2 ** (i * bits + 1))
        rest -= piece
        x = (x - float(piece) * y_high) - float(piece) * (y - y_high)
    return x - float(rest) * y


def _scaled(a, b):
    """Both times one power of two, so that no part of a small difference or quotient is subnormal.

    XLA may divide by way of the reciprocal, which is subnormal for the largest b.
    """
    k = jnp.where(b > 1, 2.0**-32, 2.0**32)
    return a * k, b * k


def _log_apart(a, b, q):
    """log(a / b) of positive numbers with the quotient q, right where they are not nearly equal."""
    # Beyond 2^64, where the quotient may overflow, that of the roots loses nothing.
    beyond = ~((q > 2.0**-64) & (q < 2.0**64))
    log = jnp.log(jnp.where(beyond, jnp.sqrt(a) / jnp.sqrt(b), q))
    return jnp.where(beyond, 2 * log, log)


def _log_of_quotient(s, within):
    """log((1 + s) / (1 - s)) for |s| < within: s is (a - b) / (a + b) of the quotient a / b."""
    terms = math.ceil(math.log(float(jnp.finfo(s.dtype).eps)) / math.log(within) / 2)
    u, series = s * s, jnp.zeros_like(s)
    for i in range(terms, 0, -1):
        series = 1 / (2 * i + 1) + u * series
    return 2 * s + 2 * s * u * series


def _quotient_in_logs(x, y, plus):
    """log(x / y) + plus of positive numbers, for plus 0 or 1; right near its zero too."""
    a, b = _scaled(x, y)
    q = a / b
    centre = math.exp(-plus)
    near = (q > centre / 2) & (q < centre * 2)
    d = _less_by_e(a, b) if plus else a - b  # exact within a factor of 2
    s = jnp.where(near, d, 0) / jnp.where(near, a + b * centre, 1)
    small = _log_of_quotient(s, 1 / 3)
    return jnp.where(near, small, _log_apart(x, y, q) + plus)


@total(
    lambda out, x, y, *, plus: jnp.where(_vanishes(x), 0, reciprocal(x)),
    lambda out, x, y, *, plus: jnp.where(_vanishes(x) | _below(y), 0, -reciprocal(y)),
)
def _log_quotient(x, y, *, plus):
    """log(x / y) + plus where x does not vanish, else 0."""
    return cast(jnp.where(_vanishes(x), 0, _quotient_in_logs(*_positive(x, y), plus)), x.dtype)


def _entr_limit(dtype):
    """The x at which x log(x) is the largest number of `dtype`."""
    x = largest(dtype)
    for _ in range(50):
        x = largest(dtype) / math.log(x)
    return x


@total(lambda out, x: jnp.where(x > _entr_limit(x.dtype), 0, -reciprocal(x)))
def _slope_of_entr(x):
    """-(1 + log x), right near its zero too; 0 where x vanishes or the value saturates."""
    z = widen(x)
    centre = float(z.dtype.type(_INVERSE_E))
    rest = float((Fraction(centre) - _INVERSE_E) / _INVERSE_E)  # 1 + log(centre)
    d = z - centre
    s = d * (1 / (z + centre))
    near = abs(d) < 0.12  # so that |s| < 0.2
    positive = jnp.maximum(z, smallest(z.dtype))
    y = jnp.where(near, _log_of_quotient(s, 0.2) + rest, 1 + jnp.log(positive))
    return cast(jnp.where((z < smallest(z.dtype)) | (z > _entr_limit(x.dtype)), 0, -y), x.dtype)


@total(lambda out, x: _slope_of_entr(x))
def _entr(x):
    z = widen(x)
    nought, least, most = constants(z, 0, smallest(z.dtype), -largest(x.dtype))
    y = -jnp.maximum(z, nought) * jnp.log(jnp.maximum(z, least))
    return cast(jnp.maximum(y, jnp.minimum(-z, most)) + nan_of(z), x.dtype)


@op(
    naive=lambda x: -x * jnp.log(x),
    reference=lambda mp, x: -x * mp.log(x),
    domain=[(0, inf)],
    edges=[
        ((1.0,), 0.0, -1.0),
        ((0.5,), 0.5 * math.log(2.0), math.log(2.0) - 1),
        ((0.0,), 0.0, 0.0),
        ((-1.0,), 0.0, 0.0),
        ((inf,), -inf, None),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="entr",
    hint="-p log(p) with p that can reach 0: use robustops.entr, which is 0 there.",
)
def entr(x: ArrayLike, /) -> jax.Array:
    """Elementwise entropy -x log(x), 0 at 0, finite with finite derivatives for every finite input.

    The derivative -(1 + log x) is right near its zero at 1/e too. Below the smallest normal number
    the value goes on as the constant 0, so at 0 the derivative is 0.

    Edges: negative x gives 0 (where `jax.scipy.special.entr` gives -inf); overflow saturates; inf
    gives -inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.

    Reference: same meaning as `jax.scipy.special.entr`.
    """
    (x,) = promote("entr", x)
    return _entr(x)


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, _log_quotient(x, y, plus=1)),
    lambda out, x, y: jnp.where(saturated(out) | _vanishes(x) | _below(y), 0, ratio(x, y, c=-1.0)),
)
def _rel_entr(x, y):
    q = _quotient_in_logs(*_positive(x, y), 0)
    return _times(jnp.where(_vanishes(x), 0, x), y, q)


@op(
    naive=lambda x, y: x * jnp.log(x / y),
    reference=lambda mp, x, y: x * mp.log(x / y),
    domain=[(0, inf), (0, inf)],
    edges=[
        ((1.0, 1.0), 0.0, (1.0, -1.0)),
        ((2.0, 1.0), 2 * math.log(2.0), (1 + math.log(2.0), -2.0)),
        ((0.0, 1.0), 0.0, (0.0, 0.0)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
        ((1.0, 0.0), lambda i: -math.log(i.tiny), (lambda i: 1 - math.log(i.tiny), 0.0)),
        ((-1.0, 1.0), 0.0, (0.0, 0.0)),
        ((1.0, inf), -inf, None),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="rel_entr",
    hint="p log(p / q) with p or q that can reach 0: use robustops.rel_entr, or robustops.kl_div, "
    "which is never negative.",
    cost="On CPU 2.5 times the naive form's time, with gradient 1.7 times, for two logarithms. "
    "With gradient twice its bytes on TPU and GPU: the derivative asks where the value saturated.",
)
def rel_entr(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Elementwise relative entropy x log(x / y), right near x = y, finite for every finite input.

    0 for x <= 0, with derivative 0. Where y is below the smallest normal number `tiny` of the
    dtype it counts as the constant tiny, so rel_entr(1, 0) is 87.3 in float32 (where
    `jax.scipy.special.rel_entr` gives inf). Overflow saturates.

    Edges: x = 0 gives 0 for every y but NaN; an infinite y gives -inf; NaN in either argument gives
    NaN.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: same meaning as `jax.scipy.special.rel_entr`.
    """
    x, y = promote("rel_entr", x, y)
    return _rel_entr(x, y)


@total(
    lambda out, x, y: jnp.where(_vanishes(x) | _below(y), 0, -reciprocal(y)),
    lambda out, x, y: jnp.where(_vanishes(x) | _below(y), 0, ratio(x, y, k=2)),
)
def _one_less_quotient(x, y):
    """1 - x / y, and with it the derivative of kl_div by y."""
    _, b = _positive(x, y)
    a = jnp.where(_vanishes(x), 0, widen(x))
    k = jnp.where(b > 1, 0.25, 1)  # see _scaled
    return narrow(((b - a) * k) / (b * k), x.dtype)


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, _log_quotient(x, y, plus=0)),
    lambda out, x, y: jnp.where(saturated(out) | _below(y), 0, _one_less_quotient(x, y)),
)
def _kl_div(x, y):
    a, b = _positive(x, y)
    # With s = (b - a) / (b + a), log(a / b) = -2 (s + s^3 / 3 + s^5 / 5 + ...), and the first term
    # takes the zero of b - a out: what is left is (b - a) s - 2 a s^3 (1 / 3 + s^2 / 5 + ...).
    d = b - a
    k = jnp.where(b > 1, 0.25, 1)
    s = (d * k) / (a * k + b * k)
    near = abs(s) < 0.5
    s = jnp.where(near, s, 0)
    u = s * s
    series = jnp.zeros_like(u)
    for i in range(25 if u.dtype == jnp.float64 else 11, 0, -1):
        series = 1 / (2 * i + 1) + u * series
    scaled_a, scaled_b = _scaled(a, b)
    log = _log_apart(a, b, scaled_a / scaled_b)
    apart = jnp.where(a > b, a * (log - 1) + b, d + a * log)
    apart = jnp.where(jnp.isinf(b) & jnp.isfinite(a), inf, apart)
    q = jnp.where(near, s * (d - a * (2 * u * series)), apart)
    q = jnp.where(_vanishes(x), b, q)
    return jnp.where(jnp.isinf(x) | jnp.isinf(y), cast(q, x.dtype), narrow(q, x.dtype))


@op(
    naive=lambda x, y: x * jnp.log(x / y) - x + y,
    reference=lambda mp, x, y: x * mp.log(x / y) - x + y,
    domain=[(0, inf), (0, inf)],
    edges=[
        ((1.0, 1.0), 0.0, (0.0, 0.0)),
        ((2.0, 1.0), 2 * math.log(2.0) - 1, (math.log(2.0), -1.0)),
        ((0.0, 1.0), 1.0, (0.0, 1.0)),
        ((0.0, 0.0), lambda i: float(i.tiny), (0.0, 0.0)),
        ((1.0, 0.0), lambda i: -math.log(i.tiny) - 1, (lambda i: -math.log(i.tiny), 0.0)),
        ((-1.0, 1.0), 1.0, (0.0, 1.0)),
        ((1.0, inf), inf, None),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="kl_div",
    hint="p log(p / q) - p + q loses all digits near p = q, and p or q can be 0: use "
    "robustops.kl_div.",
    cost="On CPU 3.3 times the naive form's time, with gradient twice, for series and logarithms. "
    "With gradient twice its bytes on TPU and GPU: the derivative asks where the value saturated.",
)
def kl_div(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Elementwise Kullback-Leibler term x log(x / y) - x + y, right at its double zero x = y too.

    Never negative. The sum over two distributions is their divergence. Near x = y it is formed from
    (y - x) / (y + x), where the direct sum would cancel to nothing. For x <= 0 it is y, with
    derivative 0 by x; where y is below the smallest normal number `tiny` of the dtype it counts as
    the constant tiny, so kl_div(1, 0) is 86.3 in float32 (where `jax.scipy.special.kl_div` gives
    inf). Overflow saturates.

    Edges: an infinite argument beside a finite one gives inf; NaN in either argument gives NaN.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.

    Reference: same meaning as `jax.scipy.special.kl_div`.
    """
    x, y = promote("kl_div", x, y)
    return _kl_div(x, y)
