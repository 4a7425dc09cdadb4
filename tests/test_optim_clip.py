"""Clipping keeps the direction of any finite gradient, at fixed and at learned thresholds."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustops import optim
from tests._optim import bits, make_grads, make_params, norm_of, plant, stepper


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e30, jnp.float32), (3e38, jnp.float32), (1e30, jnp.bfloat16), (6e4, jnp.float16)],
)
def test_clip_by_global_norm_keeps_the_direction_of_huge_gradients(value, dtype, run):
    grads = {"w": jnp.full((4, 3), value, dtype), "b": jnp.array([-value, 0, value], dtype)}
    peer, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert norm_of(peer) == 0  # the direction is lost
    tx: Any = optim.clip_by_global_norm(1.0)
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
    tx: Any = optim.clip_by_global_norm(1.0)
    for value in (0.0, -0.0, 1e-30, 1e-40, 0.1):
        grads = {"w": jnp.full((4, 3), value), "h": jnp.full((2,), value, jnp.float16)}
        clipped, state = run(tx.update)(grads, tx.init(grads))
        assert bits(clipped) == bits(grads)
        assert int(state.clipped) == 0


def test_clip_by_global_norm_equals_optax_on_ordinary_gradients():
    grads = make_grads(scale=3.0)
    peer, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    tx: Any = optim.clip_by_global_norm(0.5)
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
    tx: Any = optim.clip_by_global_norm(2.0)
    clipped, _ = jax.jit(tx.update)(grads, tx.init(grads))
    chex.assert_trees_all_equal_shapes_and_dtypes(clipped, grads)
    # ||g|| = 1e30 sqrt(2 + 2 + 4): bf16 and f32 hold 1/4 of the squared norm each, c64 1/2.
    np.testing.assert_allclose(np.float32(clipped["bf16"]), 2 / 8**0.5, rtol=0.005)
    np.testing.assert_allclose(clipped["f32"], 2 / 8**0.5, rtol=0.005)
    np.testing.assert_allclose(clipped["c64"], 2 / 8**0.5 * (1 + 1j), rtol=0.005)
    np.testing.assert_array_equal(clipped["int"], [3, 4])
    assert norm_of(clipped["f16"]) < 1e-20


ENDS: dict[str, Any] = {
    "clip_by_zscore": lambda: optim.clip_by_zscore(),
    "clip_by_percentile": lambda: optim.clip_by_percentile(),
    "adaptive_grad_clip": lambda: optim.adaptive_grad_clip(0.1),
    "no limits": lambda: optim.guard(optax.sgd(1.0), max_norm=None, max_zscore=None),
    "all": lambda: optim.guard(optax.sgd(1.0), clipping=0.1, max_relative_update=0.1),
}


@pytest.mark.parametrize("tx", ENDS.values(), ids=ENDS)
def test_steps_can_be_differentiated(tx, run):
    """Also with a leaf without gradient, as meta-learning does; 0 is what it learns from there."""
    params, tx = {**make_params(), "z": jnp.zeros(3)}, tx()

    def after(scale):
        grads = jax.tree.map(lambda g: scale * g, {**make_grads(), "z": jnp.zeros(3)})
        updates, _ = tx.update(grads, tx.init(params), params)
        return sum(jnp.sum(u * u) for u in jax.tree.leaves(updates))

    slope = run(jax.grad(after))(0.01)
    near = (after(0.0101) - after(0.0099)) / 0.0002
    np.testing.assert_allclose(slope, near, rtol=0.02, atol=1e-6)


def test_float64_gradients_are_measured_in_float64():
    with jax.enable_x64(True):
        tx = optim.clip_by_global_norm(1.0)
        grads = {"a": jnp.full((4,), 1e300, jnp.float64), "b": jnp.full((2,), 3e38, jnp.float32)}
        clipped, state = jax.jit(tx.update)(grads, tx.init(grads))
        np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-12)
        chex.assert_trees_all_equal_dtypes(clipped, grads)
        assert float(state.last_norm) == float(jnp.finfo(jnp.float32).max)


SHAPES = [(), (5,), (1, 5), (4, 3), (2, 3, 4), (3, 3, 2, 4), (2, 2, 2, 3, 2)]


@pytest.mark.parametrize("axis", [None, 0, np.int64(1), (0, -1)])
def test_adaptive_grad_clip_equals_optax_on_ordinary_input(axis):
    shapes = SHAPES if axis is None else [s for s in SHAPES if len(s) > 1]
    rng = np.random.default_rng(1)
    params = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    clips: Any = optax.adaptive_grad_clip, optim.adaptive_grad_clip
    peer, tx = clips[0](0.1, 1e-2, 1 if axis == 1 else axis), clips[1](0.1, 1e-2, axis)
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
    tx: Any = optim.adaptive_grad_clip(0.1)
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
    tx: Any = optim.guard(optax.sgd(1.0), max_norm=None, clipping=0.1)
    ours, state = run(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(ours["w"], -0.1 * np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(ours["b"], -1e-3)
    assert int(optim.health(state).clipped) == 1


def clip_norms(tx: Any, norms, run=jax.jit) -> tuple[np.ndarray, Any]:
    """Norms that come out of `tx` for gradients of the norms given."""
    update, state, out = run(tx.update), tx.init(None), []
    for norm in norms:
        clipped, state = update(jnp.float32([0.6, 0.8]) * norm, state)
        out.append(norm_of(clipped))
    return np.array(out), state


def test_clip_by_percentile_is_autoclip_over_a_window(run):
    norms = np.random.default_rng(0).lognormal(size=40).astype(np.float32)
    for percentile, window in ((10.0, 64), (90.0, 7)):
        got, state = clip_norms(optim.clip_by_percentile(percentile, window=window), norms, run)
        want = [
            min(n, np.percentile(norms[max(0, i + 1 - window) : i + 1], percentile))
            for i, n in enumerate(norms)
        ]
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert int(state.clipped) == np.sum(np.array(want) < norms)


def test_clip_by_zscore_is_zclip_after_its_warmup(run):
    norms = np.r_[np.linspace(0.9, 1.1, 5), 1.0, 30.0, 1.0, 3.0].astype(np.float32)
    got, state = clip_norms(optim.clip_by_zscore(2.0, decay=0.9, warmup=5), norms, run)
    mean, var = norms[:5].mean(dtype=float), norms[:5].var(dtype=float)
    want = list(norms[:5])
    for n in norms[5:]:
        band = 2 * max(var**0.5, 0.1 * mean)
        want.append(mean + band**2 / (n - mean) if n - mean > band else n)
        gap = min(n, mean + band) - mean
        mean, var = mean + 0.1 * gap, 0.9 * (var + 0.1 * gap**2)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(state.norms.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.norms.deviation, var**0.5, rtol=1e-5)
    assert int(state.clipped) == 2


LEARNED: dict[str, Any] = {
    "zscore": lambda: optim.clip_by_zscore(warmup=4),
    "percentile": lambda: optim.clip_by_percentile(90.0, window=16),
}


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_thresholds_stop_spikes_of_any_size(kind, run):
    spikes = [1e30, 3e38, 100.0]
    norms = [1.0 + 0.01 * (i % 3) for i in range(12)] + spikes + [1.0] * 3
    got, state = clip_norms(LEARNED[kind](), norms, run)
    np.testing.assert_array_less(got[12:14], 60.0 if kind == "zscore" else np.inf)
    np.testing.assert_allclose(got[:12], norms[:12], rtol=0.02)
    np.testing.assert_allclose(got[-3:], 1.0, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_thresholds_ignore_zero_and_nonfinite_norms(kind):
    tx: Any = LEARNED[kind]()
    update, state = jax.jit(tx.update), tx.init(None)
    _, state = update(jnp.ones(2), state)
    before = bits(state._replace(last_norm=0.0))
    for value in (np.nan, np.inf, 0.0):
        grads = jnp.float32([value, 0.0])
        same, state = update(grads, state)
        assert bits(same) == bits(grads)
        assert bits(state._replace(last_norm=0.0)) == before


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_thresholds_follow_a_lasting_change_of_level(kind):
    got, _ = clip_norms(LEARNED[kind](), [1.0] * 30 + [10.0] * 60)
    np.testing.assert_allclose(got[-1], 10.0, rtol=1e-6)
    assert got[30] < 2


def test_guard_learns_its_threshold_from_steps_taken():
    tx: Any = optim.guard(optax.sgd(1.0), max_norm=100.0, max_zscore=3.0)
    update, state = jax.jit(tx.update), tx.init(jnp.ones(2))
    for i in range(30):
        updates, state = update(jnp.float32([0.6, 0.8]) * (1 + 0.01 * (i % 5)), state, jnp.ones(2))
    assert int(state.clipped) == 0
    before = bits(state.norms)
    _, state = update(jnp.float32([np.nan, 0.8]), state, jnp.ones(2))
    assert bits(state.norms) == before
    updates, state = update(jnp.float32([6e19, 8e19]), state, jnp.ones(2))
    assert 1.0 < norm_of(updates) < 1.3
    assert int(state.clipped) == 1
    assert float(state.norms.mean) < 1.1


def test_learned_clippers_say_what_is_wrong():
    with pytest.raises(ValueError, match="clip_by_percentile: percentile must be > 0 and <= 100"):
        optim.clip_by_percentile(101)
    with pytest.raises(ValueError, match="clip_by_percentile: window must be an integer >= 1"):
        optim.clip_by_percentile(window=0)
    with pytest.raises(ValueError, match="clip_by_zscore: threshold must be > 0, got -1"):
        optim.clip_by_zscore(-1)
    with pytest.raises(ValueError, match="clip_by_zscore: decay must be >= 0 and < 1, got 1"):
        optim.clip_by_zscore(decay=1)


@pytest.mark.parametrize("jit", [False, True])
def test_a_unit_without_gradient_is_not_counted_as_clipped(jit):
    params = {"w": jnp.ones(3), "unused": jnp.zeros(3)}
    grads = {"w": jnp.full(3, 1e-6), "unused": jnp.zeros(3)}
    tx = optim.guard(optax.sgd(0.1), clipping=0.01, eps=0, max_norm=None, max_zscore=None)
    update = jax.jit(tx.update) if jit else tx.update
    _, state = update(grads, tx.init(params), params)
    assert int(optim.health(state).clipped) == 0
    _, state = update(jax.tree.map(lambda g: g + 1, grads), state, params)
    assert int(optim.health(state).clipped) == 1


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="XLA of jax 0.10 takes barriers away before it fuses"
)
def test_neither_kernels_nor_their_number_grow_with_the_number_of_leaves():
    # XLA walks through a kernel for each operand that it fuses into it: 400 leaves in one chain of
    # scalars took two minutes to compile. Kernels that are alike are compiled once, so that each
    # leaf's place in a vector must not be written into one.
    def kernels(leaves):
        params = [jnp.ones((3, 4)) for _ in range(leaves)]
        tx = optim.guard(optax.sgd(0.1), clipping=0.01)
        step = lambda params, state, grads: optim.guarded_apply(tx, grads, state, params)
        text = jax.jit(step).lower(params, tx.init(params), params).compile().as_text()
        assert text is not None
        bodies = re.findall(r"^%\S*fused\S* .*?^\}", text, re.DOTALL | re.MULTILINE)
        nameless = {re.sub(r"%\S+|param_\S+|metadata=\{.*\}", "", body) for body in bodies}
        return max(body.count(" = ") for body in bodies), len(nameless)

    assert kernels(96) == kernels(48)
