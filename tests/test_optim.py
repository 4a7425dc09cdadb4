"""The guards under every fault: refused steps change nothing, and learning goes on."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import optim

FAULTS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e30": 1e30, "3e38": 3e38, "6e4": 6e4}
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def make_params(dtype=jnp.float32):
    w = jnp.linspace(-1, 1, 12).reshape(4, 3).astype(dtype)
    return {"w": w, "b": jnp.zeros((3,), dtype).at[0].set(-0.0)}


def make_grads(dtype=jnp.float32, scale=0.1):
    keys = jax.random.split(jax.random.key(0))
    draw = lambda k, s: (scale * jax.random.normal(k, s)).astype(dtype)
    return {"w": draw(keys[0], (4, 3)), "b": draw(keys[1], (3,))}


def plant(grads, value, leaf="w"):
    bad = grads[leaf].reshape(-1).at[1].set(value).reshape(grads[leaf].shape)
    return {**grads, leaf: bad}


def bits(tree: Any):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(x, np.float64)).all()


def norm_of(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def adam(dtype: Any = jnp.float32) -> Any:
    return optax.adam(0.01, eps=1e-4 if dtype == jnp.float16 else 1e-8)


def stepper(tx: Any) -> Any:
    """One step of `tx`, for the chex variants to compile or not."""

    def step(grads, state, params, **extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


@pytest.fixture(params=["eager", "cond", "select"])
def run(request, monkeypatch):
    """Compiles a function in each form that the decision can take, or leaves it eager."""
    if request.param == "select":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    return (lambda f: f) if request.param == "eager" else jax.jit


WRAPPERS: dict[str, Any] = {
    "skip": optim.skip_nonfinite,
    "guard": optim.guard,
    "guard_all": lambda inner: optim.guard(inner, clipping=0.1, max_relative_update=0.5),
}


@pytest.mark.parametrize(
    ("run", "dtype"),
    [("eager", jnp.float32), ("select", jnp.float16), *(("cond", d) for d in DTYPES)],
    indirect=["run"],
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_fault_leaves_parameters_finite_and_learning_alive(wrapper, dtype, run):
    tx = WRAPPERS[wrapper](adam(dtype))
    step, params = run(stepper(tx)), make_params(dtype)
    state, good = tx.init(params), make_grads(dtype)
    params, state = step(good, state, params)
    healthy = norm_of(jax.tree.map(lambda a, b: a - b, params, make_params(dtype)))
    for i, fault in enumerate(FAULTS.values()):
        bad = plant(good, jnp.float32(fault).astype(dtype), "wb"[i % 2])
        before, skipped = (bits((params, state.inner_state)), int(state.skipped))
        params, state = step(bad, state, params)
        assert_finite((params, state.inner_state))
        refused = int(state.skipped) - skipped
        assert refused == 1 or np.isfinite(np.asarray(bad["wb"[i % 2]], np.float64)).all()
        if refused:
            assert bits((params, state.inner_state)) == before
    # A huge gradient that was taken (clipped by guard) leaves a trace in the moments: it fades.
    last = params
    for _ in range(20):
        last = params
        params, state = step(good, state, params)
    moved = norm_of(jax.tree.map(lambda a, b: a - b, params, last))
    assert_finite((params, state.inner_state))
    if dtype == jnp.float32 or wrapper == "skip":
        assert 0.2 * healthy < moved < 5 * healthy
    else:
        assert moved > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.dtype.name)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_fifty_one_bad_steps_in_a_row_change_nothing(wrapper, dtype):
    tx = WRAPPERS[wrapper](adam(dtype))
    step, params = jax.jit(stepper(tx)), make_params(dtype)
    params, state = step(make_grads(dtype), tx.init(params), params)
    before = bits((params, state.inner_state))
    for i in range(51):
        assert bool(optim.health(state).stuck) == (i >= 50)
        bad = plant(make_grads(dtype), [np.nan, np.inf, -np.inf][i % 3])
        params, state = step(bad, state, params)
    assert bits((params, state.inner_state)) == before
    h = optim.health(state)
    assert (h.steps, h.skipped, h.consecutive_skipped, h.stuck) == (52, 51, 51, True)
    taken, state = step(make_grads(dtype), state, params)
    assert bits(taken) != bits(params)
    h = optim.health(state)
    assert (h.steps, h.skipped, h.consecutive_skipped, h.stuck) == (53, 51, 0, False)


def test_good_steps_are_those_of_the_bare_optimizer(run):
    for wrap in (optim.skip_nonfinite, partial(optim.guard, max_norm=None)):
        tx: Any = wrap(adam())
        step, bare = run(stepper(tx)), run(stepper(adam()))
        p, s, q, t = (
            make_params(),
            tx.init(make_params()),
            make_params(),
            adam().init(make_params()),
        )
        for i in range(5):
            p, s = step(make_grads(scale=i + 1.0), s, p)
            q, t = bare(make_grads(scale=i + 1.0), t, q)
        chex.assert_trees_all_close((p, s.inner_state), (q, t), rtol=1e-6)


# What goes wrong with the peers, and not here.


def test_peer_apply_if_finite_gives_up_and_writes_the_nan():
    bad = plant(make_grads(), np.nan)
    for tx, survives in (
        (optax.apply_if_finite(adam(), 5), False),
        (optim.skip_nonfinite(adam(), max_consecutive=5), True),
    ):
        params, step = make_params(), jax.jit(stepper(tx))
        state = tx.init(params)
        for _ in range(6):
            params, state = step(bad, state, params)
        assert bool(jnp.isfinite(params["w"]).all()) == survives


def test_peer_apply_if_finite_lets_an_overflow_inside_the_chain_pass():
    inner = optax.chain(optax.scale(1e30), optax.sgd(1e30))
    for tx, survives in ((optax.apply_if_finite(inner, 5), False), (optim.guard(inner), True)):
        params, _ = stepper(tx)(make_grads(), tx.init(make_params()), make_params())
        assert bool(jnp.isfinite(params["w"]).all()) == survives


def test_peer_second_moment_freezes_after_a_huge_gradient():
    for tx, survives in (
        (optax.apply_if_finite(adam(), 5), False),
        (optim.skip_nonfinite(adam()), True),
        (optim.guard(adam()), True),
    ):
        params, step = make_params(), jax.jit(stepper(tx))
        params, state = step(plant(make_grads(), 1e30), tx.init(params), params)
        last = params
        for _ in range(200):
            last = params
            params, state = step(make_grads(), state, params)
        assert (norm_of((params["w"] - last["w"])[0, 1]) > 1e-4) == survives


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e30, jnp.float32), (3e38, jnp.float32), (1e30, jnp.bfloat16), (6e4, jnp.float16)],
)
def test_clip_by_global_norm_keeps_the_direction_of_huge_gradients(value, dtype, run):
    grads = {"w": jnp.full((4, 3), value, dtype), "b": jnp.array([-value, 0, value], dtype)}
    peer, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert norm_of(peer) == 0  # the direction is lost
    tx = optim.clip_by_global_norm(1.0)
    clipped, state = run(tx.update)(grads, tx.init(grads))
    assert abs(norm_of(clipped) - 1) < 0.01
    want = {"w": np.full((4, 3), 14**-0.5), "b": 14**-0.5 * np.array([-1, 0, 1])}
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: np.asarray(x, np.float64), clipped), want, rtol=0.005
    )
    chex.assert_trees_all_equal_dtypes(clipped, grads)
    assert int(state.clipped) == 1
    want_norm = min(float(dtype(value)) * 14**0.5, float(jnp.finfo(jnp.float32).max))
    np.testing.assert_allclose(state.last_norm, want_norm, rtol=1e-5)


def test_clip_by_global_norm_leaves_small_gradients_alone(run):
    tx = optim.clip_by_global_norm(1.0)
    for value in (0.0, -0.0, 1e-30, 1e-40, 0.1):
        grads = {"w": jnp.full((4, 3), value), "h": jnp.full((2,), value, jnp.float16)}
        clipped, state = run(tx.update)(grads, tx.init(grads))
        assert bits(clipped) == bits(grads)
        assert int(state.clipped) == 0


def test_clip_by_global_norm_equals_optax_on_ordinary_gradients():
    grads = make_grads(scale=3.0)
    peer, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    tx = optim.clip_by_global_norm(0.5)
    chex.assert_trees_all_close(tx.update(grads, tx.init(grads))[0], peer, rtol=1e-6)


def test_clippers_show_a_nonfinite_gradient(run):
    params = make_params()
    clippers = (optim.clip_by_global_norm(1.0), optim.adaptive_grad_clip(1e9))
    skip = optim.skip_nonfinite(optax.chain(optim.clip_by_global_norm(1.0), optax.sgd(1.0)))
    updates, step = [run(tx.update) for tx in clippers], run(stepper(skip))
    for value in (np.nan, np.inf, -np.inf):
        grads = plant(make_grads(scale=5.0), value)
        for tx, update in zip(clippers, updates, strict=True):
            assert bits(update(grads, tx.init(params), params)[0]) == bits(grads)
        after, state = step(grads, skip.init(params), params)
        assert bits(after) == bits(params)
        h = optim.health(state)
        assert (h.skipped, h.clipped) == (1, 0)


def test_clip_by_global_norm_of_mixed_dtypes_and_other_leaves():
    grads = {
        "f16": jnp.full((2,), 6e4, jnp.float16),
        "bf16": jnp.full((2,), 1e30, jnp.bfloat16),
        "f32": jnp.full((2,), 1e30),
        "c64": jnp.full((2,), 1e30 + 1e30j, jnp.complex64),
        "int": jnp.array([3, 4]),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    tx = optim.clip_by_global_norm(2.0)
    clipped, _ = jax.jit(tx.update)(grads, tx.init(grads))
    chex.assert_trees_all_equal_shapes_and_dtypes(clipped, grads)
    # ||g|| = 1e30 sqrt(2 + 2 + 4): bf16 and f32 hold 1/4 of the squared norm each, c64 1/2.
    np.testing.assert_allclose(np.float32(clipped["bf16"]), 2 / 8**0.5, rtol=0.005)
    np.testing.assert_allclose(clipped["f32"], 2 / 8**0.5, rtol=0.005)
    np.testing.assert_allclose(clipped["c64"], 2 / 8**0.5 * (1 + 1j), rtol=0.005)
    np.testing.assert_array_equal(clipped["int"], [3, 4])
    assert norm_of(clipped["f16"]) < 1e-20


def test_float64_gradients_are_measured_in_float64():
    with jax.enable_x64(True):
        tx = optim.clip_by_global_norm(1.0)
        grads = {"a": jnp.full((4,), 1e300, jnp.float64), "b": jnp.full((2,), 3e38, jnp.float32)}
        clipped, state = jax.jit(tx.update)(grads, tx.init(grads))
        np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-12)
        chex.assert_trees_all_equal_dtypes(clipped, grads)
        assert float(state.last_norm) == float(jnp.finfo(jnp.float32).max)


SHAPES = [(), (5,), (1, 5), (4, 3), (2, 3, 4), (3, 3, 2, 4), (2, 2, 2, 3, 2)]


@pytest.mark.parametrize("axis", [None, 0, (0, -1)])
def test_adaptive_grad_clip_equals_optax_on_ordinary_input(axis):
    shapes = SHAPES if axis is None else [s for s in SHAPES if len(s) > 1]
    rng = np.random.default_rng(1)
    params = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    peer, tx = (f(0.1, 1e-2, axis) for f in (optax.adaptive_grad_clip, optim.adaptive_grad_clip))
    theirs, ours = (jax.jit(t.update) for t in (peer, tx))
    for scale in (0.001, 1.0, 100.0):
        grads = [np.float32(scale) * rng.normal(size=s).astype(np.float32) for s in shapes]
        want, _ = theirs(grads, peer.init(params), params)
        chex.assert_trees_all_close(ours(grads, tx.init(params), params)[0], want, rtol=2e-6)


@pytest.mark.parametrize(("value", "dtype"), [(3e38, jnp.float32), (6e4, jnp.float16)])
def test_adaptive_grad_clip_of_huge_gradients_and_zero_norms(value, dtype, run):
    params = {"w": jnp.ones((4, 3), dtype), "z": jnp.zeros((4,), dtype)}
    grads = {"w": jnp.array([[value, 1e3, 0]] * 4, dtype), "z": jnp.full((4,), value, dtype)}
    peer: Any = optax.adaptive_grad_clip(0.1).update(grads, (), params)[0]
    assert norm_of(peer["z"]) == 0
    tx = optim.adaptive_grad_clip(0.1)
    ours, _ = run(tx.update)(grads, tx.init(params), params)
    # Unit norms: 0.1 * ||(1, 1, 1, 1)|| = 0.2 for each column, 0.1 * eps for the zero vector.
    np.testing.assert_allclose(np.float32(ours["w"]), [[0.1, 0.1, 0]] * 4, rtol=1e-3)
    np.testing.assert_allclose(np.float32(ours["z"]), 5e-5, rtol=2e-3)


def test_guard_clips_as_the_chain_of_its_parts(run):
    params = make_params()
    for scale in (0.01, 1.0, 1e3):
        grads = make_grads(scale=scale)
        parts = optax.chain(
            optim.clip_by_global_norm(0.7), optim.adaptive_grad_clip(0.1), optax.sgd(1.0)
        )
        tx = optim.guard(optax.sgd(1.0), max_norm=0.7, clipping=0.1)
        ours, _ = run(tx.update)(grads, tx.init(params), params)
        want, _ = parts.update(grads, parts.init(params), params)
        chex.assert_trees_all_close(ours, want, rtol=1e-6, atol=1e-8)


def test_guard_clips_each_unit_when_sizes_span_the_range(run):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones((2,))}
    grads = {"w": jnp.array([[3e38, 1e20, 1.0]] * 2), "b": jnp.full((2,), 1e-3)}
    tx = optim.guard(optax.sgd(1.0), max_norm=None, clipping=0.1)
    ours, state = run(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(ours["w"], -0.1 * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(ours["b"], -1e-3)
    assert int(optim.health(state).clipped) == 1


def test_relative_cap_scales_finite_updates_and_refuses_the_others(run):
    params = {"w": jnp.full((4, 3), 2.0), "z": jnp.zeros((4,)), "i": jnp.array([1, 2])}
    grads = {"w": jnp.ones((4, 3)), "z": jnp.ones((4,)), "i": jnp.zeros((2,), jnp.int32)}

    def descend(rate):
        return optax.stateless(lambda g, _: jax.tree.map(lambda x: (-rate * x).astype(x.dtype), g))

    for rate in (1e3, 3e38):
        tx = optim.guard(descend(rate), max_norm=None, max_relative_update=0.1)
        updates, state = run(tx.update)(grads, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.2, rtol=1e-5)
        np.testing.assert_allclose(updates["z"], -1e-4, rtol=1e-5)  # eps * 0.1
        assert int(state.skipped) == 0
    tx = optim.guard(descend(1e-3), max_relative_update=0.1, max_norm=None)
    updates, _ = run(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], np.float32(-1e-3))
    tx = optim.guard(descend(jnp.inf), max_relative_update=0.1)
    after, state = run(stepper(tx))(grads, tx.init(params), params)
    assert bits(after) == bits(params)
    assert int(state.skipped) == 1


def test_learning_rate_of_1e30_learns_under_the_cap():
    target = jnp.array([1.0, -2.0, 3.0])
    loss = lambda w: jnp.sum((w - target) ** 2)
    tx = optim.guard(optax.adam(1e30), max_relative_update=0.02)
    w, step = jnp.ones(3), jax.jit(stepper(tx))
    state = tx.init(w)
    for _ in range(300):
        w, state = step(jax.grad(loss)(w), state, w)
    assert loss(w) < 0.05 * loss(jnp.ones(3))


@pytest.mark.parametrize("wrapper", [optim.skip_nonfinite, optim.guard])
def test_a_finite_update_that_overflows_the_parameter_is_refused(wrapper, run):
    tx = wrapper(optax.stateless(lambda g, _: jax.tree.map(lambda x: x * 2e5, g)))
    params = {"w": jnp.array([1.0, 2.0], jnp.float16)}
    after, state = run(stepper(tx))({"w": jnp.ones(2)}, tx.init(params), params)
    assert bits(after) == bits(params)
    assert int(state.skipped) == 1


def test_state_that_overflows_behind_a_finite_update_is_refused(run):
    # g^2 overflows in the second moment, and the update is m / inf = 0: finite, and frozen.
    tx: Any = optim.skip_nonfinite(optax.adam(0.1))
    params = make_params()
    after, state = run(stepper(tx))(plant(make_grads(), 1e30), tx.init(params), params)
    assert bits((after, state.inner_state)) == bits((params, tx.init(params).inner_state))


def test_states_that_start_at_infinity_are_no_fault():
    tx: Any = optim.guard(optax.chain(adam(), optax.contrib.reduce_on_plateau(accumulation_size=3)))
    params, step = make_params(), jax.jit(stepper(tx))
    state = tx.init(params)
    assert any(np.isinf(x).any() for x in jax.tree.leaves(state.inner_state))
    for value in (1.0, np.nan, 2.0, 3.0):  # extra arguments reach the inner transformation
        params, state = step(make_grads(), state, params, value=value)
    assert int(state.skipped) == 1  # the NaN would have stayed in the running mean


# Composition.


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
    tx = NESTS[nest](inner(adam()))
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
    tx = optax.inject_hyperparams(optim.guard)(optax.sgd(1.0), max_norm=0.5, max_consecutive=2)
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
    tx = optim.skip_nonfinite(optax.identity())
    grads = {"i": jnp.array([7]), "f": jnp.array([jnp.nan]), "n": None}
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
    chex.assert_trees_all_equal(updates, {"i": jnp.array([0]), "f": jnp.array([-0.0]), "n": None})


def test_typed_keys_in_the_state_are_kept_on_a_refused_step(run):
    init = lambda params: jax.random.key(0)
    update = lambda updates, state, params=None: (updates, jax.random.split(state)[0])
    keyed: Any = optax.GradientTransformation(init, update)
    tx = optim.skip_nonfinite(keyed)
    params = make_params()
    _, state = run(stepper(tx))(plant(make_grads(), np.inf), tx.init(params), params)
    assert bits(jax.random.key_data(state.inner_state)) == bits(
        jax.random.key_data(jax.random.key(0))
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_donated_steps_compile_once_and_survive(wrapper):
    tx = WRAPPERS[wrapper](adam())
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
    tx = WRAPPERS[wrapper](adam())
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


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_soak_counts_every_fault_and_ends_where_it_should(wrapper):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    y = x @ jnp.array([1.0, -2.0, 3.0, 0.5])
    loss = lambda w: jnp.mean((x @ w - y) ** 2)
    tx = WRAPPERS[wrapper](optax.adam(0.05))
    planted = rng.choice([0.0, np.nan, np.inf, -np.inf, 1e30], size=400, p=[0.8] + [0.05] * 4)

    @jax.jit
    def step(w, state, fault):
        g = jax.grad(loss)(w)
        g = g.at[1].set(jnp.where(fault == 0, g[1], fault))
        updates, state = tx.update(g, state, w)
        return optax.apply_updates(w, updates), state

    w = jnp.ones(4)
    state, row = tx.init(w), 0
    for fault in planted:
        refused = not np.isfinite(fault) or (fault == 1e30 and wrapper == "skip")
        row = row + 1 if refused else 0
        before = bits((w, state.inner_state))
        w, state = step(w, state, fault)
        assert (bits((w, state.inner_state)) == before) == refused
        assert int(state.consecutive_skipped) == row
    h = optim.health(state)
    bad = np.sum(~np.isfinite(planted))
    huge = np.sum(planted == 1e30)
    assert int(h.steps) == 400
    assert int(h.skipped) == bad + (huge if wrapper == "skip" else 0)
    assert_finite((w, state.inner_state))
    assert loss(w) < 0.05 * loss(jnp.ones(4))


def test_guard_counts_clips_of_taken_steps_only():
    tx = optim.guard(optax.sgd(0.1))
    step, params = jax.jit(stepper(tx)), make_params()
    state = tx.init(params)
    for scale, clipped in ((0.01, 0), (10.0, 1), (jnp.nan, 1), (1e30, 2), (0.01, 2)):
        params, state = step(make_grads(scale=scale), state, params)
        assert int(optim.health(state).clipped) == clipped
        want = norm_of(make_grads(scale=scale))
        np.testing.assert_allclose(optim.health(state).last_norm, want, rtol=1e-5)


def test_counters_saturate():
    tx: Any = optim.guard(optax.sgd(0.1))
    state = tx.init(make_params())
    top = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    state = state._replace(steps=top, skipped=top, consecutive_skipped=top)
    _, state = tx.update(plant(make_grads(), np.nan), state, make_params())
    assert (state.steps, state.skipped, state.consecutive_skipped) == (top, top, top)


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"adaptive_grad_clip: clipping must be > 0, got -1"):
        optim.adaptive_grad_clip(-1)
    with pytest.raises(ValueError, match=r"clip_by_global_norm: max_norm must be > 0, got nan"):
        optim.clip_by_global_norm(float("nan"))
    with pytest.raises(TypeError, match=r"clip_by_global_norm: max_norm must be a number"):
        optim.clip_by_global_norm("1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="guard: max_consecutive must be an integer >= 1, got 0"):
        optim.guard(optax.sgd(1.0), max_consecutive=0)
    for name in ("max_norm", "clipping", "max_relative_update"):
        with pytest.raises(ValueError, match=rf"guard: {name} must be > 0, got 0"):
            optim.guard(optax.sgd(1.0), **{name: 0})
    with pytest.raises(ValueError, match=r"guard: eps must be >= 0, got -1"):
        optim.guard(optax.sgd(1.0), eps=-1)
    for wrapper in WRAPPERS.values():
        with pytest.raises(TypeError, match=r"inner must be an optax GradientTransformation"):
            wrapper(optax.sgd)
    with pytest.raises(ValueError, match=r"health: no state of robustops.optim.guard"):
        optim.health(optax.adam(1.0).init(make_params()))
    params = make_params()
    for tx in (optim.adaptive_grad_clip(0.1), optim.guard(optax.sgd(1.0), clipping=0.1)):
        with pytest.raises(ValueError, match=r"needs the parameters"):
            tx.update(params, tx.init(params))
    six = jnp.ones((2,) * 6)
    tx = optim.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match=r"adaptive_grad_clip: no unit is defined .* pass axis="):
        tx.update(six, tx.init(six), six)


SHARDS = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, PartitionSpec as P
from robustops import optim
assert jax.device_count() == 8
every = partial(optim.guard, clipping=0.1, max_relative_update=0.1)
mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
params = jnp.arange(16.0)
sharded = P("d")
for check_vma in (True, False):
    for name, wrap in [("skip", optim.skip_nonfinite), ("all", every)]:
        for layout in (P("d"), P()):   # parameters split over the shards, or one copy on each
            inner = optax.adam(0.1)
            if layout == P():
                mean = optax.stateless(lambda g, _: jax.lax.pmean(g, "d"))
                inner = optax.chain(mean, inner)
            tx = wrap(inner, axis_name="d")
            def step(grads, state, p):
                updates, state = tx.update(grads, state, p)
                return optax.apply_updates(p, updates), state
            state = tx.init(params)
            specs = jax.tree.map(lambda x: layout if x.ndim else P(), state)
            f = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(sharded, specs, layout),
                        out_specs=(layout, specs), check_vma=check_vma))
            n = 16 if layout == P("d") else 128
            good = jnp.ones(n)
            p, s = f(good, state, params)
            assert not np.array_equal(p, params), (name, layout)
            for at in (0, n - 1):
                for value in (np.nan, np.inf):
                    q, t = f(good.at[at].set(value), s, p)
                    leaves = jax.tree.leaves((p, s.inner_state))
                    for a, b in zip(leaves, jax.tree.leaves((q, t.inner_state))):
                        for x, y in zip(a.addressable_shards, b.addressable_shards):
                            assert np.array_equal(x.data, y.data), (name, layout, check_vma, at)
                    assert all(int(x.data) == 1 for x in t.skipped.addressable_shards)
            q, t = f(good.at[3].set(1e30), s, p)   # one shard clips: all clip
            assert np.isfinite(q).all() and (name == "skip") == bool(t.skipped)
            q, t = f(good, t, q)
            assert not np.array_equal(q, p)

# Sharded jit needs no axis name, and pmap takes one.
tx = optim.guard(optax.adam(0.1))
put = lambda x: jax.device_put(x, jax.NamedSharding(mesh, P("d")))
state = tx.init(put(params))
u, s = jax.jit(tx.update)(put(jnp.ones(16).at[5].set(jnp.nan)), state, put(params))
assert not np.any(u) and int(s.skipped) == 1
tx = optim.guard(optax.adam(0.1), axis_name="d")
stack = jnp.ones((8, 4))
state = jax.vmap(tx.init)(stack)
u, s = jax.pmap(tx.update, axis_name="d")(stack.at[2, 1].set(jnp.nan), state, stack)
assert not np.any(u) and np.array_equal(s.skipped, np.ones(8))
print("agreed")
"""


def test_all_shards_take_one_decision():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agreed"
