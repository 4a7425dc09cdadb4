"""The guards under every fault: refused steps change nothing, and learning goes on."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustops import optim
from tests._optim import (
    DTYPES,
    FAULTS,
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


@pytest.mark.parametrize(
    ("run", "dtype"),
    [("eager", jnp.float32), ("select", jnp.float16), *(("cond", d) for d in DTYPES)],
    indirect=["run"],
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_fault_leaves_parameters_finite_and_learning_alive(wrapper, dtype, run):
    tx: Any = WRAPPERS[wrapper](adam(dtype))
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
    tx: Any = WRAPPERS[wrapper](adam(dtype))
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
    for wrap in (optim.skip_nonfinite, partial(optim.guard, max_norm=None, max_zscore=None)):
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
    tx: Any = optim.guard(descend(1e-3), max_relative_update=0.1, max_norm=None)
    updates, _ = run(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], np.float32(-1e-3))
    tx = optim.guard(descend(jnp.inf), max_relative_update=0.1)
    after, state = run(stepper(tx))(grads, tx.init(params), params)
    assert bits(after) == bits(params)
    assert int(state.skipped) == 1


def test_learning_rate_of_1e30_learns_under_the_cap():
    target = jnp.array([1.0, -2.0, 3.0])
    loss = lambda w: jnp.sum((w - target) ** 2)
    tx: Any = optim.guard(optax.adam(1e30), max_relative_update=0.02)
    w, step = jnp.ones(3), jax.jit(stepper(tx))
    state = tx.init(w)
    for _ in range(300):
        w, state = step(jax.grad(loss)(w), state, w)
    assert loss(w) < 0.05 * loss(jnp.ones(3))


@pytest.mark.parametrize("wrapper", [optim.skip_nonfinite, optim.guard])
def test_a_finite_update_that_overflows_the_parameter_is_refused(wrapper, run):
    tx: Any = wrapper(optax.stateless(lambda g, _: jax.tree.map(lambda x: x * 2e5, g)))
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


def test_one_bad_element_of_many_leaves_is_enough(run):
    """Leaves of one shape are judged together: each of them must count, in gradient and update."""
    params = [jnp.ones((3, 2)) for _ in range(10)] + [jnp.ones(3)] * 2
    good = jax.tree.map(lambda p: 0.1 * p, params)
    huge = optax.stateless(lambda g, _: jax.tree.map(lambda x: jnp.where(x > 0.5, jnp.inf, x), g))
    tx: Any = optim.skip_nonfinite(optax.chain(optax.trace(0.9), huge))
    step, state = run(stepper(tx)), tx.init(params)
    for i in range(12):
        for value in (np.nan, 1.0):  # in the gradient; out of it, in the update
            bad = [g.at[(-1,) * g.ndim].set(value) if i == j else g for j, g in enumerate(good)]
            after, later = step(bad, state, params)
            assert bits((after, later.inner_state)) == bits((params, state.inner_state)), (i, value)
            assert int(later.skipped) == 1
    after, later = step(good, state, params)
    assert int(later.skipped) == 0


def test_an_update_that_no_parameter_survives_is_refused(run):
    # 2^103 is half a unit in the last place of the largest float32: less never overflows.
    for rate, refused in ((2.0**102, 0), (2.0**104, 1), (3e38, 1)):
        tx: Any = optim.skip_nonfinite(optax.scale(rate))
        params = {"w": jnp.float32([jnp.finfo(jnp.float32).max, 0.0])}
        after, state = run(stepper(tx))({"w": jnp.ones(2)}, tx.init(params), params)
        assert int(state.skipped) == refused
        assert_finite(after)


@pytest.mark.parametrize("wrapper", [optim.skip_nonfinite, optim.guard])
def test_judging_the_gradient_alone(wrapper, run):
    tx: Any = wrapper(adam(), judge="gradient")
    step, params = run(stepper(tx)), make_params()
    params, state = step(make_grads(), tx.init(params), params)
    for fault in (np.nan, np.inf, -np.inf, 1e30, 3e38):
        before, skipped = bits((params, state.inner_state)), int(state.skipped)
        params, state = step(plant(make_grads(), fault), state, params)
        assert_finite((params, state.inner_state))
        refused = wrapper is optim.skip_nonfinite or not abs(fault) < np.inf
        assert int(state.skipped) == skipped + refused
        assert (bits((params, state.inner_state)) == before) == refused
    broken: Any = wrapper(optax.scale(jnp.inf), judge="gradient")
    after, _ = run(stepper(broken))(make_grads(), broken.init(params), params)
    assert not jnp.isfinite(after["w"]).all()  # what it does not promise
    with pytest.raises(ValueError, match="judge must be 'step' or 'gradient', got 'all'"):
        wrapper(adam(), judge="all")


def test_weak_types_do_not_change_the_form(monkeypatch):
    calls = []
    real = jax.lax.switch
    monkeypatch.setattr(jax.lax, "switch", lambda *args: calls.append(1) or real(*args))
    tx: Any = optim.guard(adam())
    params = {"w": jnp.full((4, 3), 0.1), "b": jnp.zeros(3)}  # full of a Python number: weak
    assert jax.typeof(params["w"]).weak_type
    jax.make_jaxpr(stepper(tx))(make_grads(), tx.init(params), params)
    assert calls
    one, two = jax.jit(stepper(tx)), stepper(tx)
    for grads in (make_grads(), plant(make_grads(), np.nan)):
        got, want = (f(grads, tx.init(params), params)[0] for f in (one, two))
        chex.assert_trees_all_close(got, want, rtol=1e-6)


def test_states_that_start_at_infinity_are_no_fault():
    tx: Any = optim.guard(optax.chain(adam(), optax.contrib.reduce_on_plateau(accumulation_size=3)))
    params, step = make_params(), jax.jit(stepper(tx))
    state = tx.init(params)
    assert any(np.isinf(x).any() for x in jax.tree.leaves(state.inner_state))
    for value in (1.0, np.nan, 2.0, 3.0):  # extra arguments reach the inner transformation
        params, state = step(make_grads(), state, params, value=value)
    assert int(state.skipped) == 1  # the NaN would have stayed in the running mean


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_soak_counts_every_fault_and_ends_where_it_should(wrapper):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    y = x @ jnp.array([1.0, -2.0, 3.0, 0.5])
    loss = lambda w: jnp.mean((x @ w - y) ** 2)
    tx: Any = WRAPPERS[wrapper](optax.adam(0.05))
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
    tx: Any = optim.guard(optax.sgd(0.1))
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
            optim.guard(optax.sgd(1.0), **{name: 0})  # pyright: ignore[reportArgumentType]
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
    tx: Any = optim.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match=r"adaptive_grad_clip: no unit is defined .* pass axis="):
        tx.update(six, tx.init(six), six)
