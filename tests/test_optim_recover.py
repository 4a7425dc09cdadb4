"""What brings a run back: one call for update and apply, rollback, loss scaling, reports, saves."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from robustops import optim
from robustops.testing import inject_fault
from tests._optim import adam, assert_finite, bits, make_grads, make_params, norm_of, plant, stepper

GUARDS: dict[str, Any] = {
    "skip": optim.skip_nonfinite,
    "guard": optim.guard,
    "scale": lambda tx: optim.dynamic_loss_scale(tx, initial=1.0),
    "rollback": optim.rollback,
    "all": lambda tx: optim.rollback(optim.dynamic_loss_scale(optim.guard(tx), initial=1.0)),
}


def applied(tx: Any) -> Any:
    return partial(optim.guarded_apply, tx)


# guarded_apply


@pytest.mark.parametrize("wrap", [*GUARDS.values(), lambda tx: tx], ids=[*GUARDS, "bare"])
def test_guarded_apply_is_update_and_apply_in_one(wrap, run):
    tx: Any = wrap(adam())
    one, two = run(lambda g, s, p: optim.guarded_apply(tx, g, s, p)), run(stepper(tx))
    params = other = make_params()
    state = rest = tx.init(params)
    for scale in (1.0, 2.0, 0.5):
        params, state = one(make_grads(scale=scale), state, params)
        other, rest = two(make_grads(scale=scale), rest, other)
    chex.assert_trees_all_close((params, state), (other, rest), rtol=1e-6)
    for value in (np.nan, np.inf, -np.inf):
        kept = bits(params)
        params, after = one(plant(make_grads(), value), state, params)
        assert bits(params) == kept
        if wrap in GUARDS.values():
            assert optim.health(after).skipped == optim.health(state).skipped + 1
            state = after
        else:
            assert bits(after) == bits(state)


def test_guarded_apply_judges_what_comes_out_of_any_transformation():
    params, bad = make_params(), plant(make_grads(), np.nan)
    overflow = optax.chain(optax.scale(1e30), optax.sgd(1e30))
    after, state = optim.guarded_apply(overflow, make_grads(), overflow.init(params), params)
    assert bits(after) == bits(params)
    # What the transformation handles itself is left to it, and its counters go on.
    inside = optax.chain(optim.guard(adam()), optax.scale(1.0))
    after, state = jax.jit(applied(inside))(bad, inside.init(params), params)
    assert bits(after) == bits(params)
    assert optim.health(state).skipped == 1
    zeroed = optax.chain(optax.zero_nans(), optax.sgd(0.1))
    after, _ = optim.guarded_apply(zeroed, bad, zeroed.init(params), params)
    assert_finite(after)
    assert bits(after) != bits(params)


def test_guarded_apply_decides_once(monkeypatch):
    calls = []
    real = jax.lax.switch
    monkeypatch.setattr(jax.lax, "switch", lambda *args: calls.append(1) or real(*args))
    for wrap in GUARDS.values():
        tx = wrap(adam())
        calls.clear()
        jax.make_jaxpr(applied(tx))(make_grads(), tx.init(make_params()), make_params())
        assert len(calls) == 1


def test_guarded_apply_takes_micro_steps_and_says_what_is_wrong():
    tx: Any = optax.MultiSteps(optax.sgd(0.1), 2)
    params = make_params()
    state = tx.init(params)
    for _ in range(2):
        params, state = jax.jit(applied(tx))(make_grads(), state, params)
    want = jax.tree.map(lambda p, g: p - 0.1 * g, make_params(), make_grads())
    chex.assert_trees_all_close(params, want, rtol=1e-6)
    with pytest.raises(TypeError, match="guarded_apply: inner must be an optax"):
        optim.guarded_apply(optax.sgd, make_grads(), (), params)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="guarded_apply: needs the parameters"):
        optim.guarded_apply(optax.sgd(0.1), make_grads(), (), None)  # pyright: ignore[reportArgumentType]


# rollback


@pytest.mark.parametrize("form", [applied, stepper])
def test_rollback_returns_to_the_snapshot_after_a_blow_up(form, run):
    tx: Any = optim.rollback(adam(), patience=3, snapshot_every=4, rate_decay=0.5)
    step, params = run(form(tx)), make_params()
    state, seen = tx.init(params), []
    for _ in range(6):
        seen.append(bits((params, state.inner_state.inner_state)))
        params, state = step(make_grads(), state, params, value=1.0)
    assert bits((state.params, state.snapshot)) == seen[3]
    for i in range(3):
        assert int(state.rollbacks) == 0
        params, state = step(make_grads(), state, params, value=[12.0, 1e30, np.nan][i])
    assert bits(state.inner_state.inner_state) == seen[3][2:]
    if form is stepper and bits(params) != seen[3][:2]:  # what the rounded difference left
        params, state = step(make_grads(scale=100.0), state, params, value=1.0)
    assert bits(params) == seen[3][:2]
    h = optim.health(state)
    assert (h.rollbacks, h.skipped, h.stuck) == (1, 0, False)
    moved, state = step(make_grads(), state, params, value=1.0)
    step_after = norm_of(jax.tree.map(lambda a, b: a - b, moved, params))
    assert 0.4 * 0.01 < step_after / 15**0.5 < 0.6 * 0.01  # half of Adam's rate


def test_rollback_after_a_best_value_of_0():
    """Only what exceeds a hundredth of the first value has blown up from there."""
    tx: Any = optim.rollback(adam(), patience=1)
    step, params = jax.jit(applied(tx)), make_params()
    state = tx.init(params)
    for value, back in [(0.0, 0), (3.0, 0), (0.0, 0), (0.02, 0), (0.04, 1)]:
        params, state = step(make_grads(), state, params, value=value)
        assert int(state.rollbacks) == back


def test_rollback_by_way_of_updates_is_exact_after_two():
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.normal(size=4096) * 10 ** rng.uniform(-30, 30, 4096))
    start, far = ({"w": draw().astype(jnp.float32)} for _ in range(2))
    tx: Any = optim.rollback(optax.sgd(0.1), patience=1)
    step, state = jax.jit(stepper(tx)), tx.init(start)
    zeros = jax.tree.map(jnp.zeros_like, start)
    once, state = step(zeros, state, far, value=np.inf)
    assert bits(once) != bits(start)
    again, state = step(zeros, state, once, value=1.0)
    assert bits(again) == bits(start)
    assert int(state.rollbacks) == 1


def test_rollback_after_refused_steps_gives_up_at_the_limit_and_says_so():
    tx: Any = optim.rollback(optim.guard(adam()), patience=2, max_rollbacks=2)
    step, params = jax.jit(applied(tx)), make_params()
    state, start = tx.init(params), bits(params)
    params, state = step(make_grads(), state, params)
    assert bits(params) != start
    bad = plant(make_grads(), np.nan)
    for i in range(1, 9):
        params, state = step(bad, state, params)
        h = optim.health(state)
        assert int(h.rollbacks) == min(i // 2, 2)
        assert bool(h.stuck) == (i >= 6)
        assert (bits(params) == start) == (i >= 2)
    with pytest.raises(optim.StuckError, match="last 8 updates were refused, from update 2 to 9"):
        optim.raise_if_stuck(state)
    params, state = step(make_grads(), state, params)
    assert bits(params) != start
    optim.raise_if_stuck(state)


def test_rollback_survives_a_learning_rate_that_blows_up():
    target = jnp.array([1.0, -2.0, 3.0])
    loss = lambda w: jnp.sum((w - target) ** 2)
    rate = lambda count: jnp.where(count == 50, 1e10, 0.05)
    tx: Any = optim.rollback(optim.guard(optax.sgd(rate)), patience=2, snapshot_every=10)

    @jax.jit
    def step(state, w):
        return optim.guarded_apply(tx, jax.grad(loss)(w), state, w, value=loss(w))

    w, state = jnp.ones(3), tx.init(jnp.ones(3))
    for _ in range(250):
        w, state = step(state, w)
    # The schedule's step count is restored as well, so the spike comes back until the limit.
    h = optim.health(state)
    assert h.rollbacks == 10
    assert h.steps == 250
    assert_finite(w)


@pytest.mark.parametrize("order", ["as results", "crossed"])
def test_a_snapshot_on_the_host_comes_back_bit_for_bit(run, order):
    tx: Any = optim.rollback(adam(), patience=2, snapshot_every=2, snapshot="host")
    one = lambda p, s, g, value: optim.guarded_apply(tx, g, s, p, value=value)
    if run is jax.jit:  # donated, in an order in which buffers could change places
        step = jax.jit(one, donate_argnums=(0, 1))
        if order == "crossed":
            crossed = jax.jit(lambda s, p, g, v: one(p, s, g, v), donate_argnums=(0, 1))
            step = lambda p, s, g, v: crossed(s, p, g, v)
    else:
        step = one
    params = jax.tree.map(jnp.array, make_params())
    state: Any = tx.init(params)
    seen = []
    for _ in range(4):
        seen.append(bits((params, state.inner_state.inner_state)))
        params, state = step(params, state, make_grads(), 1.0)
    arrays = [x for x in jax.tree.leaves((state.params, state.snapshot)) if x.ndim]
    assert {x.sharding.memory_kind for x in arrays} == {"pinned_host"}
    for value in (1e9, np.nan):
        params, state = step(params, state, make_grads(), value)
    assert int(state.rollbacks) == 1
    assert bits((params, state.inner_state.inner_state)) == seen[3]
    assert {x.sharding.memory_kind for x in jax.tree.leaves(params)} == {"device"}


def test_a_snapshot_on_the_host_needs_a_host_memory(monkeypatch):
    with pytest.raises(
        ValueError, match="rollback: snapshot must be 'device' or 'host', got 'cpu'"
    ):
        optim.rollback(adam(), snapshot="cpu")  # pyright: ignore[reportArgumentType]

    class Device:
        device_kind = "metal"

        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})]

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(ValueError, match=r"needs memory of kind pinned_host, and metal has device"):
        optim.rollback(adam(), snapshot="host").init(make_params())


# dynamic_loss_scale


@pytest.mark.parametrize("form", [applied, stepper])
def test_float16_learns_with_a_loss_scale_and_not_without(form):
    target = jnp.array([0.5, -0.25, 1.0], jnp.float16)

    def loss(w):  # gradients of 1e-8 underflow in float16
        return jnp.sum((w - target).astype(jnp.float32) ** 2) * 3e-9

    def run(tx, scale):
        @jax.jit
        def step(state, w):
            grads = jax.grad(lambda w: loss(w) * scale(state))(w)
            return form(tx)(grads, state, w)

        w = jnp.zeros(3, jnp.float16)
        state = tx.init(w)
        for _ in range(200):
            w, state = step(state, w)
        return w, state

    adam = optax.adam(0.02, eps=1e-12)
    tx: Any = optim.dynamic_loss_scale(adam, initial=2.0**30, max_scale=2.0**30)
    w, state = run(tx, lambda state: optim.health(state).scale)
    assert w.dtype == jnp.float16
    np.testing.assert_allclose(np.float32(w), np.float32(target), atol=0.01)
    assert optim.health(state).skipped == 0
    w, _ = run(optim.skip_nonfinite(optax.sgd(1e4)), lambda state: 1.0)
    assert norm_of(w) == 0


def test_loss_scale_backs_off_and_grows():
    tx: Any = optim.dynamic_loss_scale(
        optim.guard(adam()), initial=8.0, growth_interval=3, min_scale=2.0, max_scale=16.0
    )
    step, params = jax.jit(applied(tx)), make_params(jnp.float16)
    state, scales = tx.init(params), []
    for fault in "..!..!!!........":
        grads = plant(make_grads(jnp.float16), np.inf if fault == "!" else 0.0)
        before = bits(params)
        params, state = step(grads, state, params)
        assert (bits(params) == before) == (fault == "!")
        scales.append(float(optim.health(state).scale))
    assert scales == [8, 8, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8]
    h = optim.health(state)
    assert (h.steps, h.skipped) == (16, 4)
    moments = [x for x in jax.tree.leaves(state.inner_state.inner_state) if x.ndim]
    assert all(x.dtype == jnp.float32 for x in moments)


def test_bounds_of_the_loss_scale_are_in_order():
    with pytest.raises(ValueError, match=r"min_scale must be <= initial, got min_scale=8\.0"):
        optim.dynamic_loss_scale(adam(), initial=4.0, min_scale=8.0)
    with pytest.raises(ValueError, match="initial must be <= max_scale"):
        optim.dynamic_loss_scale(adam(), max_scale=2.0)


def test_scaled_steps_are_those_of_the_plain_optimizer():
    tx: Any = optim.dynamic_loss_scale(adam(), initial=1024.0)
    params, other = make_params(), make_params()
    state, rest = tx.init(params), adam().init(other)
    for i in range(3):
        grads = make_grads(scale=1.0 + i)
        big = jax.tree.map(lambda g: g * 1024, grads)
        params, state = stepper(tx)(big, state, params)
        other, rest = stepper(adam())(grads, rest, other)
    assert bits(params) == bits(other)


# Reports, faults, saves.


def test_stuck_error_names_the_eps_that_float16_lacks():
    params = make_params(jnp.float16)
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optim.skip_nonfinite(optax.adam(0.01), max_consecutive=1)
    _, state = applied(tx)(zeros, tx.init(params), params)
    with pytest.raises(optim.StuckError, match="eps=1e-4, or use dynamic_loss_scale"):
        optim.raise_if_stuck(state)
    scaled = optim.dynamic_loss_scale(optax.adam(0.01))
    _, state = applied(scaled)(zeros, scaled.init(params), params)
    assert optim.health(state).skipped == 0


def test_raise_if_stuck_says_what_when_and_what_to_try():
    tx: Any = optim.guard(optax.sgd(0.1), max_consecutive=3)
    step, params = jax.jit(applied(tx)), make_params()
    state = tx.init(params)
    params, state = step(make_grads(), state, params)
    for i in range(4):
        if i < 3:
            optim.raise_if_stuck(state)
        params, state = step(plant(make_grads(), np.nan), state, params)
    with pytest.raises(
        optim.StuckError,
        match=r"last 4 updates were refused, from update 2 to 5 \(4 refused in all\).*diagnose",
    ):
        optim.raise_if_stuck(state)
    with pytest.raises(TypeError, match="raise_if_stuck: the state is traced"):
        jax.jit(optim.raise_if_stuck)(state)
    tx = optim.guard(optax.sgd(jnp.inf), max_consecutive=1)
    _, state = applied(tx)(make_grads(), tx.init(params), params)
    with pytest.raises(optim.StuckError, match=r"was finite, of norm 0\.\d+: the step overflows"):
        optim.raise_if_stuck(state)
    tx = optim.rollback(optax.sgd(0.1), patience=1, max_rollbacks=1)
    state = tx.init(params)
    for _ in range(3):
        params, state = applied(tx)(make_grads(), state, params, value=np.inf)
    with pytest.raises(optim.StuckError, match="rollback has returned to its snapshot 1 times"):
        optim.raise_if_stuck(state)


def test_undo_if_refused_keeps_the_rest_of_an_nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(self.linear(x)))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optim.guard(adam()), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, x):
        undo = optim.undo_if_refused(model, optimizer)
        grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)
        undo()

    def everything():
        leaves = jax.tree.leaves(nnx.as_pure(nnx.state((model, optimizer.step))))
        keys = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return bits([jax.random.key_data(x) if keys(x) else x for x in leaves])

    x = jax.random.normal(jax.random.key(1), (5, 3))
    train(model, optimizer, x)
    before = everything()
    train(model, optimizer, x * jnp.nan)
    assert everything() == before
    assert optim.health(optimizer).skipped == 1
    train(model, optimizer, x)
    after = everything()
    assert int(optimizer.step[...]) == 2
    assert sum(a != b for a, b in zip(after, before, strict=True)) >= 6
    bare = nnx.Optimizer(model, adam(), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"health: no state of robustops.optim.guard"):
        optim.undo_if_refused(model, bare)


def test_injected_faults_come_when_and_where_they_are_asked_for():
    params, good = make_params(), make_grads()
    tx: Any = inject_fault(1e30, at=[1, 3], leaf="['w']", index=-1)
    state = tx.init(params)
    for i in range(5):
        grads, state = jax.jit(tx.update)(good, state)
        want = {**good, "w": good["w"].at[3, 2].set(1e30)} if i in (1, 3) else good
        assert bits(grads) == bits(want)
    assert (state.step, state.planted) == (5, 2)
    tx = inject_fault(None, at=0)
    grads, _ = tx.update({**good, "i": jnp.ones(2, int)}, tx.init(params))
    assert norm_of({"w": grads["w"], "b": grads["b"]}) == 0
    assert grads["i"].all()
    with pytest.raises(ValueError, match=r"inject_fault: no floating leaf has 'v' in its path"):
        inject_fault(1.0, at=0, leaf="v").update(good, state)
    with pytest.raises(TypeError, match="inject_fault: value must be a number or None, got 'nan'"):
        inject_fault("nan", at=0)  # pyright: ignore[reportArgumentType]


def _everything() -> Any:
    return optax.chain(
        optim.clip_by_global_norm(1.0),
        optim.clip_by_zscore(),
        optim.clip_by_percentile(50.0, window=4),
        optim.rollback(optim.dynamic_loss_scale(optim.guard(adam()), initial=1.0)),
    )


def test_orbax_restores_every_state_and_the_run_goes_on_bit_for_bit(tmp_path):
    tx, params = _everything(), make_params(jnp.float16)
    step, state = jax.jit(stepper(tx)), tx.init(params)
    faults = [0.0, np.nan, 1e3, 0.0, np.inf, 0.0, 0.0, 5.0]

    def advance(params, state, faults):
        for fault in faults:
            grads = plant(make_grads(jnp.float16), jnp.float16(fault))
            params, state = step(grads, state, params, value=1.0)
        return params, state

    params, state = advance(params, state, faults)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "run", {"params": params, "state": state})
        saver.wait_until_finished()
        fresh = {"params": make_params(jnp.float16), "state": tx.init(make_params(jnp.float16))}
        restored: Any = saver.restore(tmp_path / "run", fresh)
    assert bits(restored) == bits({"params": params, "state": state})
    chex.assert_trees_all_equal_structs(restored["state"], state)
    on = advance(params, state, faults)
    again = advance(restored["params"], restored["state"], faults)
    assert bits(on) == bits(again)


@pytest.mark.parametrize("wrapper", ["skip", "guard", "all"])
def test_ten_thousand_steps_with_faults_end_where_the_run_without_them_ends(wrapper):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 4)), jnp.float32)
    y = x @ jnp.array([1.0, -2.0, 3.0, 0.5]) + 0.1 * rng.normal(size=256).astype(np.float32)
    loss = lambda w, rows: jnp.mean((x[rows] @ w - y[rows]) ** 2)
    steps, tx = 10_000, GUARDS[wrapper](optax.adam(1e-3))

    def train(faults, seed):
        def step(carry, inputs):
            w, state = carry
            fault, key = inputs
            g = jax.grad(loss)(w, jax.random.randint(key, (32,), 0, 256))
            g = g.at[1].set(jnp.where(fault == 0, g[1], fault))
            updates, state = tx.update(g, state, w)
            return (optax.apply_updates(w, updates), state), None

        keys = jax.random.split(jax.random.key(seed), steps)
        return jax.lax.scan(step, (jnp.ones(4), tx.init(jnp.ones(4))), (faults, keys))[0]

    kinds = [0.0, np.nan, np.inf, -np.inf, 3e38]
    faults = rng.choice(kinds, size=steps, p=[0.9] + [0.025] * 4).astype(np.float32)
    run = jax.jit(train)
    w, state = run(faults, 0)
    clean = [run(np.zeros(steps, np.float32), seed)[0] for seed in range(3)]
    full = [float(loss(v, jnp.arange(256))) for v in clean]
    assert_finite(w)
    spread = max(full) - min(full)
    assert abs(float(loss(w, jnp.arange(256))) - np.mean(full)) <= max(2 * spread, 1e-4)
    h = optim.health(state)
    refused = np.sum(~np.isfinite(faults)) + (wrapper == "skip") * np.sum(faults == 3e38)
    assert (int(h.steps), int(h.skipped)) == (steps, refused)
    if wrapper == "guard":
        assert int(h.clipped) >= np.sum(faults == 3e38)


def test_health_makes_no_nan_of_its_own():
    with jax.debug_nans(True):
        h = optim.health(optim.skip_nonfinite(adam()).init(make_params()))
    assert np.isnan(h.last_norm)
