"""The one decision of every guard: take the whole step, or leave everything as it was."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from robustops.optim._checks import check_inner, check_params, check_same_leaves
from robustops.optim._norms import (
    AxisName,
    all_shards,
    by_platform,
    is_float,
    sum_each,
    sum_folded,
)
from robustops.optim._packing import layout

Step = Callable[[], tuple[Any, optax.OptState]]


class Rescue(NamedTuple):
    """A third outcome: everything as it was in a snapshot."""

    wanted: Callable[[jax.Array], jax.Array]
    """Whether to return to the snapshot, given whether the step could be taken."""
    fetch: Callable[[], tuple[optax.Params, optax.OptState]]
    """Parameters and inner state of the snapshot."""
    remote: bool
    """Whether `fetch` moves them from another memory, which only a return should pay for."""


class Proposal(NamedTuple):
    """A step that is not yet taken."""

    step: Step
    """Makes the updates and the next inner state; pure, and may be computed twice."""
    ok: jax.Array
    """What is known already, for instance that the norm of the gradient is finite."""
    grads: optax.Updates | None
    """Judged as well, leaf by leaf; `()` where `ok` says it all of them, None of the whole step."""
    inner_state: optax.OptState
    """Kept, bit for bit, if the step is refused."""
    params: optax.Params | None
    """If given, ``params + updates`` must stay finite too."""
    axis_name: AxisName
    """Mapped axes over which all shards must agree."""
    commit: Callable[[jax.Array, optax.OptState], Any]
    """The whole next state, from whether the step was taken and the next inner state."""
    rescue: Rescue | None = None


@dataclass(frozen=True)
class Guarded:
    """The `update` of a guard, with a second form that makes the new parameters as well."""

    propose: Callable[[optax.Updates, Any, optax.Params | None, dict[str, Any]], Proposal]
    innermost: Callable[[Any], optax.OptState]
    """The state that is kept on a refused step, out of the whole state."""
    state_type: Any
    """The NamedTuple that `init` makes."""

    def __call__(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        """The `update` of the optax protocol."""
        self._check(state)
        p = self.propose(updates, state, params, extra_args)
        return _decide(p, lambda u: u, _no_update, _update_to)

    def apply(
        self, updates: optax.Updates, state: Any, params: optax.Params, **extra_args: Any
    ) -> tuple[optax.Params, Any]:
        """The new parameters, and the new state."""
        self._check(state)
        return _apply(self.propose(updates, state, params, extra_args))

    def _check(self, state: Any) -> None:
        wanted = self.state_type
        if not all(hasattr(state, field) for field in wanted._fields):
            raise TypeError(
                f"update: the optimizer state must be a {wanted.__name__}, as tx.init(params) makes"
                f" it, got a {type(state).__name__}; gradients, state and parameters come in this"
                " order, and a run begun without the guard goes on with tx.init(params)._replace("
                "inner_state=old_state)"
            )


def guarded_apply(
    tx: optax.GradientTransformation | optax.MultiSteps,
    grads: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    **extra_args: Any,
) -> tuple[optax.Params, optax.OptState]:
    """Updates and applies in one decision: the new parameters and state, or the old, bit for bit.

    It stands for ``updates, opt_state = tx.update(grads, opt_state, params)`` and
    ``optax.apply_updates(params, updates)``, and is the cheapest form on every platform.

    Around `guard`, `skip_nonfinite`, `dynamic_loss_scale` and `rollback` the decision is theirs.
    Any other transformation is refused if something newly non-finite comes out of it, in the
    parameters or in its state; that leaves no trace, so wrap it in `skip_nonfinite` to count, and
    under `shard_map`, where that takes the axis name.

    Args:
        tx: any optax transformation.
        grads: gradients, as for `tx.update`.
        opt_state: state of `tx`.
        params: parameters that were differentiated.
        **extra_args: passed on to `tx.update`.

    Returns:
        parameters and optimizer state after the step.

    Raises:
        TypeError: `tx` is not a transformation.
        ValueError: `params` is None, or its leaves are not those of `grads`.
    """
    tx = check_inner("guarded_apply", tx)
    if isinstance(tx.update, Guarded):
        return tx.update.apply(grads, opt_state, params, **extra_args)
    step = lambda: tx.update(grads, opt_state, params, **extra_args)
    return _apply(
        Proposal(step, jnp.bool_(True), (), opt_state, params, None, lambda ok, state: state)
    )


def _apply(p: Proposal) -> tuple[optax.Params, Any]:
    check_params("guarded_apply", p.params)
    add = lambda updates: optax.apply_updates(p.params, updates)  # pyright: ignore[reportArgumentType]
    keep, restore = (lambda updates: p.params), (lambda updates, params, snapshot: snapshot)
    return _decide(p, add, keep, restore)


def _decide(
    p: Proposal,
    finish: Callable[[optax.Updates], Any],
    keep: Callable[[optax.Updates], Any],
    restore: Callable[[optax.Updates, Any, Any], Any],
) -> tuple[Any, Any]:
    """Result of the step if nothing in it is newly non-finite, else no step at all.

    Args:
        p: the step.
        finish: what to return for the updates of a step that is taken.
        keep: the same for a step that is refused.
        restore: the same for a return to a snapshot, from updates, parameters and snapshot.

    Returns:
        the finished updates, and the whole next state.
    """
    updates, new_state = p.step()
    ok = p.ok if p.grads is None else p.ok & _sound(p, updates, new_state)
    ok = all_shards(ok, p.axis_name)
    which = ok.astype(jnp.int32)
    if p.rescue is not None:
        which = jnp.where(p.rescue.wanted(ok), 2, which)

    def refuse() -> tuple[Any, optax.OptState]:
        return _strong((keep(updates), p.inner_state))

    def take() -> tuple[Any, optax.OptState]:
        updates, state = p.step()
        return _strong((finish(updates), state))

    def go_back() -> tuple[Any, optax.OptState]:
        assert p.rescue is not None
        params, state = p.rescue.fetch()
        return _strong((restore(updates, p.params, params), state))

    makers = [refuse, take, go_back][: 2 if p.rescue is None else 3]
    outcomes = [refuse(), (finish(updates), new_state), *(make() for make in makers[2:])]
    remote = p.rescue is not None and p.rescue.remote and isinstance(which, Tracer)

    def select() -> tuple[Any, Any]:
        chosen = outcomes[0]
        for i, outcome in enumerate(outcomes[1 : 2 if remote else 3], 1):
            chosen = jax.tree.map(functools.partial(jnp.where, which == i), outcome, chosen)
        if remote:
            chosen = lax.cond(which == 2, go_back, lambda: _strong(chosen))
        return chosen[0], p.commit(ok, chosen[1])

    def branch() -> tuple[Any, Any]:
        if p.rescue is not None:
            new, state = lax.switch(which, makers)
            return new, p.commit(ok, state)

        # The whole result comes out of the branch: what is unpacked takes longer to compile.
        def committed(make: Step, took: bool) -> Step:
            def whole() -> tuple[Any, Any]:
                new, state = make()
                return new, p.commit(jnp.bool_(took), state)

            return whole

        return lax.switch(which, [committed(refuse, False), committed(take, True)])

    # Accelerators fuse the select with the inner update. XLA for CPU copies both trees for it
    # (measured: 4x to 6x a bare Adam step); there `step` is computed once for its verdict only,
    # and once more, in place, in the branch that is taken. Branches must agree in type, which
    # they may not where only some outcomes vary over the axes of a shard_map.
    types = [[jax.typeof(x) for x in jax.tree.leaves(_strong(outcome))] for outcome in outcomes]
    alike = isinstance(which, Tracer) and all(t == types[0] for t in types)
    return by_platform(branch, select, [which]) if alike else select()


def _strong(tree: Any) -> Any:
    """Without weak types, which are lost anyway where an outcome without them is chosen."""
    strong = lambda x: jnp.asarray(x, jnp.result_type(x)) if jax.typeof(x).weak_type else x
    return jax.tree.map(strong, tree)


def _no_update(updates: optax.Updates) -> optax.Updates:
    # -0.0 and not 0.0: x + -0.0 is x for every x, while -0.0 + 0.0 loses its sign.
    return jax.tree.map(lambda u: jnp.full_like(u, -0.0 if is_float(u) else 0), updates)


def _update_to(updates: optax.Updates, params: Any, snapshot: Any) -> optax.Updates:
    """The updates that lead from `params` to `snapshot`, up to rounding."""
    leaves, treedef = jax.tree.flatten(updates)
    rows = zip(leaves, jax.tree.leaves(params), jax.tree.leaves(snapshot), strict=True)
    # Like the update in dtype, which may be wider than the parameter's and then rounds less.
    return treedef.unflatten([s.astype(u.dtype) - jnp.asarray(p, u.dtype) for u, p, s in rows])


def _sound(p: Proposal, updates: optax.Updates, new_state: Any) -> jax.Array:
    """Whether nothing that the step reads or makes is newly non-finite."""
    faults = [_fault(g) for g in jax.tree.leaves(p.grads) if is_float(g)]
    faults += _state_faults(p.inner_state, new_state) + _update_faults(updates, p.params)
    terms = _deal(faults, _leaf_counts(updates))
    folded, each = (functools.partial(form, terms, jnp.float32) for form in (sum_folded, sum_each))
    return by_platform(folded, each, terms) == 0


def _fault(x: Any) -> jax.Array:
    """0, and NaN where x is not finite: faults can be added up."""
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x):
        return _fault(x.real) + _fault(x.imag)
    return (x - x).astype(jnp.float32)


def _state_faults(old: Any, new: Any) -> list[jax.Array]:
    """Not of what was not finite before: some states start at inf, as a best loss does.

    A `last_norm` is a report, which is meant to show a NaN.
    """
    rows = zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True)
    return [
        # Not `where`, a function that would be called, and inlined, for each leaf.
        _fault(lax.select(jnp.isfinite(x), jnp.asarray(y), jnp.zeros_like(y)))
        for (path, x), y in rows
        if is_float(y) and is_float(x) and not jax.tree_util.keystr(path).endswith(".last_norm")
    ]


def _update_faults(updates: optax.Updates, params: optax.Params | None) -> list[jax.Array]:
    leaves = [jnp.asarray(u) for u in jax.tree.leaves(updates)]
    if params is None:
        return [_fault(u) for u in leaves if is_float(u)]
    check_same_leaves(updates, params)
    pairs = zip(leaves, map(jnp.asarray, jax.tree.leaves(params)), strict=True)
    return [_arrival_fault(u, p) for u, p in pairs if is_float(u) or is_float(p)]


def _arrival_fault(u: jax.Array, p: jax.Array) -> jax.Array:
    """NaN where u is not finite, or the parameter that it makes; else 0."""
    info = jnp.finfo(p.dtype) if is_float(p) else None
    if info is None or (info.bits < 32 and info.dtype != jnp.bfloat16) or jnp.iscomplexobj(u):
        made = (p + u).astype(p.dtype)
        return _fault(u) + _fault(jnp.where(jnp.isfinite(p), made, 0))
    # Half a unit in the last place of the largest number, 1e31 in float32: no finite parameter
    # overflows by less. So the parameters need not be read. float16 would leave 16. Times a power
    # of two what is larger overflows; constants and selects would take longer to compile.
    own = jnp.finfo(u.dtype)
    room = int(info.maxexp) - int(info.nmant) - 2
    return _fault(u * 2.0 ** max(int(own.maxexp) - room, 0))


def _leaf_counts(tree: Any) -> dict[Hashable, int]:
    counts: dict[Hashable, int] = {}
    for x in jax.tree.leaves(tree):
        counts[layout(x)] = counts.get(layout(x), 0) + 1
    return counts


def _deal(faults: list[jax.Array], counts: dict[Hashable, int]) -> list[jax.Array]:
    """Those of one parameter (gradient, moments, update) added up, so that one kernel reads them.

    Leaves of one shape come in the order of the parameters, tree after tree, so dealing them out
    in turn puts a parameter's own together. A wrong guess costs time only.
    """
    groups: dict[Hashable, jax.Array] = {}
    seen: dict[Hashable, int] = {}
    for f in faults:
        kind = layout(f)
        turn = seen.get(kind, 0)
        seen[kind] = turn + 1
        key = kind, turn % counts.get(kind, 1)
        groups[key] = groups[key] + f if key in groups else f
    return list(groups.values())
