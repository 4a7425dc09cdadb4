"""Euclidean norm and unit vector, without overflow, underflow or 0 / 0."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._numerics import (
    cast,
    clip_in_row,
    largest,
    narrow,
    power_of_two,
    promote,
    saturated,
    widen,
)
from .._spec import op, total
from .._zmul import zmul
from ._families import ratio, reciprocal
from ._reduce import Axis, count_of, finish, keep, pair, prepare, sum_of

inf = math.inf
nan = math.nan


def divided(x, s, most: jax.Array | float = 8):
    """x / s for |x| < 4 s. The clip keeps XLA from turning its square into x^2 / s^2."""
    return clip_in_row(x / s, -most, most)


def _over(x, s):
    """x / s; where s is inf the sign of an infinite x, times 4, beside which the others vanish."""
    y = divided(x, jnp.minimum(s, 2.0 ** -jnp.finfo(x.dtype).minexp))
    finite = clip_in_row(y, -4, 4)
    return jnp.where(s == inf, 0, 1) * finite + (y - finite)


def _over_by_selects(x, s):
    return jnp.where(s == inf, 4 * jnp.where(abs(x) < inf, 0, jnp.sign(x)), x / s)


class Size(NamedTuple):
    """What brings a slice to order 1, with kept axes: `scale` is a power of two or inf."""

    scale: jax.Array
    mean: jax.Array
    """Mean of the slice over `scale`; 0 if it was not to be centred."""
    rest: jax.Array
    """Mean of what is left after that, its rounding."""
    square: jax.Array
    """Sum of the squares of what is left then."""

    @property
    def length(self):
        """Euclidean length of what is left."""
        return jnp.sqrt(self.square)

    def bring(self, x, mask=None):
        """Return x / scale - mean - rest in working precision, 0 where masked."""
        x = widen(keep(x, mask))
        # In a loop XLA for CPU takes a select for an operation, and `_over` for twenty.
        y = lax.platform_dependent(x, self.scale, cpu=_over_by_selects, default=_over)
        return keep(y - self.mean - self.rest, mask)


def _size(x, mask, axis, centre):
    x = widen(keep(x, mask))
    top = jnp.max(abs(x), axis=axis, keepdims=True, initial=0)
    s = jnp.where(top == inf, inf, power_of_two(top))
    y = _over(x, s)
    mean = rest = jnp.zeros_like(s)
    if centre:
        count = count_of(y, mask, axis, least=1)
        mean = sum_of(y, axis) / count
        rest = sum_of(keep(y - mean, mask), axis) / count
        y = keep(y - mean - rest, mask)
    return Size(s, mean, rest, sum_of(y * y, axis))


def _size_where_plain_sums_fit(x, axis, centre):
    """`_size` for CPU: by a plain sum of squares, a third of a pass, unless one does not fit."""
    z = widen(x)
    mean = sum_of(z, axis) / count_of(z, None, axis, least=1) if centre else 0
    d = z - mean if centre else z
    square = sum_of(d * d, axis)
    big = 2.0 ** (jnp.finfo(z.dtype).maxexp - 2)
    # Squares that underflow are below 2^-126, and there are fewer than 2^40 of them.
    ordinary = (square > 2.0 ** (jnp.finfo(z.dtype).minexp + 66)) & (square < big)
    nothing = lambda: (square == 0) & (jnp.max(abs(d), axis=axis, keepdims=True, initial=0) == 0)
    all_ordinary = jnp.all(ordinary)
    fits = lax.cond(all_ordinary, lambda: all_ordinary, lambda: jnp.all(ordinary | nothing()))
    zero = jnp.zeros_like(square)

    def centred_again():
        rest = sum_of(d, axis) / count_of(z, None, axis, least=1)
        return rest, sum_of((d - rest) ** 2, axis)

    def plain():
        rest, left = zero, square
        if centre:
            # What rounding left of the mean, some 2^-24 of it, is a matter for one that is larger
            # than four standard deviations: it is in every element, and so in every slope.
            count = count_of(z, None, axis, least=1)
            near = jnp.all((mean * mean * count <= 16 * square) | (square == 0))
            rest, left = lax.cond(near, lambda: (zero, square), centred_again)
        return Size(zero + 1, zero + mean, rest, jnp.minimum(left, big))

    return lax.cond(fits, plain, lambda: _size(x, None, axis, centre))


def size(x, mask, axis, centre=False) -> Size:
    """What brings the (centred) slices of x to order 1."""
    if mask is not None:
        return _size(x, mask, axis, centre)
    return lax.platform_dependent(
        x,
        cpu=lambda x: _size_where_plain_sums_fit(x, axis, centre),
        default=lambda x: _size(x, None, axis, centre),
    )


def inverse_length(x, mask, axis, centre=False):
    """1 over the length of x, and whether its square is representable too.

    Second derivatives go like that square: where it overflows the first goes on as a constant.
    """
    n = _length(*((x,) if mask is None else (x, mask)), axis=axis, centre=centre)
    # Only subnormal lengths are capped; half leaves room for the tangents that it multiplies.
    r = jnp.minimum(reciprocal(n), largest(n.dtype) / 2)
    smooth = n > 4 / math.sqrt(largest(x.dtype))
    return widen(jnp.where(smooth, r, jax.lax.stop_gradient(r))), smooth


def rule_unit(out, arrays, tangents, *, axis, centre):
    x, mask = pair(arrays)
    t = widen(keep(tangents[0], mask))
    if centre:
        t = keep(t - sum_of(t, axis) / count_of(t, mask, axis, least=1), mask)
    r, smooth = inverse_length(x, mask, axis, centre)
    u = widen(jnp.where(smooth, out, jax.lax.stop_gradient(out)))
    # At the largest element 1 - u^2 is the sum of the other squares: subtracting would lose them.
    lone = u * u > 0.5
    rest = jnp.where(lone, 0, u)
    along = sum_of(zmul(rest, t), axis)
    here = zmul(sum_of(rest * rest, axis), t) - zmul(u, along)
    others = t - zmul(u, along + sum_of(zmul(u, jnp.where(lone, t, 0)), axis))
    return zmul(r, jnp.where(lone, here, others)).astype(out.dtype)


@total(jvp=rule_unit)
def unit(x, mask=None, *, axis, centre):
    """The (centred) slice divided by its Euclidean length; 0 for the zero slice."""
    of = size(x, mask, axis, centre)
    return (of.bring(x, mask) / jnp.where(of.square == 0, 1, of.length)).astype(x.dtype)


def _rule_length(out, arrays, tangents, *, axis, centre):
    u = jnp.where(saturated(out), 0, unit(*arrays, axis=axis, centre=centre))
    return sum_of(zmul(u, tangents[0]), axis)


@total(jvp=_rule_length)
def _length(x, mask=None, *, axis, centre):
    """Euclidean length of the (centred) slice, with kept axes."""
    of = size(x, mask, axis, centre)
    n = jnp.where(of.square == 0, 0, of.length * of.scale)
    return jnp.where(of.scale == inf, cast(n, x.dtype), narrow(n, x.dtype))


def length(x, mask=None, *, axis):
    """The Euclidean length of the slice, with kept axes."""
    return _length(*((x,) if mask is None else (x, mask)), axis=axis, centre=False)


@op(
    naive=lambda x, axis=None: jnp.sqrt(jnp.sum(x * x, axis=axis)),
    reference=lambda mp, x: mp.sqrt(mp.fsum(v * v for v in x)),
    domain=[(-inf, inf)],
    edges=[
        (([3.0, 4.0],), 5.0, [0.6, 0.8]),
        ((lambda i: [float(i.max), 0.0],), lambda i: float(i.max), None),
        ((lambda i: [float(i.max) * 0.75, 0.0],), lambda i: float(i.max) * 0.75, [1.0, 0.0]),
        (([0.0, 0.0],), 0.0, [0.0, 0.0]),
        (([inf, 1.0],), inf, [1.0, 0.0]),
        (([nan, 1.0],), nan, None),
    ],
    ulps=(4, 8),
    hint="the gradient of a norm at 0 is 0 / 0, and its squares overflow at 1.8e19 in float32: use "
    "robustops.safe_norm.",
    cost="One pass more than the naive form, for the largest magnitude; on CPU only where plain "
    "sums of squares do not fit.",
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
    right gradient at 0, but Hessian 0 there: use jnp.sum(safe_square(x)) for a squared norm.

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
    arrays, axes = prepare("safe_norm", x, axis, where, dtype)
    return finish(length(*arrays, axis=axes), axes, keepdims, dtype)


@op(
    naive=lambda x, axis=-1: x / jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True)),
    reference=lambda mp, x: [v / mp.sqrt(mp.fsum(w * w for w in x)) for v in x],
    domain=[(-inf, inf)],
    edges=[
        (([3.0, 4.0],), [0.6, 0.8], [[0.128, -0.096], [-0.096, 0.072]]),
        (([0.0, 0.0],), [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]),
        ((lambda i: [float(i.max), 0.0],), [1.0, 0.0], None),
        (([inf, 1.0],), [1.0, 0.0], None),
        (([nan, 1.0],), [nan, nan], None),
    ],
    ulps=(4, 12),
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
    arrays, axes = prepare("safe_normalize", x, axis, where, dtype)
    return finish(unit(*arrays, axis=axes, centre=False), axes, True, dtype)


def _rule_global(out, leaves, tangents):
    # x / ||x||, by a ratio that is total in the norm too; 0 where that is 0.
    n = jnp.where(saturated(out), 0, out)
    terms = [
        jnp.sum(widen(zmul(ratio(x, n), t)))
        for x, t in zip(leaves, tangents, strict=True)
        if t is not None
    ]
    return sum(terms[1:], terms[0]).astype(out.dtype)


@total(jvp=_rule_global)
def _global_norm(*leaves):
    wide = [widen(x) for x in leaves]
    top = functools.reduce(jnp.maximum, (jnp.max(abs(x), initial=0) for x in wide))
    s = power_of_two(top)
    n = jnp.sqrt(sum(jnp.sum(divided(x, s) ** 2) for x in wide)) * s
    return jnp.where(top == inf, inf, narrow(n, leaves[0].dtype))


def global_norm(tree: Any, /) -> jax.Array:
    """Euclidean norm of all the numbers in a pytree together, without overflow or underflow.

    sqrt(sum over the leaves of sum x^2), formed from the leaves over one power of two near the
    largest magnitude. The derivative by x is x / norm, and 0 at 0.

    Edges: a tree of zeros, or without leaves, has norm 0 with derivative 0; a norm beyond the
    largest finite number saturates; inf gives inf; NaN gives NaN.

    Args:
      tree: pytree of real arrays; None counts as no leaf, integers become floats.

    Returns:
      Scalar of the dtype that the leaves have together; float16 and bfloat16 accumulate in float32.

    Raises:
      TypeError: a complex leaf.

    Reference: same meaning as `optax.global_norm` and `optax.tree.norm`.
    """
    leaves = [promote("global_norm", x)[0] for x in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros(())
    dtype = jnp.result_type(*leaves)
    return _global_norm(*(cast(x, dtype) for x in leaves))
