"""Mean, variance and standard deviation over what takes part."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._numerics import held, narrow, saturated, widen
from .._spec import op, total
from .._zmul import zmul
from ._norms import size, unit
from ._reduce import Axis, count_of, finish, keep, pair, prepare, sum_of

inf = math.inf
nan = math.nan


def _rule_mean(out, arrays, tangents, *, axis):
    _, mask = pair(arrays)
    t = widen(tangents[0])
    return sum_of(keep(t, mask) / count_of(t, mask, axis, least=1), axis).astype(out.dtype)


@total(jvp=_rule_mean)
def _mean(x, mask=None, *, axis):
    z = widen(keep(x, mask))
    count = count_of(z, mask, axis, least=1)
    n = 2.0 ** math.ceil(math.log2(max(math.prod(x.shape[a] for a in axis), 1)))

    def by_two_sums(y):
        # Where the plain sum overflows, that of the elements over n does not.
        over = sum_of(z * (1 / n), axis)
        mean = jnp.where(jnp.isfinite(y), y / count, over / (count / n))
        return jnp.where(jnp.isfinite(over), narrow(mean, x.dtype), over.astype(x.dtype))

    def if_needed(y):
        plain = lambda y: narrow(y / count, x.dtype)
        return lax.cond(jnp.all(jnp.isfinite(y)), plain, by_two_sums, y)

    # On accelerators a branch costs more than the second sum, which rides along in one kernel, and
    # on CPU as much as the second sum of a small array.
    total = sum_of(z, axis)
    if z.size <= 4096:
        return by_two_sums(total)
    return lax.platform_dependent(total, cpu=if_needed, default=by_two_sums)


@op(
    naive=lambda x, axis=None: jnp.mean(x, axis=axis),
    reference=lambda mp, x: mp.fsum(x) / len(x),
    domain=[(-inf, inf)],
    conditioning=lambda mp, x: (mp.fsum(abs(v) for v in x) / len(x), 0),
    edges=[
        (([1.0, 2.0],), 1.5, [0.5, 0.5]),
        ((lambda i: [float(i.max)] * 7,), lambda i: float(i.max), [1 / 7] * 7),
        (([inf, 1.0],), inf, [0.5, 0.5]),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="the mean over an empty mask is 0 / 0: use robustops.safe_mean(x, where=mask), which "
    "gives 0.",
)
def safe_mean(
    x: ArrayLike,
    /,
    *,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Mean that cannot overflow on the way, 0 over an empty mask, blind to what is masked.

    sum of x_i over the True of `where`, divided by their number. NaN and inf at masked places
    change neither value nor gradient.

    Edges: an empty or fully masked slice gives 0 with derivative 0; the mean of 3e38 and 3e38 is
    3e38 in float32; inf gives inf, inf and -inf give NaN; NaN that takes part gives NaN.

    Args:
      x: real array; integers and booleans become floats.
      axis: axis or axes to reduce; None means all.
      where: boolean, True takes part; broadcast to `x`.
      keepdims: keep the reduced axes with size 1.
      dtype: dtype of the computation and the result; default that of `x`. Sums of float16 and
        bfloat16 accumulate in float32 in any case.

    Returns:
      Array of the reduced shape.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating.
    """
    arrays, axes = prepare("safe_mean", x, axis, where, dtype)
    return finish(_mean(*arrays, axis=axes), axes, keepdims, dtype)


