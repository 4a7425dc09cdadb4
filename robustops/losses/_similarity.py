"""Losses of directions and distances between vectors: cosine, triplet, NT-Xent."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .. import ops
from .._numerics import power_of_two, promote, widen
from ..ops import logsumexp, safe_div, safe_mean, safe_norm, safe_normalize, safe_pow, softplus
from ..ops._reduce import keep
from ..ops._similarity import difference
from ._common import (
    Axis,
    class_axes,
    floating,
    narrowed,
    per_example,
    positive,
    product,
    saturated_sum,
    square,
)


def _unit(x, shortest, axes):
    """Return x over its length, or over `shortest` where that is larger, and where it is not."""
    length = lax.stop_gradient(safe_norm(x, axis=axes, keepdims=True))
    long = (length > shortest) | jnp.isnan(length)
    return jnp.where(long, safe_normalize(x, axis=axes), safe_div(x, shortest)), long


def _pair(name, predictions, targets, epsilon, axis, where):
    """Return the arrays of the two functions below, and the axes."""
    both = floating(name, predictions=predictions, targets=targets)
    a, b = jnp.broadcast_arrays(*promote(name, *both))
    axes, mask = class_axes(name, a, axis, where)
    shortest = jnp.sqrt(jnp.asarray(epsilon, widen(a).dtype))
    return (a, b, shortest, *(() if mask is None else (mask,))), axes


@per_example
def _cosine(a, b, shortest, mask=None, *, axis):
    (u, _), (v, _) = (_unit(keep(x, mask), shortest, axis) for x in (a, b))
    return saturated_sum(product(u, v), axis)


@per_example
def _cosine_gap(a, b, shortest, mask=None, *, axis):
    (u, one), (v, other) = (_unit(keep(x, mask), shortest, axis) for x in (a, b))
    apart = saturated_sum(square(difference(u, v), c=0.5), axis)
    whole = jnp.squeeze(one & other, axis)  # else |u - v|^2 / 2 is no distance
    return jnp.where(whole, apart, 1 - saturated_sum(product(u, v), axis))


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Cosine of the angle between vectors of any finite length, 0 for a zero vector.

    sum_j a_j b_j / (|a| |b|) along `axis`, each vector divided by its length before the product, so
    that lengths of 1e-30 and 1e30 are right in float32.

    Edges: a zero vector gives 0 with derivative 0; one infinite element stands for its direction;
    NaN gives NaN.

    Args:
      predictions: shape `[..., dim]`.
      targets: shape `[..., dim]`; the two broadcast.
      epsilon: least squared length, a constant: a shorter vector is divided by its root. In Optax
        it keeps a zero vector from 0 / 0, and in float16 rounds to 0 itself; here it is not needed.
      axis: axis or axes of the vectors; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Cosine per pair, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.cosine_similarity`.
    """
    name = "cosine_similarity"
    if isinstance(epsilon, (int, float)) and epsilon <= 0:
        both = floating(name, predictions=predictions, targets=targets)
        return ops.cosine_similarity(*both, axis=axis, where=where)
    arrays, axes = _pair(name, predictions, targets, epsilon, axis, where)
    return _cosine(*arrays, axis=axes)


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """One minus the cosine of the angle between vectors, with its digits where they are parallel.

    |u - v|^2 / 2 for the unit vectors u and v; 1 for a zero vector.

    Edges: as `cosine_similarity`.

    Args:
      predictions: shape `[..., dim]`.
      targets: shape `[..., dim]`; the two broadcast.
      epsilon: least squared length, as in `cosine_similarity`.
      axis: axis or axes of the vectors; None means all.
      where: boolean, True takes part; broadcast to the shape of the two.

    Returns:
      Distance per pair, in [0, 2] and the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating, or a `where` that is not boolean.

    Reference: same signature as `optax.losses.cosine_distance`.
    """
    arrays, axes = _pair("cosine_distance", predictions, targets, epsilon, axis, where)
    return _cosine_gap(*arrays, axis=axes)


