"""Optimizer wrappers that refuse a bad step whole: parameters and state stay as they were."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from robustops.optim._checks import check_count, check_inner, check_number, check_params
from robustops.optim._clip import as_float32, count_if, params_of, shrink_units, unit_limits
from robustops.optim._decide import Guarded, Proposal
from robustops.optim._learned import DECAY, WARMUP, NormStatistics
from robustops.optim._norms import (
    AxisName,
    Norm,
    all_shards,
    float_leaves,
    largest,
    map_floats,
    plain_norms,
    sum_squares,
    times,
    together,
    tree_norm,
    unit_norms,
    units,
    whole,
)

Judge = Literal["step", "gradient"]


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`."""

    inner_state: optax.OptState
    """State of the inner transformation, as after the last step taken."""
    steps: jax.Array
    """Updates asked for, int32."""
    skipped: jax.Array
    """Updates refused, int32."""
    consecutive_skipped: jax.Array
    """Updates refused in a row, up to the last one, int32."""
    stuck: jax.Array
    """Whether `max_consecutive` in a row were refused, up to the last one, bool."""


class GuardState(NamedTuple):
    """State of `guard`."""

    inner_state: optax.OptState
    """State of the inner transformation, as after the last step taken."""
    steps: jax.Array
    """Updates asked for, int32."""
    skipped: jax.Array
    """Updates refused, int32."""
    consecutive_skipped: jax.Array
    """Updates refused in a row, up to the last one, int32."""
    stuck: jax.Array
    """Whether `max_consecutive` in a row were refused, up to the last one, bool."""
    clipped: jax.Array
    """Updates taken with a gradient that was scaled down, int32."""
    last_norm: jax.Array
    """Global norm of the last gradient before clipping, float32; NaN if it was not finite."""
    norms: NormStatistics
    """Norms of the steps taken, cut at `max_norm`; `max_zscore` is measured by them."""


