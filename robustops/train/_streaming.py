"""Means and deviations of features: in one pass over all rows, or of parts that are merged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Seen(NamedTuple):
    """What is known of the rows so far, for each feature.

    Attributes:
      cells: how many cells are finite.
      low: least cell; inf without any.
      high: greatest cell; -inf without any.
      unit: a power of two near the greatest magnitude; mean and deviation are in this unit.
      mean: the mean.
      mean_low: what rounding the mean left over.
      deviation: the (population) standard deviation.
    """

    cells: jax.Array
    low: jax.Array
    high: jax.Array
    unit: jax.Array
    mean: jax.Array
    mean_low: jax.Array
    deviation: jax.Array


@jax.jit
def see(x: jax.Array) -> Seen:
    """The statistics of rows, shape `[rows, features]`."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    valid = jnp.isfinite(x)
    x = jnp.where(valid, x, 0)
    unit = power_of_two(jnp.max(jnp.abs(x), axis=0, keepdims=True))
    y = saturate(x * (1 / unit))
    mean, low = mean_of(y, valid)
    deviation = root_mean_square(jnp.where(valid, (y - mean) - low, 0), valid)
    return Seen(
        jnp.sum(valid, axis=0, dtype=jnp.int32),
        jnp.min(x, axis=0, where=valid, initial=jnp.inf),
        jnp.max(x, axis=0, where=valid, initial=-jnp.inf),
        *(a[0] for a in (unit, mean, low, deviation)),
    )


@jax.jit
def merge(a: Seen, b: Seen) -> Seen:
    """The statistics of both parts together (Chan, Golub and LeVeque 1983).

    With shares p and q of the cells and d the difference of the means, the mean is
    `mean_a + q d` and the variance `p var_a + q var_b + p q d^2`.
    """
    # A part without cells has no unit; 1 would flush the other's cells of 1e-30.
    own = [jnp.where(part.cells > 0, part.unit, 0) for part in (a, b)]
    unit = jnp.maximum(*own)
    unit = jnp.where(unit > 0, unit, 1)
    to_a, to_b = a.unit / unit, b.unit / unit
    to_a, to_b = jnp.where(a.cells > 0, to_a, 0), jnp.where(b.cells > 0, to_b, 0)
    count = a.cells + b.cells
    total = jnp.maximum(count, 1).astype(unit.dtype)
    p, q = a.cells.astype(unit.dtype) / total, b.cells.astype(unit.dtype) / total
    d = (b.mean * to_b - a.mean * to_a) + (b.mean_low * to_b - a.mean_low * to_a)
    mean, low = _two_sum(a.mean * to_a, a.mean_low * to_a + q * d)
    parts = jnp.stack(
        [jnp.sqrt(p) * a.deviation * to_a, jnp.sqrt(q) * b.deviation * to_b, jnp.sqrt(p * q) * d]
    )
    # Relative to the greatest, so that no square underflows.
    greatest = jnp.max(jnp.abs(parts), axis=0)
    relative = parts / jnp.where(greatest > 0, greatest, 1)
    return Seen(
        count,
        jnp.minimum(a.low, b.low),
        jnp.maximum(a.high, b.high),
        unit,
        mean,
        low,
        greatest * jnp.sqrt(jnp.sum(relative * relative, axis=0)),
    )


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b as a rounded sum and its error, exactly (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def saturate(x: jax.Array) -> jax.Array:
    """Brings an overflow to the largest finite number; NaN stays."""
    limit = jnp.finfo(x.dtype).max
    return jnp.clip(x, -limit, limit)


def power_of_two(magnitude: jax.Array) -> jax.Array:
    """The power of two at or below a magnitude, 1 for 0; its reciprocal is a normal number too."""
    info = jnp.finfo(magnitude.dtype)
    limit = int(-info.minexp)
    exponent = jnp.frexp(jnp.where(magnitude > 0, magnitude, 1))[1] - 1
    return jnp.ldexp(jnp.ones_like(magnitude), jnp.clip(exponent, -limit, limit))


def mean_of(y: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean as a sum of two floats: a mean, plus the mean of what it leaves over."""
    count = jnp.maximum(jnp.sum(valid, axis=0, keepdims=True), 1).astype(y.dtype)
    first = jnp.sum(jnp.where(valid, y, 0), axis=0, keepdims=True) / count
    second = jnp.sum(jnp.where(valid, y - first, 0), axis=0, keepdims=True) / count
    center = first + second
    return center, second - (center - first)


def root_mean_square(y: jax.Array, valid: jax.Array) -> jax.Array:
    """`sqrt(mean(y^2))` of the valid cells, relative to the greatest: no square underflows."""
    greatest = jnp.max(jnp.abs(y), axis=0, keepdims=True)
    relative = y / jnp.where(greatest > 0, greatest, 1)
    count = jnp.maximum(jnp.sum(valid, axis=0, keepdims=True), 1).astype(y.dtype)
    return greatest * jnp.sqrt(jnp.sum(relative * relative, axis=0, keepdims=True) / count)
