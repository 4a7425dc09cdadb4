"""Return to the last good parameters, after bad steps or a blow-up of the loss."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from robustops.optim._checks import check_count, check_number, check_params, check_same_leaves
from robustops.optim._clip import count_if
from robustops.optim._decide import Guarded, Proposal, Rescue
from robustops.optim._guard import guarded
from robustops.optim._norms import AxisName, all_shards, is_float

_HOST_AXES = 6


class RollbackState(NamedTuple):
    """State of `rollback`."""

    inner_state: optax.OptState
    """State of the guarded inner transformation."""
    params: optax.Params
    """Parameters of the snapshot; with ``snapshot="host"`` six axes of size 1 come first."""
    snapshot: optax.OptState
    """State of the innermost transformation (Adam, say) that belongs to them."""
    age: jax.Array
    """Good steps since the snapshot, int32."""
    bad: jax.Array
    """Bad steps in a row, up to the last one, int32."""
    best: jax.Array
    """Lowest `value` of a good step, float32; inf before the first."""
    first: jax.Array
    """Magnitude of the `value` of the first good step, float32; inf before."""
    rate: jax.Array
    """What updates are multiplied by, float32."""
    rollbacks: jax.Array
    """Returns to the snapshot, int32."""
    unfinished: jax.Array
    """Whether the last update was a return, which may have been rounded, bool."""
    stuck: jax.Array
    """Whether another return was due after `max_rollbacks`, bool."""


def rollback(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    patience: int = 10,
    blow_up: ArrayLike = 10.0,
    snapshot_every: int = 100,
    rate_decay: ArrayLike = 1.0,
    max_rollbacks: int = 10,
    snapshot: Literal["device", "host"] = "device",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps a snapshot of parameters and state, and returns to it after `patience` bad steps.

    A step is bad if it is refused or if the `value` given to `update` is NaN, infinite or has
    blown up: value > best + `blow_up` max(|best|, |first| / 1000), with the lowest and the first
    value of a good step, so that after a best of 0 not all is bad. The value is a loss of the
    parameters before the update. Let it come from a fixed probe set: judged by the loss of each
    minibatch a return may do more harm than good. Without a value only refused steps count::

        updates, opt_state = tx.update(grads, opt_state, params, value=probe_loss(params))

    A return restores the parameters and the state of the innermost transformation (moments, step
    counts); counters go on. `guarded_apply` restores the parameters bit for bit. By way of updates
    the difference is rounded, so the next update adds what is left, in place of its gradient, if
    anything is. After `max_rollbacks` returns `health(state).stuck` says that another was due.

    Args:
        inner: any optax transformation; wrapped in `skip_nonfinite` unless it is a `guard` or
            another transformation of this module that refuses steps. Extra arguments of `update`,
            `value` among them, are passed on to it.
        patience: bad steps in a row before a return, >= 1.
        blow_up: how far above the best value is too far, as a multiple of its size, > 0.
        snapshot_every: good steps from one snapshot to the next, >= 1.
        rate_decay: factor on all later updates at each return, > 0 and <= 1.
        max_rollbacks: returns after which there are no more, >= 1.
        snapshot: memory that holds the snapshot. ``"host"`` spares the accelerator's: arrays move
            there every `snapshot_every` good steps, and back at a return. On CPU it is the same
            memory by another name.
        axis_name: axis names of `shard_map` or `pmap`: a value is bad on all shards if it is on
            one. A guarded `inner` needs its own.

    Returns:
        A transformation with state `RollbackState`; its `update` needs the parameters. See
        `health`.

    Raises:
        TypeError: `inner` is not a transformation.
        ValueError: a number is out of range, `snapshot` is neither of the two or its memory is not
            there or, in `update`, the parameters are missing or `value` is not a scalar.
    """
    tx, inside = guarded("rollback", inner, axis_name)
    check_count("rollback", "patience", patience)
    check_count("rollback", "snapshot_every", snapshot_every)
    check_count("rollback", "max_rollbacks", max_rollbacks)
    check_number("rollback", "blow_up", blow_up)
    check_number("rollback", "rate_decay", rate_decay, most=1)
    if snapshot not in ("device", "host"):
        raise ValueError(f"rollback: snapshot must be 'device' or 'host', got {snapshot!r}")
    remote = snapshot == "host"

    def init(params: optax.Params) -> RollbackState:
        if remote:
            _check_host_memory()
        inner_state = tx.init(params)
        # New arrays throughout: a donated buffer must not be given twice.
        new = jax.tree.map(jnp.array, (params, inside.innermost(inner_state)))
        kept_params, kept_state = _to_host(new) if remote else new
        return RollbackState(
            inner_state,
            params=kept_params,
            snapshot=kept_state,
            age=jnp.zeros((), jnp.int32),
            bad=jnp.zeros((), jnp.int32),
            best=jnp.full((), jnp.inf, jnp.float32),
            first=jnp.full((), jnp.inf, jnp.float32),
            rate=jnp.ones((), jnp.float32),
            rollbacks=jnp.zeros((), jnp.int32),
            unfinished=jnp.zeros((), jnp.bool_),
            stuck=jnp.zeros((), jnp.bool_),
        )

    def propose(
        updates: optax.Updates,
        state: RollbackState,
        params: optax.Params | None,
        extra_args: dict[str, Any],
    ) -> Proposal:
        check_params("rollback", params)
        advice = "pass the parameters that the state was made from by init"
        check_same_leaves(state.params, params, "the snapshot has", advice)
        for p, s in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
            if jnp.result_type(p) != s.dtype:
                raise ValueError(
                    f"rollback: the snapshot is {s.dtype}, the parameters {jnp.result_type(p)}; put"
                    " it outside, as in rollback(dynamic_loss_scale(inner))"
                )
        value = _scalar(extra_args.get("value"))
        blown = jnp.bool_(False)
        if value is not None:
            size = jnp.maximum(jnp.abs(state.best), state.first / 1000)
            risen = (size > 0) & (value > state.best + blow_up * size)
            blown = ~jnp.isfinite(value) | risen
            blown = ~all_shards(~blown, axis_name)
        proposal = inside.propose(updates, state.inner_state, params, extra_args)

        def fetch() -> tuple[optax.Params, optax.OptState]:
            kept = state.params, state.snapshot
            return _to_device(kept) if remote else kept

        rest = lax.cond(state.unfinished, lambda: _differ(params, fetch()[0]), lambda: False)
        rest = ~all_shards(~rest, axis_name)

        def step() -> tuple[optax.Updates, optax.OptState]:
            proposed, inner_state = proposal.step()
            slower = lambda u: (u * state.rate).astype(u.dtype) if is_float(u) else u
            return jax.tree.map(slower, proposed), inner_state

        def due(ok: jax.Array) -> jax.Array:
            return (~ok | blown) & ~rest & (state.bad + 1 >= patience)

        def returns(ok: jax.Array) -> jax.Array:
            return due(ok) & (state.rollbacks < max_rollbacks)

        def commit(ok: jax.Array, inner_state: optax.OptState) -> RollbackState:
            good, back = ok & ~blown & ~rest, returns(ok)
            aged = jnp.where(good, state.age + 1, state.age)
            fresh = good & (aged >= snapshot_every)
            # Of the parameters before this update: it is they that the value is of.
            current = lambda: (params, proposal.inner_state)
            kept_params, kept_state = lax.cond(
                fresh,
                lambda: _to_host(current()) if remote else current(),
                lambda: (state.params, state.snapshot),
            )
            best, first = state.best, state.first
            if value is not None:
                best = jnp.minimum(best, value)
                first = jnp.where(jnp.isfinite(first) & (first > 0), first, jnp.abs(value))
            return RollbackState(
                proposal.commit(ok, inner_state),
                kept_params,
                kept_state,
                age=jnp.where(fresh | back, 0, aged),
                bad=jnp.where(good | rest | back, 0, optax.safe_increment(state.bad)),
                best=jnp.where(good, best, state.best),
                first=jnp.where(good, first, state.first),
                rate=jnp.where(back, state.rate * rate_decay, state.rate).astype(jnp.float32),
                rollbacks=count_if(back, state.rollbacks),
                unfinished=back,
                stuck=due(ok) & ~back,
            )

        rescue = Rescue(lambda ok: returns(ok) | rest, fetch, remote)
        return proposal._replace(step=step, commit=commit, rescue=rescue)

    innermost = lambda state: inside.innermost(state.inner_state)
    return optax.GradientTransformationExtraArgs(init, Guarded(propose, innermost, RollbackState))  # pyright: ignore[reportArgumentType]


