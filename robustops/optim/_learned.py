"""Clipping at a threshold that is learned from the norms of the run itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from robustops.optim._checks import check_count, check_number
from robustops.optim._clip import as_float32, count_if
from robustops.optim._norms import (
    AxisName,
    Norm,
    float_leaves,
    largest,
    map_floats,
    tree_norm,
)

DECAY, WARMUP = 0.97, 25


class NormStatistics(NamedTuple):
    """Running mean and deviation of gradient norms; of finite norms above 0 only."""

    mean: jax.Array
    """Mean, float32."""
    deviation: jax.Array
    """Standard deviation, float32."""
    seen: jax.Array
    """Norms that entered, int32."""

    @classmethod
    def empty(cls) -> "NormStatistics":
        """No norm seen yet."""
        mean, deviation = (jnp.zeros((), jnp.float32) for _ in range(2))
        return cls(mean, deviation, jnp.zeros((), jnp.int32))

    def band(self, threshold: ArrayLike, warmup: ArrayLike) -> jax.Array:
        """How far above the mean a norm may be: `threshold` deviations; inf during warm-up."""
        # A tenth of the mean at least: the deviation of equal norms is 0, and would stay 0.
        spread = threshold * jnp.maximum(self.deviation, 0.1 * self.mean)
        return jnp.where(self.seen < warmup, jnp.inf, spread)

    def limit(self, norm: jax.Array, threshold: ArrayLike, warmup: ArrayLike) -> jax.Array:
        """The norm to scale down to: that of ZClip beyond the band, and inf within."""
        band = self.band(threshold, warmup)
        beyond = norm - self.mean > band
        excess = jnp.where(beyond, norm - self.mean, 1)
        return jnp.where(beyond, self.mean + band * (band / excess), jnp.inf)

    def observe(
        self, norm: jax.Array, threshold: ArrayLike, decay: ArrayLike, warmup: ArrayLike
    ) -> "NormStatistics":
        """With a norm added, cut at the band so that an outlier counts no more than its rank."""
        enters = jnp.isfinite(norm) & (norm > 0)
        x = jnp.minimum(norm, self.mean + self.band(threshold, warmup))
        weight = jnp.where(self.seen < warmup, 1 / (self.seen + 1), 1 - jnp.asarray(decay))
        gap = x - self.mean
        # hypot and not squares, which overflow for norms that float32 holds.
        spread = jnp.hypot(self.deviation, jnp.sqrt(weight) * gap)
        new = NormStatistics(
            (self.mean + weight * gap).astype(jnp.float32),
            (jnp.sqrt(1 - weight) * spread).astype(jnp.float32),
            count_if(jnp.bool_(True), self.seen),
        )
        return jax.tree.map(lambda a, b: jnp.where(enters, a, b), new, self)


class ClipByZscoreState(NamedTuple):
    """State of `clip_by_zscore`."""

    clipped: jax.Array
    """Number of gradients that were scaled down, int32."""
    last_norm: jax.Array
    """Norm of the last gradient before clipping, float32; NaN or inf if it held one."""
    norms: NormStatistics
    """What the threshold is made from."""


class ClipByPercentileState(NamedTuple):
    """State of `clip_by_percentile`."""

    clipped: jax.Array
    """Number of gradients that were scaled down, int32."""
    last_norm: jax.Array
    """Norm of the last gradient before clipping, float32; NaN or inf if it held one."""
    history: jax.Array
    """The latest norms, a ring, float32."""
    seen: jax.Array
    """Norms that entered, int32."""


def clip_by_zscore(
    threshold: ArrayLike = 2.5,
    *,
    decay: ArrayLike = DECAY,
    warmup: int = WARMUP,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales down a gradient whose norm stands out from the norms of the steps before.

    With mean m and deviation s of the norms, a gradient of z = (||g|| - m) / s > `threshold` is
    scaled to the norm m + s threshold^2 / z: the further out, the closer to the mean.

    Mean and deviation are exponential averages; the first `warmup` norms enter with equal weights
    and are not clipped. s counts as m / 10 at least. A norm enters the averages cut at
    m + `threshold` s, so a spike hardly moves them, while a lasting change of level is learned
    (tenfold in some tens of steps). Norms of 0, NaN and inf do not enter; a gradient with a NaN or
    inf passes unchanged, so that `skip_nonfinite` around this transform refuses it.

    Args:
        threshold: largest z that passes, > 0.
        decay: weight of the past in the averages, in [0, 1).
        warmup: norms to see before the first is clipped, >= 1.
        axis_name: axis names of `shard_map` or `pmap`: all shards decide by the largest of their
            norms. Needed there if gradients differ between shards.

    Returns:
        A transformation with state `ClipByZscoreState`; see `health`.

    Raises:
        ValueError: a number is out of range.

    Reference:
        Kumar et al., ZClip: adaptive spike mitigation for LLM pre-training, 2025.
    """
    check_number("clip_by_zscore", "threshold", threshold)
    check_number("clip_by_zscore", "decay", decay, zero=True, below=1)
    check_count("clip_by_zscore", "warmup", warmup)

    def init(params: optax.Params) -> ClipByZscoreState:
        del params
        return ClipByZscoreState(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), NormStatistics.empty()
        )

    def update(
        updates: optax.Updates,
        state: ClipByZscoreState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipByZscoreState]:
        del params, extra_args
        norm = _shared_norm(updates, axis_name)
        size = as_float32(norm)
        updates, clipped = _clip(
            updates, norm, state.norms.limit(size, threshold, warmup), state.clipped
        )
        norms = state.norms.observe(size, threshold, decay, warmup)
        return updates, ClipByZscoreState(clipped, size, norms)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def clip_by_percentile(
    percentile: ArrayLike = 10.0, *, window: int = 256, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    """Scales a gradient down to a percentile of the norms of the latest steps, its own included.

    Interpolated linearly between ranks, as `numpy.percentile` does. AutoClip's 10 clips nine steps
    out of ten and so normalises the gradient; 90 to 99 clips spikes. Norms of 0, NaN and inf do
    not enter; a gradient with a NaN or inf passes unchanged, so that `skip_nonfinite` around this
    transform refuses it.

    Args:
        percentile: which percentile, in (0, 100].
        window: how many norms are kept, >= 1.
        axis_name: axis names of `shard_map` or `pmap`: all shards decide by the largest of their
            norms. Needed there if gradients differ between shards.

    Returns:
        A transformation with state `ClipByPercentileState`; see `health`.

    Raises:
        ValueError: a number is out of range.

    Reference:
        Seetharaman et al., AutoClip: adaptive gradient clipping for source separation networks,
        2020.
    """
    check_number("clip_by_percentile", "percentile", percentile, most=100)
    check_count("clip_by_percentile", "window", window)

    def init(params: optax.Params) -> ClipByPercentileState:
        del params
        counters = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return ClipByPercentileState(
            *counters, jnp.zeros(window, jnp.float32), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: optax.Updates,
        state: ClipByPercentileState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipByPercentileState]:
        del params, extra_args
        norm = _shared_norm(updates, axis_name)
        size = as_float32(norm)
        enters = jnp.isfinite(size) & (size > 0)
        added = state.history.at[state.seen % window].set(size)
        history = jnp.where(enters, added, state.history)
        seen = count_if(enters, state.seen)
        limit = _percentile(history, jnp.minimum(seen, window), percentile)
        # Inf, not the norm itself: that may be rounded, and would clip by its last bit.
        limit = jnp.where(enters & (limit < size), limit, jnp.inf)
        updates, clipped = _clip(updates, norm, limit, state.clipped)
        return updates, ClipByPercentileState(clipped, size, history, seen)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _shared_norm(updates: optax.Updates, axis_name: AxisName) -> Norm:
    return largest(tree_norm(float_leaves(updates)), axis_name)


def _clip(
    updates: optax.Updates, norm: Norm, limit: jax.Array, counter: jax.Array
) -> tuple[optax.Updates, jax.Array]:
    limit = limit.astype(norm.scaled.dtype)
    clipped = count_if(norm.exceeds(limit), counter)
    return map_floats(lambda g: norm.shrink(g, limit), updates), clipped


def _percentile(history: jax.Array, count: jax.Array, percentile: ArrayLike) -> jax.Array:
    """Percentile of the first `count` numbers of `history`; 0 of none."""
    ranked = jnp.sort(jnp.where(jnp.arange(history.size) < count, history, jnp.inf))
    place = jnp.maximum(count - 1, 0) * jnp.asarray(percentile, jnp.float32) / 100
    # A rank that is whole but for rounding is whole: XLA multiplies by 1 / 100.
    place = jnp.where(jnp.abs(place - jnp.round(place)) < 1e-4, jnp.round(place), place)
    below = jnp.floor(place).astype(jnp.int32)
    low, high = ranked[below], ranked[jnp.minimum(below + 1, jnp.maximum(count - 1, 0))]
    return jnp.where(count > 0, low + (place - below) * (high - low), 0)
