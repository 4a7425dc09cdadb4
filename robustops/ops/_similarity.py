"""How near two vectors are: cosine and Euclidean distance."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import cast, held, largest, promote, widen
from .._spec import op, total
from .._zmul import zmul
from ._norms import inverse_length, length, size, unit
from ._reduce import Axis, finish, prepare, sum_of

inf = math.inf
nan = math.nan


def _prepare(name: str, x: ArrayLike, y: ArrayLike, axis: Axis, where: Any, dtype: Any):
    """Return x, y, (the mask if there is one), broadcast to one shape, and the axes."""
    x, y = jnp.broadcast_arrays(*promote(name, x, y))
    (x, *mask), axes = prepare(name, x, axis, where, dtype)
    (y, *_), _ = prepare(name, y, axis, None, dtype)
    return (x, y, *mask), axes


def _rule_cosine(out, arrays, tangents, *, axis):
    x, y, *mask = arrays
    u, v = (unit(a, *mask, axis=axis, centre=False) for a in (x, y))
    m, n = (length(widen(a), *mask, axis=axis) for a in (x, y))
    terms = []
    for a, own, other, t in ((x, u, v, tangents[0]), (y, v, u, tangents[1])):
        if t is not None:
            r, smooth = inverse_length(a, mask[0] if mask else None, axis)
            slope = zmul(r, widen(other) - zmul(widen(out), widen(own)))
            # Second derivatives go like 1 / ||x||^2 and 1 / (||x|| ||y||): where one overflows the
            # first goes on as a constant.
            smooth &= m * n > 4 / largest(x.dtype)
            slope = jnp.where(smooth, slope, jax.lax.stop_gradient(slope))
            terms.append(sum_of(zmul(slope, widen(t)), axis))
    return sum(terms[1:], terms[0]).astype(out.dtype)


@total(jvp=_rule_cosine)
def _cosine(x, y, mask=None, *, axis):
    of_x, of_y = (size(v, mask, axis) for v in (x, y))
    # The scaled vectors are exact: orthogonal ones have the product 0.
    n = of_x.length * of_y.length
    scaled = lambda x, y: sum_of(of_x.bring(x, mask) * of_y.bring(y, mask), axis)

    def plain_if_it_fits(x, y):
        plain = lambda x, y: sum_of(widen(x) * widen(y), axis)
        fits = jnp.all((of_x.scale == 1) & (of_y.scale == 1))
        return jax.lax.cond(fits, plain, scaled, x, y)

    on_cpu = plain_if_it_fits if mask is None else scaled
    dot = jax.lax.platform_dependent(x, y, cpu=on_cpu, default=scaled)
    c = jnp.where(n == 0, 0, dot / jnp.where(n == 0, 1, n))
    return cast(jnp.clip(c, -1, 1), x.dtype)


def _lengths(mp, x, y):
    return [mp.sqrt(mp.fsum(v * v for v in a)) for a in (x, y)]


@op(
    naive=lambda x, y, axis=-1: (
        jnp.sum(x * y, axis=axis) / jnp.sqrt(jnp.sum(x * x, axis=axis) * jnp.sum(y * y, axis=axis))
    ),
    reference=lambda mp, x, y: (
        mp.fsum(v * w for v, w in zip(x, y, strict=True)) / mp.fprod(_lengths(mp, x, y))
    ),
    domain=[(-inf, inf), (-inf, inf)],
    # The terms of the sum, and of (v - c u) / ||x|| with unit vectors u and v.
    conditioning=lambda mp, x, y: (
        mp.fsum(abs(v * w) for v, w in zip(x, y, strict=True)) / mp.fprod(_lengths(mp, x, y)),
        max(1 / n for n in _lengths(mp, x, y)),
    ),
    edges=[
        (([3.0, 4.0], [4.0, 3.0]), 0.96, ([0.0448, -0.0336], [-0.0336, 0.0448])),
        (([1.0, 2.0], [2.0, -1.0]), 0.0, ([0.4, -0.2], [0.2, 0.4])),
        (([1.0, 1.0], [2.0, 2.0]), 1.0, None),
        (([0.0, 0.0], [1.0, 1.0]), 0.0, ([0.0, 0.0], [0.0, 0.0])),
        (([0.0, 0.0], [0.0, 0.0]), 0.0, ([0.0, 0.0], [0.0, 0.0])),
        ((lambda i: [float(i.max), 0.0], lambda i: [float(i.max), 0.0]), 1.0, None),
        (([inf, 1.0], [1.0, 0.0]), 1.0, None),
        (([nan, 1.0], [0.0, 0.0]), nan, None),
    ],
    ulps=(4, 8),
    hint="the cosine of a zero vector is 0 / 0, and products of norms overflow: use "
    "robustops.cosine_similarity, which gives 0.",
    cost="Passes for the largest magnitudes and for each unit vector; on CPU no more than the "
    "naive form's time where plain sums fit.",
)
def cosine_similarity(
    x: ArrayLike,
    y: ArrayLike,
    /,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Cosine of the angle between vectors of any length, 0 for a zero vector.

    sum(x y) / (||x|| ||y||) along `axis`, formed from vectors over a power of two, so lengths of
    1e30 and 1e-30 are right in float32, and no epsilon biases it. The derivative by x is
    (v - c u) / ||x|| with the unit vectors u and v; it is saturated where it overflows.

    Edges: a zero vector, an empty or fully masked slice gives 0 with derivative 0; one infinite
    element gives the cosine with the axis along it; NaN gives NaN. The result is in [-1, 1].

    Args:
      x: real array; integers become floats.
      y: real array; the shapes broadcast.
      axis: axis or axes of the vectors, of the broadcast shape; None means all.
      where: boolean, True takes part; broadcast to the shape of x and y.
      keepdims: keep the reduced axes with size 1.
      dtype: dtype of the computation and the result; default the promoted one.

    Returns:
      Array of the reduced shape.

    Raises:
      ValueError: shapes that do not broadcast, or an axis out of range.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating.
    """
    arrays, axes = _prepare("cosine_similarity", x, y, axis, where, dtype)
    return finish(_cosine(*arrays, axis=axes), axes, keepdims, dtype)


