"""Softmax and its logarithm made total, and right where one entry dominates."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._apart import apart, constants
from .._numerics import cast, largest, nan_of, widen
from .._spec import op, total
from .._zmul import zmul
from ._reduce import Axis, keep, max_of, pair, prepare, sum_of

inf = math.inf
nan = math.nan


def shift(x, axis):
    """Return max x: the largest finite number for inf, and 0 for -inf and NaN."""
    m = max_of(x, axis)
    return jnp.where(m > -inf, jnp.minimum(m, largest(x.dtype)), 0)


def exp_less(x, m):
    """Return exp(x - m) for x <= m, as if x - m were not rounded; 1 where x is inf.

    The select at the end keeps the product out of the sums that it goes into. XLA for CPU sums by a
    library, which takes arithmetic along at several times the price of one loop that writes it.
    """
    far = x - m < -800  # exp is 0 there in every dtype
    z = jnp.where(far, m, x)
    z = jnp.where(z > m, m, z)  # not maximum and minimum: a NaN stays
    d = z - m
    # Knuth's two-sum: without what rounding took from z - m, |d| / 2 ulp would be lost.
    v = d - z
    lost = (z - (d - v)) - (m + v)
    return jnp.where(far, 0, jnp.exp(d) * (1 + lost))


def at_least(s, bound):
    """Return max(s, bound), NaN for NaN; by a select, so that a sum ends here (see `exp_less`)."""
    return jnp.where(s < bound, bound, s)


def row(y):
    """Return `y`, a number for each row, on CPU by a select: else XLA writes it as whole rows."""
    return lax.platform_dependent(y, cpu=lambda y: at_least(y, -inf), default=lambda y: y)


def sum_of_exp(x, m, axis):
    """Return sum exp(x - m), m being the largest x: the largest finite number for inf."""
    return lax.platform_dependent(
        x,
        m,
        cpu=lambda x, m: _sum_in_one_pass(x, m, axis),
        default=lambda x, m: sum_of(exp_less(x, m), axis),
    )


def _sum_in_one_pass(x, m, axis):
    (big,) = constants(x, largest(x.dtype))
    return sum_of(jnp.exp(jnp.minimum(x, big) + nan_of(x) - apart(m)), axis)


def exp_and_sums(x, m, axis):
    """Return exp(x - m), the sum, the sum without terms of 1, and the logarithm of the sum.

    m being the largest x. Where the sum is below 2 only one term is 1, and the others have the
    digits that 1 + rest loses: the logarithm is right near 0.
    """
    e = exp_less(x, m)
    total, rest = sum_of(e, axis), sum_of(e - jnp.floor(e), axis)
    # A logarithm taken along into the pass of the sum makes that pass five times as long.
    log = jnp.where(total < 1.5, jnp.log1p(at_least(rest, 0)), jnp.log(at_least(total, 1)))
    return e, total, rest, log


def log_of_sum(x, m, axis):
    """Return log(sum exp(x - m)), m being the largest x, right where the sum is near 1."""
    return exp_and_sums(x, m, axis)[-1]


def log_beside(x, m, axis, count, careful):
    """Return log(sum exp(x - m) / count), right when it is added to m; `careful(x, m)` gives it.

    On CPU by the sum alone, one pass, unless what that loses shows in the result.
    """

    def if_it_shows(x, m):
        # Where the mean, or a sum below 1.5, is near 1 its logarithm has lost 2^-24: beside an m of
        # 1 or more that is nothing.
        mean = _sum_in_one_pass(x, m, axis) / count
        shows = jnp.any((mean < 1.5) & (mean > 0.5) & (abs(m) < 1))
        plain = lambda x, m: jnp.log(jnp.where(mean == 0, 1, mean))
        return lax.cond(shows, careful, plain, x, m)

    return lax.platform_dependent(x, m, cpu=if_it_shows, default=careful)


def wide_softmax(arrays, axis, alone=False):
    """The softmax in working precision: weights rounded to 16 bits do not sum to 1.

    `alone` tells that nothing else needs exp(x - m): on CPU it is then not written to memory.
    """
    x, *mask = arrays
    return _softmax(widen(x), *mask, axis=axis, alone=alone)


def spread(p, t, axis):
    """Return t - sum(p t) for weights p, without losing digits where one weight is near 1.

    It depends on differences of tangents only. They are taken from the tangent of the entry with
    p > 1/2, if there is one, so that the 1 - p that it needs is formed from the other weights.
    """
    heavy = p > 0.5
    t = jnp.where(heavy, 0, t - sum_of(jnp.where(heavy, t, 0), axis))
    return t - sum_of(zmul(p, t), axis)


def rule_softmax(out, arrays, tangents, *, axis, alone=False):
    """The derivative p (t - sum(p t)) of a softmax p along t."""
    _, mask = pair(arrays)
    p = wide_softmax(arrays, axis, alone)
    return zmul(p, spread(p, widen(keep(tangents[0], mask)), axis)).astype(out.dtype)


@total(jvp=rule_softmax)
def _softmax(x, mask=None, *, axis, alone):
    z = widen(keep(x, mask, -inf))
    m = shift(z, axis)
    e = exp_less(z, m)
    # The sum is 0 if all are -inf, else at least 1.
    s = at_least(sum_of_exp(z, m, axis) if alone else sum_of(e, axis), 0.5)
    return keep((e / s).astype(x.dtype), mask)


@op(
    naive=lambda x, axis=-1: jnp.exp(x) / jnp.sum(jnp.exp(x), axis=axis, keepdims=True),
    reference=lambda mp, x: [mp.exp(v) / mp.fsum(mp.exp(w) for w in x) for v in x],
    domain=[(-inf, inf)],
    edges=[
        (([0.0, 0.0],), [0.5, 0.5], [[0.25, -0.25], [-0.25, 0.25]]),
        (([1e4, 0.0],), [1.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]),
        (([-inf, 1.0],), [0.0, 1.0], [[0.0, 0.0], [0.0, 0.0]]),
        (([-inf, -inf],), [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]),
        (([inf, 1.0],), [1.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]),
        (([nan, 1.0],), [nan, nan], None),
    ],
    ulps=(4, 8),
    replaces="softmax",
    hint="a softmax over a row that is masked everywhere is 0 / 0: use "
    "robustops.softmax(where=mask).",
    cost="One pass more than the unstable form, for the maximum. On CPU with gradient 1.9 times "
    "the time of jax.nn.softmax (the rounding of x - max, and two sums more).",
)
def softmax(x: ArrayLike, /, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Softmax exp(x_i) / sum_j exp(x_j), 0 on a fully masked row, with accurate derivatives.

    The derivative p_i (1 - p_i) of a confident entry is formed from the other entries, so it keeps
    its digits where 1 - p_i rounds to 0.

    Edges: masked elements and -inf give 0, so a row of them gives zeros with derivative 0; one inf
    gives 1 (several share it); NaN gives NaN along its row.

    Args:
      x: real array.
      axis: axis or axes that sum to 1; None means all.
      where: boolean, True takes part; broadcast to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, or a `where` that is not boolean.
    """
    arrays, axes = prepare("softmax", x, axis, where)
    return _softmax(*arrays, axis=axes, alone=True)


