"""The guards in and around other transformations, flax.nnx, vmap and donation."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import optim
from tests._optim import (
    WRAPPERS,
    adam,
    assert_finite,
    bits,
    make_grads,
    make_params,
    norm_of,
    plant,
    stepper,
)


def micro_run(tx: Any, steps, bad) -> Any:
    params, step = make_params(), jax.jit(stepper(tx))
    state = tx.init(params)
    for i in range(steps):
        grads = plant(make_grads(), np.nan) if i in bad else make_grads()
        params, state = step(grads, state, params)
    return params, state


def test_multi_steps_inside_leaves_a_bad_micro_gradient_out():
    peer = optax.MultiSteps(optax.apply_if_finite(optax.sgd(0.1), 5), 4).gradient_transformation()
    assert np.isnan(micro_run(peer, 3, {1})[1].acc_grads["w"]).any()
    inside = optim.skip_nonfinite(optax.MultiSteps(optax.sgd(0.1), 4))
    params, state = micro_run(inside, 9, {1})  # eight good ones: two whole steps
    want = jax.tree.map(lambda p, g: p - 0.2 * g, make_params(), make_grads())
    chex.assert_trees_all_close(params, want, rtol=1e-6)
    h = optim.health(state)
    assert (h.steps, h.skipped) == (9, 1)
    outside = optax.MultiSteps(optim.guard(optax.sgd(0.1)), 4).gradient_transformation()
    params, state = micro_run(outside, 16, {1})  # stuck, but not silently
    chex.assert_trees_all_equal(params, make_params())
    assert int(optim.health(state).consecutive_skipped) == 4


NESTS: dict[str, Any] = {
    "chain": lambda tx: optax.chain(optax.scale(1.0), tx, optax.scale(1.0)),
    "multi_transform": lambda tx: optax.multi_transform(
        {"a": tx, "b": optim.guard(optax.sgd(0.1))}, {"w": "a", "b": "b"}
    ),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "inject": lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(
        1.0
    ),
    "lookup": lambda tx: optax.named_chain(("guard", tx), ("scale", optax.scale(1.0))),
    "skip": lambda tx: optim.skip_nonfinite(tx),
}


@pytest.mark.parametrize("inner", [optim.skip_nonfinite, optim.guard])
@pytest.mark.parametrize("nest", NESTS)
def test_nested_guards_refuse_and_are_found(nest, inner):
    tx: Any = NESTS[nest](inner(adam()))
    params, step = make_params(), jax.jit(stepper(tx))
    params, state = step(make_grads(), tx.init(params), params)
    before = params["w"]
    params, state = step(plant(make_grads(), np.nan), state, params)
    assert bits(params["w"]) == bits(before)
    h = jax.jit(optim.health)(state)
    assert (h.steps, h.skipped, h.consecutive_skipped, h.stuck) == (2, 1, 1, False)
    params, state = step(make_grads(), state, params)
    assert 1e-3 < abs(float((params["w"] - before)[0, 0])) < 0.1
    assert int(optim.health(state).consecutive_skipped) == 0


def test_hyperparameters_can_be_injected_into_guard():
    tx: Any = optax.inject_hyperparams(optim.guard)(optax.sgd(1.0), max_norm=0.5, max_consecutive=2)
    params, step = make_params(), jax.jit(stepper(tx))
    state = tx.init(params)
    moved, state = step(make_grads(scale=100.0), state, params)
    assert abs(norm_of(jax.tree.map(lambda a, b: a - b, moved, params)) - 0.5) < 1e-5
    state.hyperparams["max_norm"] = jnp.asarray(0.25)
    again, state = step(make_grads(scale=100.0), state, moved)
    assert abs(norm_of(jax.tree.map(lambda a, b: a - b, again, moved)) - 0.25) < 1e-5
    for _ in range(2):
        _, state = step(plant(make_grads(), np.nan), state, again)
    assert bool(optim.health(state).stuck)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nnx_optimizer_refuses_a_bad_step(wrapper):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, WRAPPERS[wrapper](adam()), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, x):
        grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)

    train(model, optimizer, jnp.ones((4, 3)))
    before = bits(nnx.state(model))
    train(model, optimizer, jnp.full((4, 3), jnp.nan))
    assert bits(nnx.state(model)) == before
    for opt_state in (optimizer, optimizer.opt_state):
        h = optim.health(opt_state)
        assert (h.steps, h.skipped) == (2, 1)
    train(model, optimizer, jnp.ones((4, 3)))
    assert bits(nnx.state(model)) != before


def test_odd_trees_pass():
    for params in ({}, (), {"a": None, "m": optax.MaskedNode()}, {"e": jnp.zeros((0, 3))}):
        for wrapper in WRAPPERS.values():
            tx = wrapper(adam())
            updates, state = jax.jit(tx.update)(params, tx.init(params), params)
            chex.assert_trees_all_equal_structs(updates, params)
            assert int(state.skipped) == 0
    tx: Any = optim.skip_nonfinite(optax.identity())
    grads = {"i": jnp.array([7]), "f": jnp.array([jnp.nan]), "n": None}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    chex.assert_trees_all_equal(updates, {"i": jnp.array([0]), "f": jnp.array([-0.0]), "n": None})


@pytest.mark.parametrize("wrapper", WRAPPERS.values())
def test_state_of_another_optimizer_is_named(wrapper):
    params, grads, tx = make_params(), make_grads(), wrapper(adam())
    with pytest.raises(TypeError, match=r"must be a (Guard|SkipNonfinite)State, as tx\.init"):
        optim.guarded_apply(tx, grads, adam().init(params), params)
    with pytest.raises(TypeError, match="got a dict; gradients, state and parameters come in this"):
        tx.update(grads, params, tx.init(params))
    old = adam().init(params)
    _, state = tx.update(grads, tx.init(params)._replace(inner_state=old), params)
    assert int(state.steps) == 1


OTHERS: list[Any] = [optim.dynamic_loss_scale, optim.rollback]


@pytest.mark.parametrize("wrapper", [*WRAPPERS.values(), *OTHERS])
def test_python_numbers_are_parameters_too(wrapper):
    numbers, tx = {"a": 1.0, "b": -2.0}, wrapper(adam())
    grads = {"a": 0.1, "b": 0.2}
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (grads, numbers))
    for form in (functools.partial(optim.guarded_apply, tx), stepper(tx)):
        want, _ = form(arrays[0], tx.init(arrays[1]), arrays[1])
        got, _ = form(grads, tx.init(numbers), numbers)
        chex.assert_trees_all_equal(got, want)


def test_typed_keys_in_the_state_are_kept_on_a_refused_step(run):
    init = lambda params: jax.random.key(0)
    update = lambda updates, state, params=None: (updates, jax.random.split(state)[0])
    keyed: Any = optax.GradientTransformation(init, update)
    tx: Any = optim.skip_nonfinite(keyed)
    params = make_params()
    _, state = run(stepper(tx))(plant(make_grads(), np.inf), tx.init(params), params)
    assert bits(jax.random.key_data(state.inner_state)) == bits(
        jax.random.key_data(jax.random.key(0))
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_donated_steps_compile_once_and_survive(wrapper):
    tx: Any = WRAPPERS[wrapper](adam())
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(stepper(tx), n=1)
    step = jax.jit(traced, donate_argnums=(1, 2))
    params = jax.tree.map(jnp.array, make_params())
    state = tx.init(params)
    for i in range(6):
        before = bits((params, state.inner_state))
        params, state = step(plant(make_grads(), np.nan) if i % 2 else make_grads(), state, params)
        assert (bits((params, state.inner_state)) == before) == bool(i % 2)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_vmap_decides_for_each_member_alone(wrapper):
    tx: Any = WRAPPERS[wrapper](adam())
    params = jax.tree.map(lambda p: jnp.stack([p, p]), make_params())
    good, bad = make_grads(), plant(make_grads(), np.nan)
    grads = jax.tree.map(lambda a, b: jnp.stack([a, b]), good, bad)
    after, state = jax.jit(jax.vmap(stepper(tx)))(grads, jax.vmap(tx.init)(params), params)
    np.testing.assert_array_equal(state.skipped, [0, 1])
    pick = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    assert bits(pick(after, 1)) == bits(make_params())
    chex.assert_trees_all_close(
        pick(after, 0), stepper(tx)(good, tx.init(make_params()), make_params())[0], rtol=1e-5
    )


def test_lookahead_around_a_guard_keeps_both_sets_of_weights_finite():
    tx: Any = optax.lookahead(optim.guard(adam()), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(make_params())
    state, step = tx.init(params), jax.jit(stepper(tx))
    for i in range(9):
        grads = plant(make_grads(), np.nan) if i in (1, 2, 5) else make_grads()
        fast = bits(params.fast)
        params, state = step(grads, state, params)
        if i == 1:  # no synchronisation falls due here
            assert bits(params.fast) == fast
        assert_finite(params)
    assert optim.health(state).skipped == 3
    assert bits(params.slow) != bits(make_params())


@pytest.mark.parametrize("outside", [True, False])
def test_schedule_free_with_a_fault_inside(outside):
    if outside:
        tx: Any = optim.guard(optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9))
    else:
        tx = optax.contrib.schedule_free(optim.guard(optax.sgd(0.1)), 0.1, b1=0.9)
    params, step = make_params(), jax.jit(stepper(tx))
    state = tx.init(params)
    for i in range(6):
        before = bits(params)
        params, state = step(plant(make_grads(), np.inf) if i == 3 else make_grads(), state, params)
        assert_finite(params)
        if outside:
            assert (bits(params) == before) == (i == 3)
    assert optim.health(state).skipped == 1


RECOVERERS: dict[str, Any] = {
    "scale": lambda tx: optim.dynamic_loss_scale(tx, initial=1.0),
    "rollback": lambda tx: optim.rollback(optim.guard(tx)),
}


@pytest.mark.parametrize("wrap", RECOVERERS)
@pytest.mark.parametrize("nest", ["chain", "multi_transform", "masked", "inject"])
def test_nested_recoverers_refuse_and_are_found(nest, wrap):
    test_nested_guards_refuse_and_are_found(nest, RECOVERERS[wrap])


def test_micro_steps_inside_a_loss_scale():
    tx: Any = optim.dynamic_loss_scale(optax.MultiSteps(optax.sgd(0.1), 4), initial=1.0)
    params, state = micro_run(tx, 9, {1})
    want = jax.tree.map(lambda p, g: p - 0.2 * g, make_params(), make_grads())
    chex.assert_trees_all_close(params, want, rtol=1e-6)
    assert optim.health(state).skipped == 1