@total(lambda out, x, y: jnp.ones_like(out), lambda out, x, y: -jnp.ones_like(out))
def difference(x, y):
    """x - y, saturated."""
    d = widen(x) - widen(y)
    return held(d, x.dtype, x, y)


@op(
    naive=lambda x, y, axis=-1: jnp.sqrt(jnp.sum((x - y) ** 2, axis=axis)),
    reference=lambda mp, x, y: mp.sqrt(mp.fsum((v - w) ** 2 for v, w in zip(x, y, strict=True))),
    domain=[(-inf, inf), (-inf, inf)],
    edges=[
        (([3.0, 4.0], [0.0, 0.0]), 5.0, ([0.6, 0.8], [-0.6, -0.8])),
        (([1.0, 2.0], [1.0, 2.0]), 0.0, ([0.0, 0.0], [0.0, 0.0])),
        (
            (lambda i: [float(i.max), 0.0], lambda i: [-float(i.max), 0.0]),
            lambda i: float(i.max),
            ([0.0, 0.0], [0.0, 0.0]),
        ),
        (([inf, 1.0], [0.0, 0.0]), inf, None),
        (([nan, 1.0], [0.0, 0.0]), nan, None),
    ],
    ulps=(4, 8),
    hint="the gradient of the distance of a point to itself is 0 / 0: use "
    "robustops.pairwise_distance, where it is 0.",
    cost="One pass more than the naive form, for the largest magnitude: on CPU with gradient 1.4 "
    "times its time.",
)
def pairwise_distance(
    x: ArrayLike,
    y: ArrayLike,
    /,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Euclidean distance of pairs of vectors, with derivative 0 where they are equal.

    ||x - y|| along `axis`, of x and y broadcast against each other: two arrays of n vectors give n
    distances, and `pairwise_distance(x[:, None], y[None, :])` the matrix of all. It neither
    overflows nor underflows on the way.

    Edges: equal vectors, an empty or fully masked slice give 0 with derivative 0; a difference or
    distance beyond the largest finite number saturates; inf gives inf; NaN gives NaN.

    Args:
      x: real array; integers become floats.
      y: real array; the shapes broadcast.
      axis: axis or axes of the vectors, of the broadcast shape; None means all.
      where: boolean, True takes part; broadcast to the shape of x and y.
      keepdims: keep the reduced axes with size 1.
      dtype: dtype of the computation and the result; default the promoted one.

    Returns:
      Array of the reduced shape.

    Raises:
      ValueError: shapes that do not broadcast, or an axis out of range.
      TypeError: complex input, a `where` that is not boolean, a `dtype` that is not floating.
    """
    (x, y, *mask), axes = _prepare("pairwise_distance", x, y, axis, where, dtype)
    return finish(length(difference(x, y), *mask, axis=axes), axes, keepdims, dtype)