def skip_nonfinite(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    max_consecutive: int = 50,
    judge: Judge = "step",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Refuses every step with a NaN or inf: neither parameters nor inner state change.

    A step is refused if a NaN or inf is in the gradient, or newly in the update, in the inner state
    or (given `params`) in the parameters that the update would make. The update is then zero, and
    the inner state stays bit for bit. It never gives in: after `max_consecutive` refusals in a row
    `health(state).stuck` is True, and bad steps are still refused; the next good step is taken.

    With micro-gradients, wrap inside out: ``optax.MultiSteps(...)`` goes *inside*,
    ``skip_nonfinite(optax.MultiSteps(tx, k))``, so that a bad micro-gradient is left out before it
    enters the accumulator. In ``optax.MultiSteps(skip_nonfinite(tx), k)`` one NaN stays in the
    accumulator for good, since MultiSteps clears it by multiplying by 0: every later step is
    refused, and `health` says stuck.

    Compiled for CPU, the inner update is computed a second time for the check. The cheapest form is
    `guarded_apply`.

    Args:
        inner: any optax transformation. Extra arguments of `update` are passed on to it.
        max_consecutive: refusals in a row after which the state says stuck, >= 1.
        judge: ``"step"`` judges gradient, update and inner state; ``"gradient"`` the gradient
            alone, at a good part of the cost, and what overflows inside of `inner` passes.
        axis_name: axis names of `shard_map` or `pmap`: a step is refused on all shards if one
            shard must refuse it. Needed there if gradients differ between shards.

    Returns:
        A transformation with state `SkipNonfiniteState`; see `health`.

    Raises:
        TypeError: `inner` is not a transformation.
        ValueError: `max_consecutive` is not an integer >= 1, or `judge` is neither of the two.
    """
    tx = check_inner("skip_nonfinite", inner)
    check_count("skip_nonfinite", "max_consecutive", max_consecutive)
    _check_judge("skip_nonfinite", judge)

    def init(params: optax.Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(tx.init(params), *_no_steps())

    def propose(
        updates: optax.Updates,
        state: SkipNonfiniteState,
        params: optax.Params | None,
        extra_args: dict[str, Any],
    ) -> Proposal:
        light = judge == "gradient"
        return Proposal(
            step=lambda: tx.update(updates, state.inner_state, params, **extra_args),
            # A sum of squares that overflows would do so in a second moment as well.
            ok=jnp.isfinite(sum_squares(float_leaves(updates))) if light else jnp.bool_(True),
            grads=None if light else updates,
            inner_state=state.inner_state,
            params=params,
            axis_name=axis_name,
            commit=lambda ok, inner_state: SkipNonfiniteState(
                inner_state, *_count(ok, state, max_consecutive)
            ),
        )

    return optax.GradientTransformationExtraArgs(
        init, Guarded(propose, _innermost, SkipNonfiniteState)
    )  # pyright: ignore[reportArgumentType]


def guard(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    max_norm: ArrayLike | None = 1.0,
    max_zscore: ArrayLike | None = 5.0,
    clipping: ArrayLike | None = None,
    eps: ArrayLike = 1e-3,
    max_relative_update: ArrayLike | None = None,
    max_consecutive: int = 50,
    judge: Judge = "step",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that no gradient, however bad, can destroy the run.

    The gradient is clipped as by `clip_by_global_norm`, `clip_by_zscore` and then, with `clipping`,
    as by `adaptive_grad_clip`, from one set of sums of squares; the inner update may be capped; and
    a step is refused as by `skip_nonfinite`. In short ``skip_nonfinite(chain(
    clip_by_global_norm(max_norm), clip_by_zscore(max_zscore), adaptive_grad_clip(clipping, eps),
    inner, cap))``, in one pass over the gradient.

    The cap bounds the final update u of each parameter leaf p, whatever the learning rate:
    ||u|| <= r max(||p||, eps sqrt(n)), with n the number of elements, so that a parameter at zero
    can leave it. A finite update of any size is scaled down to the cap; an update that overflowed
    to inf or NaN inside `inner` has no direction left and is refused. Here and for `clipping` a
    norm of parameters counts as 1.8e19 at most (float32).

    Args:
        inner: any optax transformation. Extra arguments of `update` are passed on to it.
        max_norm: largest global norm of the gradient, > 0; None for no such limit.
        max_zscore: how many deviations the norm may lie above the mean of the norms so far, > 0;
            None for no such limit. The default leaves ordinary steps alone: it passes any norm up
            to 1.5 times the mean, and the first 25.
        clipping: largest ratio of a unit's gradient norm to its parameter norm, > 0; None for no
            such limit. Needs `params` in `update`.
        eps: smallest parameter norm (of a unit, for `clipping`) or root mean square (of a leaf,
            for `max_relative_update`) that counts, >= 0.
        max_relative_update: the r of the cap, > 0; None for no cap. Needs `params` in `update`.
            The survival benchmark takes 0.02 with `eps=0.1`, and learns at 1e30 times the rate.
        max_consecutive: refusals in a row after which the state says stuck, >= 1.
        judge: ``"step"`` judges gradient, update and inner state; ``"gradient"`` the gradient
            alone, at a good part of the cost, and what overflows inside of `inner` passes.
        axis_name: axis names of `shard_map` or `pmap`: all shards refuse, or none, and all clip
            by the largest of their norms. Needed there if gradients differ between shards.

    Returns:
        A transformation with state `GuardState`; see `health`.

    Raises:
        TypeError: `inner` is not a transformation.
        ValueError: a number is out of range, `judge` is neither of the two or, in `update`,
            parameters are needed and missing.
    """
    tx = check_inner("guard", inner)
    for name, value in [
        ("max_norm", max_norm),
        ("max_zscore", max_zscore),
        ("clipping", clipping),
        ("max_relative_update", max_relative_update),
    ]:
        if value is not None:
            check_number("guard", name, value)
    check_number("guard", "eps", eps, zero=True)
    check_count("guard", "max_consecutive", max_consecutive)
    _check_judge("guard", judge)

    def init(params: optax.Params) -> GuardState:
        counters = _no_steps()
        zero = jnp.zeros((), jnp.int32)
        last_norm, norms = jnp.zeros((), jnp.float32), NormStatistics.empty()
        return GuardState(tx.init(params), *counters, zero, last_norm, norms)

    def propose(
        updates: optax.Updates,
        state: GuardState,
        params: optax.Params | None,
        extra_args: dict[str, Any],
    ) -> Proposal:
        if clipping is not None or max_relative_update is not None:
            check_params("guard", params)
        leaves = float_leaves(updates)
        norms, limits, packing = [], [], None
        if clipping is None:
            norm = tree_norm(leaves)
        else:
            norms, norm, packing = unit_norms(leaves, units)
            limits = unit_limits(updates, params, packing, clipping, eps)
        finite = all_shards(jnp.isfinite(norm.scaled), axis_name)
        norm = Norm(*lax.optimization_barrier(largest(norm, axis_name)))
        # Without a limit the leaves pass; a share of a limit that is not exceeded is infinite.
        limit = jnp.asarray(jnp.inf if max_norm is None else max_norm, norm.scaled.dtype)
        size = jnp.minimum(as_float32(norm), limit.astype(jnp.float32))
        if max_zscore is not None:
            learned = state.norms.limit(size, max_zscore, WARMUP)
            limit = jnp.minimum(limit, learned.astype(limit.dtype))
        clips = norm.exceeds(limit)
        factors = [norm.factors(limit)]
        if packing is not None:
            all_of = lax.optimization_barrier(jnp.where(clips, factors[0][1], jnp.inf))
            shares = [n.share(c, norm, all_of) for n, c in zip(norms, limits, strict=True)]
            shrunk = [
                n.shrunk_by(r) for n, r in zip(norms, lax.optimization_barrier(shares), strict=True)
            ]
            factors = [row[:2] for row in shrunk]
            over = together(jnp.logical_or, [clips, *(row[2].any() for row in shrunk)])
            clips = ~all_shards(~over, axis_name)
        # One number, to multiply by twice: the product of the two may underflow, and with two of
        # them the kernels take twice as long to compile. Read, behind a barrier, and not an
        # expression that XLA would put into every kernel.
        roots = lax.optimization_barrier([jnp.sqrt(a) * jnp.sqrt(b) for a, b in factors])
        if packing is None:
            roots = roots * len(leaves)
        else:
            roots = lax.optimization_barrier(packing.unpack(roots))

        def step() -> tuple[optax.Updates, optax.OptState]:
            clipped = map_floats(lambda g, r: times(g, r, r), updates, roots)
            proposed, inner_state = tx.update(clipped, state.inner_state, params, **extra_args)
            if max_relative_update is not None:
                proposed = _cap(proposed, params, max_relative_update, eps)
            return proposed, inner_state

        def commit(ok: jax.Array, inner_state: optax.OptState) -> GuardState:
            seen = state.norms
            if max_zscore is not None:
                seen = seen.observe(jnp.where(ok, size, jnp.nan), max_zscore, DECAY, WARMUP)
            return GuardState(
                inner_state,
                *_count(ok, state, max_consecutive),
                clipped=count_if(ok & clips, state.clipped),
                last_norm=jnp.where(jnp.isfinite(norm.scaled), as_float32(norm), jnp.nan),
                norms=seen,
            )

        judged = None if judge == "gradient" else ()
        return Proposal(step, finite, judged, state.inner_state, params, axis_name, commit)

    return optax.GradientTransformationExtraArgs(init, Guarded(propose, _innermost, GuardState))  # pyright: ignore[reportArgumentType]


def guarded(
    where: str, inner: optax.GradientTransformation | optax.MultiSteps, axis_name: AxisName
) -> tuple[optax.GradientTransformationExtraArgs, Guarded]:
    """`inner`, in `skip_nonfinite` unless it is a guard already, and its `update`."""
    tx = check_inner(where, inner)
    if not isinstance(tx.update, Guarded):
        tx = skip_nonfinite(tx, axis_name=axis_name)
    assert isinstance(tx.update, Guarded)
    return tx, tx.update


def _check_judge(where: str, judge: Judge) -> None:
    if judge not in ("step", "gradient"):
        raise ValueError(f"{where}: judge must be 'step' or 'gradient', got {judge!r}")


def _innermost(state: SkipNonfiniteState | GuardState) -> optax.OptState:
    return state.inner_state


def _no_steps() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    # Three arrays, not one three times: a donated buffer must not be given twice.
    steps, skipped, consecutive = (jnp.zeros((), jnp.int32) for _ in range(3))
    return steps, skipped, consecutive, jnp.zeros((), jnp.bool_)


def _count(
    ok: jax.Array, state: SkipNonfiniteState | GuardState, max_consecutive: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    consecutive = jnp.where(ok, 0, optax.safe_increment(state.consecutive_skipped))
    return (
        count_if(jnp.bool_(True), state.steps),
        count_if(~ok, state.skipped),
        consecutive,
        consecutive >= max_consecutive,
    )


def _cap(
    updates: optax.Updates, params: optax.Params | None, ratio: ArrayLike, eps: ArrayLike
) -> optax.Updates:
    norms, _, packing = unit_norms(float_leaves(updates), whole)
    leaves = params_of(updates, params)
    least = packing.pack(
        [jnp.full(s, eps * p.size**0.5) for s, p in zip(packing.shapes, leaves, strict=True)]
    )
    limits = [
        jnp.multiply(ratio, jnp.maximum(n, m)).astype(n.dtype)
        for n, m in zip(plain_norms(leaves, whole, packing), least, strict=True)
    ]
    return shrink_units(updates, norms, limits, packing)