@op(
    naive=lambda x, axis=None: jnp.sqrt(
        jnp.mean((x - jnp.mean(x, axis=axis, keepdims=True)) ** 2, axis=axis)
    ),
    reference=lambda mp, x: mp.sqrt(mp.fsum((v - mp.fsum(x) / len(x)) ** 2 for v in x) / len(x)),
    domain=[(-inf, inf)],
    # |x_i - mean| <= std sqrt(n): the largest component that a gradient of std can have.
    conditioning=lambda mp, x: (0, 1 / mp.sqrt(len(x))),
    edges=[
        (([1.0, 3.0],), 1.0, [-0.5, 0.5]),
        (
            (lambda i: [float(i.max) / 2, -float(i.max) / 2],),
            lambda i: float(i.max) / 2,
            [0.5, -0.5],
        ),
        (([2.0, 2.0],), 0.0, [0.0, 0.0]),
        (([5.0],), 0.0, [0.0]),
        (([inf, 1.0],), inf, None),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="the gradient of a standard deviation of equal values is 0 / 0, and E[x^2] - E[x]^2 loses "
    "all digits for a large mean: use robustops.safe_std.",
    cost="Three passes (magnitude, mean, squares), the naive form two; on CPU too where plain sums "
    "fit.",
)
def safe_std(
    x: ArrayLike,
    /,
    *,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
    ddof: int = 0,
) -> jax.Array:
    """Standard deviation with derivative 0 where all values are equal, right for a large mean.

    sqrt(sum (x_i - mean)^2 / (n - ddof)), n the number of True in `where`. The mean is removed
    twice, so that its own rounding does not show: mean 1e6 costs no digits.

    Edges: equal values, an empty or fully masked slice, and n <= ddof give 0 with derivative 0; inf
    gives inf; NaN that takes part gives NaN.

    Args:
      x: real array; integers become floats.
      axis: axis or axes to reduce; None means all.
      where: boolean, True takes part; broadcast to `x`.
      keepdims: keep the reduced axes with size 1.
      dtype: dtype of the computation and the result; default that of `x`. Sums of float16 and
        bfloat16 accumulate in float32 in any case.
      ddof: subtracted from the number of elements in the divisor; 1 for the sample estimate.

    Returns:
      Array of the reduced shape.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating.
    """
    arrays, axes = prepare("safe_std", x, axis, where, dtype)
    return finish(_std(*arrays, axis=axes, ddof=_integer("safe_std", ddof)), axes, keepdims, dtype)


def _integer(name: str, ddof: int) -> int:
    try:
        return operator.index(ddof)
    except TypeError:
        raise TypeError(f"{name}: ddof must be an int, got {ddof!r}.") from None


def _per_count(x, mask, axis, ddof):
    """1 over the divisor n - ddof, 0 where that is not positive."""
    n = count_of(widen(x), mask, axis) - ddof
    return jnp.where(n > 0, 1 / jnp.where(n > 0, n, 1), 0)


def _rule_std(out, arrays, tangents, *, axis, ddof):
    r = jnp.sqrt(_per_count(*pair(arrays), axis, ddof)).astype(out.dtype)
    u = jnp.where(saturated(out), 0, unit(*arrays, axis=axis, centre=True))
    return sum_of(zmul(u * r, tangents[0]), axis)


@total(jvp=_rule_std)
def _std(x, mask=None, *, axis, ddof):
    of = size(x, mask, axis, centre=True)
    s, r = of.scale, jnp.sqrt(of.square * _per_count(x, mask, axis, ddof))
    return jnp.where(s == inf, inf, narrow(jnp.where(s == inf, 0, r * s), x.dtype))


def _rule_var(out, arrays, tangents, *, axis, ddof):
    x, mask = pair(arrays)
    of = size(x, mask, axis, centre=True)
    slope = held(2 * _per_count(x, mask, axis, ddof) * of.bring(x, mask) * of.scale, x.dtype)
    return sum_of(zmul(jnp.where(saturated(out), 0, slope), tangents[0]), axis)


@total(jvp=_rule_var)
def _var(x, mask=None, *, axis, ddof):
    of = size(x, mask, axis, centre=True)
    s, r = of.scale, of.square * _per_count(x, mask, axis, ddof)
    return jnp.where(s == inf, inf, narrow(jnp.where(s == inf, 0, r * s * s), x.dtype))


@op(
    naive=lambda x, axis=None: jnp.mean(
        (x - jnp.mean(x, axis=axis, keepdims=True)) ** 2, axis=axis
    ),
    reference=lambda mp, x: mp.fsum((v - mp.fsum(x) / len(x)) ** 2 for v in x) / len(x),
    domain=[(-inf, inf)],
    # 2 |x_i - mean| / n, the largest component of the gradient.
    conditioning=lambda mp, x: (0, 2 * max(abs(v - mp.fsum(x) / len(x)) for v in x) / len(x)),
    edges=[
        (([1.0, 3.0],), 1.0, [-1.0, 1.0]),
        ((lambda i: [float(i.max), 0.0],), lambda i: float(i.max), [0.0, 0.0]),
        (([2.0, 2.0],), 0.0, [0.0, 0.0]),
        (([5.0],), 0.0, [0.0]),
        (([inf, 1.0],), inf, None),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="E[x^2] - E[x]^2 loses all digits for a large mean and can be negative, and a fully "
    "masked slice is 0 / 0: use robustops.safe_var.",
    cost="Three passes (magnitude, mean, squares), the naive form two; on CPU too where plain sums "
    "fit.",
)
def safe_var(
    x: ArrayLike,
    /,
    *,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
    ddof: int = 0,
) -> jax.Array:
    """Variance, right for a large mean, 0 over an empty mask, saturating instead of overflowing.

    sum (x_i - mean)^2 / (n - ddof), n the number of True in `where`. The mean is removed twice, so
    that its own rounding does not show: mean 1e6 costs no digits.

    Edges: an empty or fully masked slice and n <= ddof give 0 with derivative 0; a variance beyond
    the largest finite number saturates (values apart by 1e20 have one in float32: for them use
    `safe_std`); inf gives inf; NaN that takes part gives NaN.

    Args:
      x: real array; integers become floats.
      axis: axis or axes to reduce; None means all.
      where: boolean, True takes part; broadcast to `x`.
      keepdims: keep the reduced axes with size 1.
      dtype: dtype of the computation and the result; default that of `x`. Sums of float16 and
        bfloat16 accumulate in float32 in any case.
      ddof: subtracted from the number of elements in the divisor; 1 for the sample estimate.

    Returns:
      Array of the reduced shape.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating, a
        `ddof` that is no integer.
    """
    arrays, axes = prepare("safe_var", x, axis, where, dtype)
    return finish(_var(*arrays, axis=axes, ddof=_integer("safe_var", ddof)), axes, keepdims, dtype)