def _scalar(value: Any) -> jax.Array | None:
    if value is None:
        return None
    if jnp.shape(value) != ():
        raise ValueError(f"rollback: value must be a scalar, got shape {jnp.shape(value)}")
    return jnp.asarray(value, jnp.float32)


def _check_host_memory() -> None:
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if "pinned_host" not in kinds:
        raise ValueError(
            f"rollback: snapshot='host' needs memory of kind pinned_host, and {device.device_kind}"
            f" has {', '.join(kinds)}; use snapshot='device'"
        )


def _to_host(tree: Any) -> Any:
    """The arrays of `tree` in host memory; scalars, which cost nothing, and keys as they are."""

    def move(x: jax.Array) -> jax.Array:
        # Of a shape that no array on the device has: jit would make a donated host array the
        # buffer of a device result of the same shape, and the process aborts (jax 0.10 to 0.12).
        x = jnp.expand_dims(x, tuple(range(_HOST_AXES)))
        return jax.device_put(x, jax.memory.Space.Host)

    return jax.tree.map(lambda x: move(x) if _travels(x) else x, tree)


def _to_device(tree: Any) -> Any:
    """The inverse of `_to_host`."""

    def move(x: jax.Array) -> jax.Array:
        x = jax.device_put(x, jax.memory.Space.Device)
        return jnp.squeeze(x, tuple(range(_HOST_AXES)))

    return jax.tree.map(lambda x: move(x) if _travels(x) else x, tree)


def _travels(x: Any) -> bool:
    return jnp.ndim(x) > 0 and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _differ(params: Any, snapshot: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(snapshot), strict=True)
    # No short way out for NaN: parameters are finite, or were not to begin with.
    return jnp.stack([jnp.any(a != b) for a, b in pairs] or [jnp.bool_(False)]).any()
