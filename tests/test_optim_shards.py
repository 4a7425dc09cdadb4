"""One decision on all devices, and in two processes."""

import os
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from robustops import optim
from robustops.testing import inject_fault

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


STACKS: dict[str, Any] = {
    "zscore": lambda tx: optim.skip_nonfinite(
        optax.chain(optim.clip_by_zscore(warmup=2, axis_name="d"), tx), axis_name="d"
    ),
    "percentile": lambda tx: optim.skip_nonfinite(
        optax.chain(optim.clip_by_percentile(50.0, window=4, axis_name="d"), tx), axis_name="d"
    ),
    "all": lambda tx: optim.rollback(
        optim.dynamic_loss_scale(optim.guard(tx, axis_name="d"), initial=1.0),
        patience=2,
        axis_name="d",
    ),
}


@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stack", STACKS)
def test_replicas_stay_equal_when_one_of_them_is_spoilt(stack, check_vma):
    mean = optax.stateless(lambda g, _: jax.lax.pmean(g, "d"))
    tx: Any = STACKS[stack](optax.chain(mean, optax.adam(0.1)))
    faults = [
        inject_fault(value, at=at, axis_name="d", replica=replica)
        for value, at, replica in [(np.nan, 3, 2), (np.inf, 4, 7), (1e30, 5, 1), (None, 6, 4)]
    ]
    chain: Any = optax.chain(*faults)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def step(grads, planted, state, params):
        grads, planted = chain.update(grads, planted)
        params, state = optim.guarded_apply(tx, grads, state, params)
        return planted, state, params

    # Along the axis out, so that each replica's own parameters can be seen.
    each = lambda *args: jax.tree.map(lambda x: x[None], step(*args))
    params = jnp.arange(6.0)
    planted, state = chain.init(params), tx.init(params)
    specs = (P("d"), P(), P(), P())
    run = jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("d"), check_vma=check_vma)
    )
    moved = []
    for _ in range(9):
        old = params
        replicas = run(jnp.ones(48), planted, state, params)
        for x in jax.tree.leaves(replicas):
            assert all(np.array_equal(x[0], y, equal_nan=True) for y in x)
        planted, state, params = jax.tree.map(lambda x: x[0], replicas)
        moved.append(not np.array_equal(params, old))
    assert np.isfinite(params).all()
    h = optim.health(state)
    assert h.skipped == 2
    assert h.clipped >= 1
    assert h.rollbacks == (stack == "all")
    assert moved[:3] == [True] * 3
    assert not moved[3]
    assert all(moved[5:])
    assert sum(int(s.planted) for s in planted) == 4


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from robustops import optim
rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
mean = optax.stateless(lambda g, _: jax.lax.pmean(g, "d"))
tx = optim.guard(optax.chain(mean, optax.adam(0.1)), axis_name="d")

def step(grads, state, params):
    return optim.guarded_apply(tx, grads[0], state, params)

run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P()))
whole = NamedSharding(mesh, P())
put = lambda x: jax.make_array_from_callback(x.shape, whole, lambda i: np.asarray(x)[i])
params = jnp.arange(4.0)
state = jax.tree.map(put, tx.init(params))
params = put(params)
for fault in (0.1, np.nan, np.inf, 1e30, 0.1):
    mine = np.full((1, 4), 0.1, np.float32)
    if rank == 1:
        mine[0, 2] = fault
    grads = jax.make_array_from_process_local_data(NamedSharding(mesh, P("d")), mine, (2, 4))
    params, state = run(grads, state, params)
h = optim.health(jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), state))
print(np.asarray(params.addressable_data(0)).tobytes().hex(), h.steps, h.skipped, h.clipped)
"""


def test_two_processes_take_one_decision():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=180) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [p.returncode for p in both] == [0, 0], [errors[-2000:] for _, errors in told]
    lines = [out.split("\n")[-2].split() for out, _ in told]
    assert lines[0] == lines[1]
    assert np.isfinite(np.frombuffer(bytes.fromhex(lines[0][0]), np.float32)).all()
    assert lines[0][1:] == ["5", "2", "1"]


@pytest.mark.parametrize("clipping", [None, 0.01])
def test_leaves_of_one_shape_split_differently(clipping):
    """On an explicit mesh arrays that are split differently cannot be added."""
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Explicit,), devices=jax.devices()[:4])

    def split(*axes):
        return jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, P(*axes)))

    params = {"down": split(None, "d"), "up": split("d", None), "whole": split(None, None)}
    tx = optim.guard(optax.adam(0.1), clipping=clipping)
    step = jax.jit(lambda g, s, p: optim.guarded_apply(tx, g, s, p))
    plain = jax.tree.map(lambda x: jnp.ones((8, 8)), params)
    state, expected = step(params, tx.init(params), params), step(plain, tx.init(plain), plain)
    for name, x in params.items():
        assert state[0][name].sharding.spec == x.sharding.spec
        np.testing.assert_allclose(state[0][name], expected[0][name], rtol=1e-6)
    bad = params | {"up": params["up"] * jnp.nan}
    kept, _ = step(bad, tx.init(params), params)
    np.testing.assert_array_equal(kept["down"], 1)
