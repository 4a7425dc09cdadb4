"""Logarithms of sums and means of exponentials, right where one entry dominates."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import largest, narrow, power_of_two, promote, widen
from .._spec import op, total
from .._zmul import zmul
from ._exponentials import safe_exp
from ._families import reciprocal
from ._reduce import Axis, count_of, keep, less, max_of, prepare, sum_of
from ._softmax import exp_less, log_beside, log_of_sum, shift, wide_softmax

inf = math.inf
nan = math.nan


def _rule_logsumexp(out, arrays, tangents, *, axis, keepdims):
    t = widen(tangents[0])
    return sum_of(zmul(wide_softmax(arrays, axis, alone=True), t), axis, keepdims).astype(out.dtype)


@total(jvp=_rule_logsumexp)
def _logsumexp(x, mask=None, *, axis, keepdims):
    z = widen(keep(x, mask, -inf))
    m = shift(z, axis)
    log = log_beside(z, m, axis, 1, lambda z, m: log_of_sum(z, m, axis))
    return _finished(m + log, x, mask, axis, keepdims)


@total(jvp=_rule_logsumexp)
def _logmeanexp(x, mask=None, *, axis, keepdims):
    z = widen(keep(x, mask, -inf))
    m = shift(z, axis)
    count = count_of(z, mask, axis, least=1)

    def careful(z, m):
        # Where the mean of exp(x - m) is near 1, expm1 has the digits of its distance from 1.
        d, _ = less(z, m)
        below = sum_of(keep(jnp.expm1(d), mask), axis) / count
        near = below > -0.5
        mean = jnp.where(near, 1, sum_of(exp_less(z, m), axis) / count)
        return jnp.where(near, jnp.log1p(jnp.where(near, below, 0)), jnp.log(mean))

    return _finished(m + log_beside(z, m, axis, count, careful), x, mask, axis, keepdims)


def _finished(y, x, mask, axis, keepdims):
    """The result where the largest element is finite, that element where it is not."""
    top = max_of(widen(keep(x, mask, -inf)), axis)
    y = jnp.where(jnp.isinf(top), top.astype(x.dtype), narrow(y, x.dtype))
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


@op(
    naive=lambda x, axis=None: jnp.log(jnp.mean(jnp.exp(x), axis=axis)),
    reference=lambda mp, x: mp.log(mp.fsum(mp.exp(v) for v in x) / len(x)),
    domain=[(-inf, inf)],
    conditioning=lambda mp, x: (max(abs(v) for v in x), 0),
    edges=[
        (([0.0, 0.0],), 0.0, [0.5, 0.5]),
        (([1000.0, 0.0],), 1000.0 - math.log(2.0), [1.0, 0.0]),
        (([-1000.0, -1000.0],), -1000.0, [0.5, 0.5]),
        (([-inf, 1.0],), 1.0 - math.log(2.0), [0.0, 1.0]),
        (([-inf, -inf],), -inf, [0.0, 0.0]),
        (([inf, 1.0],), inf, [1.0, 0.0]),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    replaces="logmeanexp",
    hint="log(mean(exp(x))) overflows, and is log(0) where every x is very negative: use "
    "robustops.logmeanexp.",
    cost="A pass more than the unstable form, for the maximum, and expm1 beside exp: on CPU with "
    "gradient 1.2 times its time.",
)
def logmeanexp(
    x: ArrayLike,
    /,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """Logarithm of a mean of exponentials, right where all are nearly equal too.

    log(sum_i exp(x_i) / n) along `axis`, n the number of True in `where`; the derivative by x_i is
    its softmax weight. It lies between the mean and the maximum of x.

    Edges: all -inf gives -inf with derivative 0; an empty or fully masked slice gives the smallest
    finite number, as `logsumexp` does; inf gives inf; NaN that takes part gives NaN. Near a result
    of 0 the absolute error is that of the largest element: the mean is conditioned so.

    Args:
      x: real array; integers become floats.
      axis: axis or axes to reduce; None means all.
      where: boolean, True takes part; broadcast to `x`.
      keepdims: keep the reduced axes with size 1.

    Returns:
      Array of the reduced shape and the dtype of `x`.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, or a `where` that is not boolean.

    Reference: same meaning and signature as `jax.nn.logmeanexp`.
    """
    arrays, axes = prepare("logmeanexp", x, axis, where)
    return _logmeanexp(*arrays, axis=axes, keepdims=bool(keepdims))
