"""Log-sum-exp and softmax made total, and right where one entry dominates."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import largest, narrow, power_of_two, promote, saturated, widen
from .._spec import op, total
from .._zmul import zmul
from ._elementwise import safe_exp
from ._families import reciprocal
from ._reduce import Axis, count_of, keep, max_of, pair, prepare, settle, sum_of

inf = math.inf
nan = math.nan


def shifted_exp(x, axis):
    """Return m = max x (0 if that is infinite or NaN) and exp(x - m).

    exp(x - m) carries a correction for the rounding of x - m, else its error would grow to
    |x - m| / 2 ulp. An infinite x counts as the largest finite number.
    """
    x = jnp.minimum(x, largest(x.dtype))
    m = max_of(x, axis)
    m = jnp.where(jnp.isfinite(m), m, 0)
    # Knuth's two-sum. exp is 0 below -800 in every dtype; bounded there, nothing becomes NaN.
    d, a = jnp.maximum(x - m, -800), jnp.maximum(x, m - 800)
    v = d - a
    lost = (a - (d - v)) - (m + v)
    return settle(m, jnp.exp(d) * (1 + lost))


def log_of_sum(e, axis):
    """Return log(sum e) for 0 <= e <= 1, at least one of them 1, right where the sum is near 1.

    Below 1.5 only one e is 1, and the sum of the others has the digits that 1 + rest would lose.
    """
    rest = sum_of(jnp.where(e == 1, 0, e), axis)
    e, rest = settle(e, rest)
    total, rest = settle(sum_of(e, axis), rest)
    return jnp.where(total < 1.5, jnp.log1p(rest), jnp.log(jnp.maximum(total, 1)))


def _rule_logsumexp(out, arrays, tangents, *, axis, keepdims):
    t = widen(tangents[0])
    return sum_of(zmul(wide_softmax(arrays, axis), t), axis, keepdims).astype(out.dtype)


@total(jvp=_rule_logsumexp)
def _logsumexp(x, mask=None, *, axis, keepdims):
    z = widen(keep(x, mask, -inf))
    m, e = shifted_exp(z, axis)
    y = narrow(m + log_of_sum(e, axis), x.dtype)
    top = max_of(z, axis)
    y = jnp.where(jnp.isinf(top), top.astype(x.dtype), y)
    if mask is not None or 0 in x.shape:
        empty = count_of(x, mask, axis) == 0
        y = jnp.where(empty, -largest(x.dtype), y)
    return y if keepdims else jnp.squeeze(y, axis)


@op(
    naive=lambda x, axis=None: jnp.log(jnp.sum(jnp.exp(x), axis=axis)),
    reference=lambda mp, x: mp.log(mp.fsum(mp.exp(v) for v in x)),
    domain=[(-inf, inf)],
    conditioning=lambda mp, x: (max(abs(v) for v in x), 0),
    edges=[
        (([0.0, 0.0],), math.log(2.0), [0.5, 0.5]),
        (([1000.0, 0.0],), 1000.0, [1.0, 0.0]),
        (([-1000.0, -1000.0],), -1000.0 + math.log(2.0), [0.5, 0.5]),
        (([-inf, 1.0],), 1.0, [0.0, 1.0]),
        (([-inf, -inf],), -inf, [0.0, 0.0]),
        (([inf, 1.0],), inf, [1.0, 0.0]),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    replaces="logsumexp",
    hint="log(sum(exp(x))) overflows, and is log(0) where every x is very negative: use "
    "robustops.logsumexp.",
    cost="One pass more than the unstable form, for the maximum.",
)
def logsumexp(
    a: ArrayLike,
    /,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Any:
    """Logarithm of a sum of exponentials, with finite derivatives even where every term is 0.

    log(sum_i b_i exp(a_i)) along `axis`; the derivative by a_i is its softmax weight.

    Edges: all -inf gives -inf, the limit, with derivative 0. An empty or fully masked slice gives
    the smallest finite number, since finite input must give a finite value (0 times it is 0). A
    single inf gives inf. NaN gives NaN. Near a result of 0 the absolute error is that of the
    largest element: the sum is conditioned so.

    Args:
      a: real array.
      axis: axis or axes to reduce; None means all.
      b: factors of the exponentials; `a` and `b` broadcast. Where the sum is negative the result is
        NaN, unless `return_sign=True`; where it cancels to 0, the smallest finite number.
      keepdims: keep the reduced axes with size 1.
      return_sign: also return the sign of the sum, and the logarithm of its magnitude.
      where: boolean, True takes part; broadcast to `a`.

    Returns:
      Array of the dtype of `a`, or the pair (logarithm, sign).

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: complex input, or a `where` that is not boolean.
    """
    if b is None:
        arrays, axes = prepare("logsumexp", a, axis, where)
        y = _logsumexp(*arrays, axis=axes, keepdims=bool(keepdims))
        if not return_sign:
            return y
        return y, jnp.where(jnp.isnan(y), y, jnp.where(y > -largest(y.dtype), 1, 0).astype(y.dtype))
    x, b = jnp.broadcast_arrays(*promote("logsumexp", a, b))
    (_, *mask), axes = prepare("logsumexp", x, axis, where)
    y = _logsumexp_of_terms(x, b, *mask, axis=axes)
    sign = jax.lax.stop_gradient(jnp.sign(_scaled_sum(x, b, *mask, axis=axes)[0])).astype(x.dtype)
    if not return_sign:
        y = jnp.where(sign < 0, nan, y)
        return y if keepdims else jnp.squeeze(y, axes)
    return (y, sign) if keepdims else (jnp.squeeze(y, axes), jnp.squeeze(sign, axes))


def _scaled_sum(x, b, mask=None, *, axis):
    """Return r, m and s of sum b exp(x) = r s exp(m): r of order 1, m the largest x, s a power."""
    z, b = widen(x), widen(b)
    part = b != 0 if mask is None else mask & (b != 0)
    z, b = jnp.where(part, z, -inf), jnp.where(part, b, 0)
    m = jax.lax.stop_gradient(max_of(z, axis))
    s = power_of_two(jnp.max(abs(b), axis=axis, keepdims=True, initial=0))
    # Terms near the largest are 1 + expm1: where the factors cancel, the small parts remain.
    d = z - jnp.where(jnp.isfinite(m), m, 0)
    near = (d > -0.5) & (z > -inf)
    f = b / s
    r = sum_of(jnp.where(near, f, 0), axis)
    small = jnp.where(near, jnp.expm1(d), jnp.where(z > -inf, jnp.exp(d), 0))
    return r + sum_of(zmul(f, small), axis), m, s


def _rule_of_terms(out, arrays, tangents, *, axis):
    x, b, *mask = arrays
    r, m, s = _scaled_sum(x, b, *mask, axis=axis)
    # d/da = b exp(a) / sum and d/db = exp(a) / sum, 0 where the sum is 0.
    weight = zmul(safe_exp(widen(x) - jnp.where(jnp.isfinite(m), m, 0)), reciprocal(r))
    b = widen(b)
    if mask:
        weight, b = jnp.where(mask[0], weight, 0), jnp.where(mask[0], b, 0)
    parts = [
        zmul(narrow(slope, out.dtype), t)
        for slope, t in zip((zmul(weight, b / s), weight / s), tangents[:2], strict=True)
        if t is not None
    ]
    return sum_of(functools.reduce(jnp.add, parts), axis)


@total(jvp=_rule_of_terms)
def _logsumexp_of_terms(x, b, mask=None, *, axis):
    r, m, s = _scaled_sum(x, b, *(() if mask is None else (mask,)), axis=axis)
    log = jnp.log(jnp.where(r == 0, 1, abs(r))) + jnp.log(s)
    y = narrow(jnp.where(jnp.isfinite(m), m, 0) + log, x.dtype)
    y = jnp.where(jnp.isinf(m) & ~jnp.isnan(r), m.astype(x.dtype), y)
    part = b != 0 if mask is None else mask & (b != 0)
    nothing = ~jnp.any(part, axis, keepdims=True) | ((r == 0) & jnp.isfinite(m))
    return jnp.where(nothing, -largest(x.dtype), y)


def wide_softmax(arrays, axis):
    """The softmax in working precision: weights rounded to 16 bits do not sum to 1."""
    x, *mask = arrays
    return settle(_softmax(widen(x), *mask, axis=axis))[0]


def spread(p, t, axis):
    """Return t - sum(p t) for weights p, without losing digits where one weight is near 1.

    It depends on differences of tangents only. They are taken from the tangent of the entry with
    p > 1/2, if there is one, so that the 1 - p that it needs is formed from the other weights.
    """
    heavy = p > 0.5
    t = jnp.where(heavy, 0, t - sum_of(jnp.where(heavy, t, 0), axis))
    return t - sum_of(zmul(p, t), axis)


def rule_softmax(out, arrays, tangents, *, axis):
    """The derivative p (t - sum(p t)) of a softmax p along t."""
    _, mask = pair(arrays)
    p = wide_softmax(arrays, axis)
    return zmul(p, spread(p, widen(keep(tangents[0], mask)), axis)).astype(out.dtype)


@total(jvp=rule_softmax)
def _softmax(x, mask=None, *, axis):
    _, e = shifted_exp(widen(keep(x, mask, -inf)), axis)
    # The sum is 0 if all are -inf, else at least 1.
    return keep((e / jnp.maximum(sum_of(e, axis), 0.5)).astype(x.dtype), mask)


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
    cost="One pass more than the unstable form, for the maximum. On CPU 1.3x the time of "
    "jax.nn.softmax, with gradient 4x to 6x: the rounding of x - max, two sums in the gradient.",
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
    return _softmax(*arrays, axis=axes)


def _rule_log_softmax(out, arrays, tangents, *, axis):
    _, mask = pair(arrays)
    t = spread(wide_softmax(arrays, axis), widen(keep(tangents[0], mask)), axis)
    constant = jnp.isinf(out) | saturated(out)
    return keep(jnp.where(constant, 0, t.astype(out.dtype)), mask)


@total(jvp=_rule_log_softmax)
def _log_softmax(x, mask=None, *, axis):
    z = widen(keep(x, mask, -inf))
    m, e = shifted_exp(z, axis)
    y = (jnp.minimum(z, largest(z.dtype)) - m) - log_of_sum(e, axis)
    # Finite input gives a finite value; -inf in gives -inf out, beside a NaN too NaN.
    y = jnp.where(z == -inf, y.astype(x.dtype), narrow(y, x.dtype))
    return keep(y, mask, -largest(x.dtype))


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
    cost="One pass more than the unstable form, for the maximum.",
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
