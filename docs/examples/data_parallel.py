"""Data parallel on eight devices: one decision for all, although only one has the bad rows.

Run: pip install robustops && python data_parallel.py
The eight devices are virtual ones on the CPU; on real ones leave the flag out.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import robustops as ro
from robustops import losses, optim

assert len(jax.devices()) == 8, "XLA_FLAGS was set before; start it anew"
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
tx = optim.guard(optax.adam(5e-2), axis_name="data")


def local_step(params, state, x, y, known):
    """One step of one device, on its rows."""

    def loss(params):
        values = losses.sigmoid_binary_cross_entropy(x @ params["w"], y)
        total = jnp.sum(jnp.where(known, values, 0))
        # Divided by the count of all devices: one of them may have nothing but padding.
        return ro.safe_div(total, jax.lax.psum(jnp.sum(known), "data"))

    value, grads = jax.value_and_grad(loss)(params)
    value, grads = jax.lax.psum((value, grads), "data")
    params, state = optim.guarded_apply(tx, grads, state, params)
    return params, state, value


step = jax.jit(
    jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data"), P("data")),
        out_specs=P(),
        check_vma=False,  # gradients are summed by hand
    )
)

x = jax.random.normal(jax.random.key(0), (64, 4))
y = (x @ jnp.array([1.0, -1.0, 0.5, 0.0]) > 0).astype(jnp.float32)
known = jnp.arange(64) < 56  # the last device has nothing but padding
params = {"w": jnp.zeros(4)}
state = tx.init(params)
for i in range(50):
    rows = x.at[3].set(jnp.nan) if i == 20 else x
    params, state, value = step(params, state, rows, y, known)
health = optim.health(state)
copies = [shard.data for shard in params["w"].addressable_shards]
print(f"loss {value:.2f}, {health.skipped} of {health.steps} steps refused, on all devices")
assert health.skipped == 1
assert value < 0.3
assert all((copy == copies[0]).all() for copy in map(jax.device_get, copies))