def _rule_log_softmax(out, arrays, tangents, *, axis):
    _, mask = pair(arrays)
    t = spread(wide_softmax(arrays, axis), widen(keep(tangents[0], mask)), axis)
    constant = abs(out) >= largest(out.dtype)
    return keep(jnp.where(constant, 0, t.astype(out.dtype)), mask)


@total(jvp=_rule_log_softmax)
def _log_softmax(x, mask=None, *, axis):
    z = widen(keep(x, mask, -inf))
    m = shift(z, axis)
    # Finite input gives a finite value; -inf in gives -inf out, beside a NaN too NaN.
    fall = z - m
    y = jnp.where(fall > 0, 0, fall) - log_of_sum(z, m, axis)
    low = -largest(x.dtype)
    y = jnp.where(y < low, jnp.where(z > -inf, low, y), y)
    return keep(cast(y, x.dtype), mask, low)


@op(
    naive=lambda x, axis=-1: jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x), axis=axis, keepdims=True)),
    reference=lambda mp, x: [v - mp.log(mp.fsum(mp.exp(w) for w in x)) for v in x],
    domain=[(-inf, inf)],
    edges=[
        (([0.0, 0.0],), [-math.log(2.0)] * 2, [[0.5, -0.5], [-0.5, 0.5]]),
        (([1e4, 0.0],), [0.0, -1e4], [[0.0, 0.0], [-1.0, 1.0]]),
        (([-inf, 1.0],), [-inf, 0.0], None),
        (([-inf, -inf],), [-inf, -inf], [[0.0, 0.0], [0.0, 0.0]]),
        (([nan, 1.0],), [nan, nan], None),
    ],
    ulps=(4, 8),
    replaces="log_softmax",
    hint="log(softmax(x)) is log(0) for a confident model: use robustops.log_softmax, or "
    "robustops.losses.softmax_cross_entropy.",
    cost="One pass more than the unstable form, for the maximum. On CPU with gradient 1.9 times "
    "the time of jax.nn.log_softmax (the rounding of x - max, and three sums more).",
)
def log_softmax(x: ArrayLike, /, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    """Logarithm of the softmax, right to a few ulp for the confident entry too.

    x_i - logsumexp(x). The largest entry is -log1p(sum of the others), which is -2e-9 where
    subtracting gives 0.

    Edges: -inf gives -inf, a row of only -inf has derivative 0; masked elements give the smallest
    finite number (0 times it is 0); a difference beyond it saturates; NaN gives NaN along its row.

    Args:
      x: real array.
      axis: axis or axes that are normalised; None means all.
      where: boolean, True takes part; broadcast to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, or a `where` that is not boolean.
    """
    arrays, axes = prepare("log_softmax", x, axis, where)
    return _log_softmax(*arrays, axis=axes)