def _distance(a, b, axis, degree, eps):
    """(sum |a - b|^degree + eps)^(1 / degree): the length of a - b and one element of eps more."""
    d = jnp.moveaxis(difference(a, b), axis, -1)
    d = widen(d)
    p = jnp.asarray(degree, d.dtype)
    one = safe_pow(jnp.asarray(eps, d.dtype), 1 / p)
    d = jnp.concatenate([d, jnp.broadcast_to(one, (*d.shape[:-1], 1))], axis=-1)
    if isinstance(degree, (int, float)) and degree == 2:
        return safe_norm(d, axis=-1)
    s = power_of_two(jnp.max(abs(d), axis=-1, keepdims=True))
    root = safe_pow(jnp.sum(safe_pow(abs(d) / s, p), axis=-1), 1 / p)
    return product(root, s[..., 0])


def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: ArrayLike = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
) -> jax.Array:
    """Triplet loss: an anchor shall be nearer to its positive than to its negative by a margin.

    max(d(a, p) - d(a, n) + margin, 0) with d(a, b) = (sum |a - b|^q + eps)^(1 / q), q the degree.
    An odd degree takes magnitudes, where Optax adds up signed differences.

    Edges: equal vectors have a distance of eps^(1 / q) with derivative 0, in float16 and with
    eps = 0 too; overflow saturates; NaN gives NaN.

    Args:
      anchors: shape `[..., dim]`.
      positives: vectors like the anchors; the three broadcast.
      negatives: vectors unlike the anchors.
      axis: axis of the vectors.
      norm_degree: degree q >= 1 of the norm.
      margin: by how much the positive shall be nearer.
      eps: added to the sum.

    Returns:
      Loss per triplet, in the promoted dtype.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: input that is not real and floating.

    Reference: Balntas et al. 2016, doi:10.5244/C.30.119; signature of
    `optax.losses.triplet_margin_loss`.
    """
    name = "triplet_margin_loss"
    three = floating(name, anchors=anchors, positives=positives, negatives=negatives)
    a, p, n = jnp.broadcast_arrays(*promote(name, *three))
    (axis,), _ = class_axes(name, a, axis, None)
    near, far = (_distance(a, x, axis, norm_degree, eps) for x in (p, n))
    less = difference(far, jnp.asarray(margin, far.dtype))
    return narrowed(jnp.maximum(difference(near, less), 0), dtype=a.dtype)


def ntxent(embeddings: ArrayLike, labels: ArrayLike, temperature: ArrayLike = 0.07) -> jax.Array:
    """Normalized temperature-scaled cross-entropy (NT-Xent) over all pairs of equal label.

    The mean over ordered pairs (i, j) of equal label, i != j, of softplus(logsumexp_k(c_ik) - c_ij)
    with c the cosines over the temperature and k the examples of other labels.

    Edges: a zero embedding has cosines 0; without pairs of equal label the loss is 0, where Optax
    gives NaN; NaN gives NaN. An embedding shorter than the root of the dtype's
    spacing (3.5e-4 in float32) is divided by that number, as in Optax.

    Args:
      embeddings: shape `[batch, dim]`.
      labels: shape `[batch]`; examples of equal label attract each other.
      temperature: positive number.

    Returns:
      A scalar, in the dtype of the embeddings.

    Raises:
      ValueError: shapes that do not agree, or a `temperature` that is not positive.
      TypeError: embeddings that are not real and floating.

    Reference: Chen et al. 2020 (arXiv:2002.05709); signature of `optax.losses.ntxent`.
    """
    name = "ntxent"
    (x,) = floating(name, embeddings=embeddings)
    labels = jnp.asarray(labels)
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: embeddings need the shape [batch, dim] and labels [batch], got {x.shape} and "
            f"{labels.shape}."
        )
    # As in optax, lengths below sqrt(eps) do not count as whole: 1 / length over the temperature
    # would overflow.
    u, _ = _unit(widen(x), math.sqrt(float(jnp.finfo(x.dtype).eps)), (1,))
    cosines = jnp.matmul(u, u.T, precision="highest")
    c = safe_div(*promote(name, cosines, positive(name, "temperature", temperature)))
    equal = labels[:, None] == labels[None, :]
    pairs = equal & ~jnp.eye(len(labels), dtype=bool)
    others = logsumexp(c, axis=1, keepdims=True, where=~equal)
    loss = softplus(difference(jnp.broadcast_to(others, c.shape), c))
    return narrowed(safe_mean(loss, where=pairs), dtype=x.dtype)
