"""Reductions made total: logsumexp, softmax, norm, mean, standard deviation."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import (
    broadcast_mask,
    cast,
    largest,
    narrow,
    normalize_axes,
    power_of_two,
    promote,
    saturated,
    widen,
)
from .._spec import op, total
from .._zmul import zmul
from ._families import reciprocal

inf = math.inf
nan = math.nan
Axis = int | Sequence[int] | None


def _prepare(name: str, x: ArrayLike, axis: Axis, where: ArrayLike | None, dtype: Any = None):
    """Return the arrays (x, or x and its mask) and the axes of a reduction."""
    (x,) = promote(name, x)
    if dtype is not None:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: dtype must be a real floating dtype, got {dtype}.")
        x = x.astype(dtype)
    mask = broadcast_mask(name, where, x.shape)
    return (x,) if mask is None else (x, mask), normalize_axes(name, axis, x.ndim)


def _keep(x, mask, fill=0.0):
    """`x` with masked elements replaced, so that nothing they hold is ever computed with."""
    return x if mask is None else jnp.where(mask, x, fill)


def _sum(x, axis, keepdims=True):
    return jnp.sum(x, axis=axis, keepdims=keepdims)


def _expand(x, axis, keepdims):
    return x if keepdims else jnp.expand_dims(x, axis)


def _count(x, mask, axis, least=0):
    """How many elements take part in each slice, at least `least`, with kept axes."""
    if mask is None:
        return jnp.asarray(max(math.prod(x.shape[a] for a in axis), least), x.dtype)
    return jnp.maximum(_sum(mask.astype(jnp.int32), axis), least).astype(x.dtype)


def _max(x, axis):
    return jnp.max(x, axis=axis, keepdims=True, initial=-inf)


# ------------------------------------------------------------- log-sum-exp and softmax


def _shifted_exp(x, axis):
    """Return m = max x, exp(x - m), and the sum of exp(x - m) less 1.

    exp(x - m) carries a correction for the rounding of x - m, else its error would grow to
    |x - m| / 2 ulp. The sum is split so that log1p keeps the digits that 1 + s would lose: with k
    entries at the maximum it is (k - 1) + the rest.
    """
    m = _max(x, axis)
    at_top = (x == m) & (m > -inf)
    finite = jnp.isfinite(m)
    shift = jnp.where(finite, m, 0)
    d = jnp.where(finite, x - shift, -inf)
    lost = _lost_in_difference(x, shift, d)
    e = jnp.where(at_top, 1, jnp.exp(d) * (1 + lost))
    rest = _sum(jnp.where(at_top, 0, e), axis) + (_sum(at_top.astype(x.dtype), axis) - 1)
    return m, e, rest


def _lost_in_difference(a, b, d):
    """The rounding error of d = a - b (Knuth's two-sum), 0 where d is not finite."""
    a, d = (jnp.where(jnp.isfinite(d), v, 0) for v in (a, d))
    b = jnp.where(d == a - b, b, 0)
    v = d - a
    return (a - (d - v)) - (b + v)


def _rule_logsumexp(out, arrays, tangents, *, axis, keepdims):
    x, *mask = arrays
    p = _softmax(x, *mask, axis=axis)
    return _sum(zmul(p, tangents[0]), axis, keepdims)


@total(jvp=_rule_logsumexp)
def _logsumexp(x, mask=None, *, axis, keepdims):
    m, _, rest = _shifted_exp(widen(_keep(x, mask, -inf)), axis)
    y = narrow(jnp.where(jnp.isfinite(m), m, 0) + jnp.log1p(jnp.maximum(rest, 0)), x.dtype)
    y = jnp.where(jnp.isfinite(m), y, m.astype(x.dtype))
    if mask is not None or 0 in x.shape:
        empty = _count(x, mask, axis) == 0
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
      b: factors of the exponentials, broadcast to `a`; may be negative with `return_sign=True`.
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
        arrays, axes = _prepare("logsumexp", a, axis, where)
        y = _logsumexp(*arrays, axis=axes, keepdims=bool(keepdims))
        if not return_sign:
            return y
        return y, jnp.where(jnp.isnan(y), y, jnp.where(y > -largest(y.dtype), 1, 0).astype(y.dtype))
    x, b = jnp.broadcast_arrays(*promote("logsumexp", a, b))
    arrays, axes = _prepare("logsumexp", x, axis, where)
    mask = (b != 0) if len(arrays) == 1 else (b != 0) & arrays[1]
    # b exp(a) = sign(b) exp(a + log|b|): two sums of positive terms.
    terms = x + jnp.log(jnp.where(mask, abs(b), 1))
    up = _logsumexp(terms, mask & (b > 0), axis=axes, keepdims=bool(keepdims))
    down = _logsumexp(terms, mask & (b < 0), axis=axes, keepdims=bool(keepdims))
    top, low = jnp.maximum(up, down), jnp.minimum(up, down)
    gap = jnp.where(top == low, -1, low - top)
    y = jnp.where(top == low, -largest(x.dtype), top + jnp.log1p(-jnp.exp(gap)))
    sign = jnp.where(top == low, 0, jnp.where(up > down, 1, -1)).astype(x.dtype)
    if return_sign:
        return y, sign
    return jnp.where(sign < 0, nan, y)


def _lone_top(size, axis):
    """True at the one largest element of a slice; nowhere where several share the maximum."""
    top = (size == _max(size, axis)) & (size > -inf)
    return top & (_sum(top.astype(jnp.int32), axis) == 1)


def _centred_tangent(x, mask, t, axis):
    """Return t less the tangent of the largest element, 0 at that element.

    The derivative of a softmax depends on differences of tangents only. Taken from the largest
    element they keep the digits that t - sum(p t) loses where p is near 1. Under a tie p <= 1/2.
    """
    t = widen(_keep(t, mask))
    lone = _lone_top(_keep(x, mask, -inf), axis)
    return _keep(jnp.where(lone, 0, t - _sum(jnp.where(lone, t, 0), axis)), mask)


def _rule_softmax(out, arrays, tangents, *, axis):
    t = _centred_tangent(*_pair(arrays), tangents[0], axis)
    p = widen(out)
    return zmul(p, t - _sum(zmul(p, t), axis)).astype(out.dtype)


def _pair(arrays) -> tuple[Any, Any]:
    """The array of a reduction and its mask or None."""
    return arrays[0], arrays[1] if len(arrays) == 2 else None


@total(jvp=_rule_softmax)
def _softmax(x, mask=None, *, axis):
    m, e, rest = _shifted_exp(widen(_keep(x, mask, -inf)), axis)
    e = jnp.where(jnp.isnan(m), nan, e)
    return _keep((e / jnp.maximum(1 + rest, 0.5)).astype(x.dtype), mask)


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
    cost="One pass more than the unstable form, for the maximum; with gradient 1.25x its bytes.",
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
    arrays, axes = _prepare("softmax", x, axis, where)
    return _softmax(*arrays, axis=axes)


def _rule_log_softmax(out, arrays, tangents, *, axis):
    x, mask = _pair(arrays)
    t = _centred_tangent(x, mask, tangents[0], axis)
    # A row without a maximum, all -inf, is constant.
    alive = _max(_keep(x, mask, -inf), axis) != -inf
    p = widen(_softmax(*arrays, axis=axis))
    d = (t - _sum(zmul(p, t), axis)).astype(out.dtype)
    return _keep(jnp.where(alive & ~saturated(out), d, 0), mask)


@total(jvp=_rule_log_softmax)
def _log_softmax(x, mask=None, *, axis):
    z = widen(_keep(x, mask, -inf))
    m, _, rest = _shifted_exp(z, axis)
    finite = jnp.isfinite(m)
    y = jnp.where(finite, z - jnp.where(finite, m, 0), jnp.where(z == m, -0.0, -inf))
    y = jnp.where(m == -inf, -inf, y) - jnp.log1p(jnp.maximum(rest, 0))
    y = jnp.where(jnp.isnan(m), nan, y)
    # Finite input gives a finite value; -inf in gives -inf out.
    y = jnp.where(z == -inf, -inf, narrow(y, x.dtype))
    return _keep(cast(y, x.dtype), mask, -largest(x.dtype))


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
    arrays, axes = _prepare("log_softmax", x, axis, where)
    return _log_softmax(*arrays, axis=axes)


# ------------------------------------------------------------- norm, normalize, std, mean


def _centred(x, mask, axis, count):
    """Return x less its mean; the second pass removes the rounding of the first mean."""
    for _ in range(2):
        x = _keep(x - _sum(x, axis) / count, mask)
    return x


def _scaled(x, mask, axis, centre):
    """Return (y, s): y is x, centred if asked, over a power of two s that brings it to order 1."""
    x = widen(_keep(x, mask))
    top = jnp.max(abs(x), axis=axis, keepdims=True, initial=0)
    s = power_of_two(top)
    # With an infinite element the others vanish beside it: its direction is the limit.
    y = jnp.where(top == inf, jnp.where(abs(x) == inf, jnp.sign(x), 0), x / s)
    y = jnp.where(jnp.isnan(top), nan, y)
    if centre:
        count = _count(y, mask, axis, least=1)
        y = _centred(y, mask, axis, count)
    return y, jnp.where(top == inf, inf, s)


def _inverse_length(x, mask, axis, centre):
    """1 over the length of x, and whether its square is representable too."""
    n = _length(*((x,) if mask is None else (x, mask)), axis=axis, centre=centre)
    # Only subnormal lengths are capped; half leaves room for the tangents that it multiplies.
    return jnp.minimum(reciprocal(n), largest(n.dtype) / 2), n > 4 / math.sqrt(largest(x.dtype))


def _rule_unit(out, arrays, tangents, *, axis, centre):
    x, mask = _pair(arrays)
    t = widen(_keep(tangents[0], mask))
    if centre:
        t = _keep(t - _sum(t, axis) / _count(t, mask, axis, least=1), mask)
    r, smooth = _inverse_length(x, mask, axis, centre)
    # Second derivatives go like 1 / length^2: where that overflows the first goes on as a constant.
    r = jnp.where(smooth, r, jax.lax.stop_gradient(r))
    u = widen(jnp.where(smooth, out, jax.lax.stop_gradient(out)))
    # At the largest element 1 - u^2 is the sum of the other squares: subtracting would lose them.
    lone = _lone_top(abs(out), axis)
    rest = jnp.where(lone, 0, u)
    along = _sum(zmul(rest, t), axis)
    here = zmul(_sum(rest * rest, axis), t) - zmul(u, along)
    others = t - zmul(u, along + _sum(zmul(u, jnp.where(lone, t, 0)), axis))
    return zmul(widen(r), jnp.where(lone, here, others)).astype(out.dtype)


@total(jvp=_rule_unit)
def _unit(x, mask=None, *, axis, centre):
    """The (centred) slice divided by its Euclidean length; 0 for the zero slice."""
    y, _ = _scaled(x, mask, axis, centre)
    n = jnp.sqrt(_sum(y * y, axis))
    return jnp.where(n == 0, 0, y / jnp.where(n == 0, 1, n)).astype(x.dtype)


def _rule_length(out, arrays, tangents, *, axis, centre):
    u = jnp.where(saturated(out), 0, _unit(*arrays, axis=axis, centre=centre))
    return _sum(zmul(u, tangents[0]), axis)


@total(jvp=_rule_length)
def _length(x, mask=None, *, axis, centre):
    """Euclidean length of the (centred) slice, with kept axes."""
    y, s = _scaled(x, mask, axis, centre)
    n = jnp.sqrt(_sum(y * y, axis))
    n = jnp.where(n == 0, 0, n * s)
    return jnp.where(s == inf, cast(n, x.dtype), narrow(n, x.dtype))


@op(
    naive=lambda x, axis=None: jnp.sqrt(jnp.sum(x * x, axis=axis)),
    reference=lambda mp, x: mp.sqrt(mp.fsum(v * v for v in x)),
    domain=[(-inf, inf)],
    edges=[
        (([3.0, 4.0],), 5.0, [0.6, 0.8]),
        (([0.0, 0.0],), 0.0, [0.0, 0.0]),
        (([inf, 1.0],), inf, [1.0, 0.0]),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="the gradient of a norm at 0 is 0 / 0, and its squares overflow at 1.8e19 in float32: use "
    "robustops.safe_norm.",
    cost="One pass more than the naive form, for the largest magnitude.",
)
def safe_norm(
    x: ArrayLike,
    /,
    *,
    axis: Axis = None,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Euclidean norm that neither overflows nor underflows, with derivative 0 at 0.

    sqrt(sum x_i^2) along `axis`, formed from x over a power of two near its largest magnitude, so
    [1e30, 1e30] and [1e-30, 1e-30] have right norms and gradients in float32.

    Edges: a slice of zeros, an empty or fully masked one gives 0 with derivative 0; a norm beyond
    the largest finite number saturates; inf gives inf; NaN gives NaN. safe_norm(x)**2 has the
    right gradient at 0, but Hessian 0 there: use jnp.sum(x**2) for a squared norm.

    Args:
      x: real array; integers become floats.
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
    arrays, axes = _prepare("safe_norm", x, axis, where, dtype)
    n = _length(*arrays, axis=axes, centre=False)
    return n if keepdims else jnp.squeeze(n, axes)


@op(
    naive=lambda x, axis=-1: x / jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True)),
    reference=lambda mp, x: [v / mp.sqrt(mp.fsum(w * w for w in x)) for v in x],
    domain=[(-inf, inf)],
    edges=[
        (([3.0, 4.0],), [0.6, 0.8], [[0.128, -0.096], [-0.096, 0.072]]),
        (([0.0, 0.0],), [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]),
        (([inf, 1.0],), [1.0, 0.0], None),
        (([nan, 1.0],), [nan, nan], None),
    ],
    ulps=(4, 8),
    hint="x / ||x|| of a zero vector is 0 / 0: use robustops.safe_normalize, which gives 0.",
    cost="One pass more than the naive form, for the largest magnitude.",
)
def safe_normalize(
    x: ArrayLike, /, *, axis: Axis = -1, where: ArrayLike | None = None, dtype: Any = None
) -> jax.Array:
    """Vector over its Euclidean norm, the zero vector for a zero vector.

    x / ||x|| along `axis`; a vector of length 1e-30 or 1e30 becomes a unit vector in float32 too.
    The derivative, (t - u (u t)) / ||x||, is saturated where it overflows, and 0 at 0.

    Edges: a slice of zeros, or a fully masked one, gives 0 with derivative 0; masked elements give
    0; one infinite element gives the unit vector along it; NaN gives NaN along its slice.

    Args:
      x: real array; integers become floats.
      axis: axis or axes of the vectors; None means all.
      where: boolean, True takes part; broadcast to `x`.
      dtype: dtype of the computation and the result; default that of `x`.

    Returns:
      Array of the shape of `x`.

    Raises:
      ValueError: an axis out of range, or a `where` that does not broadcast.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating.
    """
    arrays, axes = _prepare("safe_normalize", x, axis, where, dtype)
    return _unit(*arrays, axis=axes, centre=False)


def _rule_mean(out, arrays, tangents, *, axis):
    _, mask = _pair(arrays)
    t = widen(tangents[0])
    return _sum(_keep(t, mask) / _count(t, mask, axis, least=1), axis).astype(out.dtype)


@total(jvp=_rule_mean)
def _mean(x, mask=None, *, axis):
    z = widen(_keep(x, mask))
    count = _count(z, mask, axis, least=1)
    # Two sums in one pass: elements that could overflow a sum of n are scaled down by n.
    n = 2.0 ** math.ceil(math.log2(max(math.prod(x.shape[a] for a in axis), 1)))
    big = abs(z) > largest(z.dtype) / (2 * n)
    small = _sum(jnp.where(big, 0, z), axis) / count
    return (small + _sum(jnp.where(big, z, 0) / n, axis) / count * n).astype(x.dtype)


@op(
    naive=lambda x, axis=None: jnp.mean(x, axis=axis),
    reference=lambda mp, x: mp.fsum(x) / len(x),
    domain=[(-inf, inf)],
    conditioning=lambda mp, x: (mp.fsum(abs(v) for v in x) / len(x), 0),
    edges=[
        (([1.0, 2.0],), 1.5, [0.5, 0.5]),
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
    arrays, axes = _prepare("safe_mean", x, axis, where, dtype)
    m = _mean(*arrays, axis=axes)
    return m if keepdims else jnp.squeeze(m, axes)


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
        (([2.0, 2.0],), 0.0, [0.0, 0.0]),
        (([5.0],), 0.0, [0.0]),
        (([inf, 1.0],), inf, None),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="the gradient of a standard deviation of equal values is 0 / 0, and E[x^2] - E[x]^2 loses "
    "all digits for a large mean: use robustops.safe_std.",
    cost="Three passes (magnitude, mean, squares), the naive form two.",
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
    arrays, axes = _prepare("safe_std", x, axis, where, dtype)
    y = _std(*arrays, axis=axes, ddof=ddof)
    return y if keepdims else jnp.squeeze(y, axes)


def _root_of_count(x, mask, axis, ddof):
    n = _count(widen(x), mask, axis) - ddof
    return jnp.where(n > 0, 1 / jnp.sqrt(jnp.where(n > 0, n, 1)), 0)


def _rule_std(out, arrays, tangents, *, axis, ddof):
    r = _root_of_count(*_pair(arrays), axis, ddof).astype(out.dtype)
    u = jnp.where(saturated(out), 0, _unit(*arrays, axis=axis, centre=True))
    return _sum(zmul(u * r, tangents[0]), axis)


@total(jvp=_rule_std)
def _std(x, mask=None, *, axis, ddof):
    y, s = _scaled(x, mask, axis, centre=True)
    r = jnp.sqrt(_sum(y * y, axis)) * _root_of_count(x, mask, axis, ddof)
    r = jnp.where(r == 0, 0, r * s)
    return jnp.where(s == inf, cast(r, x.dtype), narrow(r, x.dtype))
