"""Cross-entropies of yes-or-no predictions: from logits, and from probabilities."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import cast, held, infinite_with, largest, nan_of, promote, smallest, widen, within
from .._spec import total
from ..ops import safe_log, safe_log1p
from ..ops._families import ratio, reciprocal
from ..ops._logistic import sigmoid_slope
from ..ops._similarity import difference
from ._common import floating


@total(lambda out, x, z: sigmoid_slope(x), lambda out, x, z: -jnp.ones_like(out))
def _slope(x, z):
    """sigmoid(x) - z, from m = sigmoid(-|x|): (1 - z) - m for x >= 0, else m - z."""
    dtype = jnp.result_type(x, z)
    x, z = widen(x), widen(z)
    m = 1 / (1 + jnp.exp(abs(x)))
    # m is used once: XLA for CPU writes to memory what is costly and used twice.
    return cast(jnp.where(x < 0, -z, 1 - z) + jnp.where(x < 0, 1, -1) * m, dtype)


@total(lambda out, x, z: _slope(x, z), lambda out, x, z: -x)
def bce_from_logits(x, z):
    """The cross-entropy of arrays: see `sigmoid_binary_cross_entropy`."""
    dtype = jnp.result_type(x, z)
    x, z = jnp.broadcast_arrays(widen(x), widen(z))
    nought, zero = constants(x, 0, 0)
    w = jnp.maximum(jnp.sign(x), nought) - z
    # For a hard label w may be 0, and its product stays so for an infinite logit.
    y = infinite_with(within(w * within(x, largest(x.dtype)), largest(dtype)), x)
    # A NaN of x is in the logarithm, one of z may be lost to `within`.
    return cast(jnp.log1p(jnp.exp(-abs(x))) + y + z * zero, dtype)


def logits_and_labels(name: str, logits: ArrayLike, labels: ArrayLike) -> list[jax.Array]:
    """Check the two; labels take the dtype of the logits, as in optax."""
    (x,) = floating(name, logits=logits)
    return promote(name, x, cast(jnp.asarray(labels), x.dtype))


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary cross-entropy from logits, right to a few ulp for confident predictions too.

    -z log sigmoid(x) - (1 - z) log(1 - sigmoid(x)), formed as
    log1p(exp(-|x|)) + z max(-x, 0) + (1 - z) max(x, 0). The derivative by x is
    (1 - z) sigmoid(x) - z sigmoid(-x), by z it is -x.

    Edges: an infinite logit that agrees with its hard label gives 0, one that does not gives inf.
    Labels outside [0, 1] continue the formula, which is linear in them; the loss is then unbounded
    below. NaN gives NaN.

    Args:
      logits: unnormalised log-odds, of any shape.
      labels: target probabilities in [0, 1]; they take the dtype of the logits. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and the dtype of the logits.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: logits that are not real and floating.

    Reference: same signature as `optax.losses.sigmoid_binary_cross_entropy`.
    """
    arrays = logits_and_labels("sigmoid_binary_cross_entropy", logits, labels)
    return bce_from_logits(*arrays)


def _ends(p):
    """The smallest normal number, and the spacing of numbers below 1, of the dtype of `p`."""
    return smallest(p.dtype), float(jnp.finfo(p.dtype).epsneg)


def _hit_and_miss(p):
    """p and 1 - p, each held above its end."""
    least, gap = _ends(p)
    z = widen(p)
    return jnp.where(z < least, least, z), jnp.where(z > 1 - gap, gap, 1 - z)


def _curvature(out, p, z):
    hit, miss = _hit_and_miss(p)
    return ratio(1 - widen(z), miss, k=2) + ratio(widen(z), hit, k=2)


def _by_both(out, p, z):
    hit, miss = _hit_and_miss(p)
    return -reciprocal(miss) - reciprocal(hit)


@total(_curvature, _by_both)
def _by_probability(p, z):
    """(1 - z) / (1 - p) - z / p."""
    hit, miss = _hit_and_miss(p)
    slope = (1 - widen(z)) / miss - widen(z) / hit
    return held(slope, jnp.result_type(p, z))


@total(
    lambda out, p, z: _by_probability(p, z),
    lambda out, p, z: difference(safe_log1p(-p, extend="linear"), safe_log(p, extend="linear")),
)
def _bce(p, z):
    dtype, (least, gap) = jnp.result_type(p, z), _ends(p)
    p, z = jnp.broadcast_arrays(widen(p), widen(z))
    most = largest(p.dtype)
    a, b, c, d = constants(p, least, least, least, 1 / least)
    e, f, g, h, one = constants(p, 1 - gap, 1 - gap, 1 - gap, 1 / gap, 1)
    # The logarithms, and from their ends on the tangents.
    log_p = jnp.log(jnp.maximum(p, a)) + within((jnp.minimum(p, b) - c) * d, most)
    log_q = jnp.log1p(-jnp.minimum(p, e)) - within((jnp.maximum(p, f) - g) * h, most)
    y = within(-z * log_p, most) - within((one - z) * log_q, most)
    return cast(within(y, largest(dtype)) + nan_of(p) + nan_of(z), dtype)


def binary_cross_entropy(probabilities: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Binary cross-entropy from probabilities, exact at 0 and 1 where the label agrees.

    -z log(p) - (1 - z) log(1 - p). Where it would be infinite both logarithms go on along their
    tangent lines, log(p) below the smallest normal number and log(1 - p) beside 1, so a
    prediction that is wrong at 0 or 1 has a finite loss and a gradient that pushes it back.

    Edges (float32): p = z in {0, 1} gives 0; p = 0, z = 1 gives 88.3 with gradient -8.5e37; p = 1,
    z = 0 gives 17.6 with gradient 1.7e7; p outside [0, 1] goes on along the tangents and saturates;
    NaN gives NaN. A gradient of 8.5e37 needs a clip: where there are logits use
    `sigmoid_binary_cross_entropy`, which is better behaved and more accurate.

    Args:
      probabilities: predictions in [0, 1], of any shape.
      labels: target probabilities in [0, 1]; outside, the loss is unbounded below. Booleans and
        integers become floats. Broadcasts.

    Returns:
      Loss per element, of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: probabilities that are not real and floating.
    """
    name = "binary_cross_entropy"
    return _bce(*promote(name, *floating(name, probabilities=probabilities), labels))
