"""A `shard_map` as what it computes: its body, once for each device, on one device.

The body becomes a jitted function under a `vmap` for each axis of the mesh, and so jax itself turns
what it says to other devices (`psum`, `all_gather`, `axis_index`) into sums and copies along an
axis. All else in `diagnose` then sees an ordinary program. Equations keep their lines.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray

from .. import _jax
from ._replay import CALLS


def without_shards(closed: Any) -> Any:
    """Return `closed` with every `shard_map` in it on one device; itself if there is none."""
    if not _jax.contains(closed, _is_shards):
        return closed
    return _jax.retrace(lambda *args: _jax.evaluate(closed, args, _outside), closed)


def _is_shards(eqn) -> bool:
    return eqn.primitive.name == "shard_map"


def _outside(eqn, *values):
    if _is_shards(eqn):
        return _on_one_device(eqn, values)
    subs = _jax.subjaxprs(eqn)
    if any(_jax.contains(sub, _is_shards) for jaxprs in subs.values() for sub in jaxprs):
        new = {name: [without_shards(sub) for sub in jaxprs] for name, jaxprs in subs.items()}
        eqn = _jax.with_subjaxprs(eqn, new)
    return _jax.bind(eqn, *values)


def _on_one_device(eqn, values):
    p = eqn.params
    axes = [a for a in p["mesh"].axis_names if a in p["newly_manual_axes"]]
    sizes = {a: p["mesh"].shape[a] for a in axes}
    (body,) = _jax.subjaxprs(eqn)["jaxpr"]

    def mapped(*values):
        present = [[a for a in axes if a in _named(spec)] for spec in p["in_specs"]]
        fn: Callable = lambda *args: tuple(_run(body, args))
        for axis in reversed(axes):
            in_axes = tuple(0 if axis in names else None for names in present)
            fn = jax.vmap(fn, in_axes, axis_name=axis, axis_size=sizes[axis])
        parts = [
            _split(v, s, n, sizes) for v, s, n in zip(values, p["in_specs"], present, strict=True)
        ]
        outs = fn(*parts)
        return [_joined(v, spec, axes) for v, spec in zip(outs, p["out_specs"], strict=True)]

    mapped.__name__ = "shard_map"
    outs = jax.jit(mapped)(*map(_whole, values))
    return [_like(out, v.aval) for out, v in zip(outs, eqn.outvars, strict=True)]


def _whole(x) -> jax.Array:
    """Gather what an explicit mesh has split."""
    spec = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, jax.P(*[None] * x.ndim)) if any(spec) else x


def _like(x, aval) -> jax.Array:
    """Split `x` again as its type says."""
    return jax.sharding.reshard(x, aval.sharding.spec) if any(aval.sharding.spec) else x


def _named(spec) -> set[str]:
    return {a for dim in spec for a in _of_dim(dim)}


def _of_dim(dim) -> tuple[str, ...]:
    return () if dim is None else (dim,) if isinstance(dim, str) else tuple(dim)


def _split(x, spec, present: Sequence[str], sizes) -> jax.Array:
    """Return `x` with an axis for each mesh axis that it is split over, in front."""
    shape, where = [], {}
    for size, dim in zip(x.shape, [*spec, *[None] * (x.ndim - len(spec))], strict=True):
        for a in _of_dim(dim):
            where[a] = len(shape)
            shape.append(sizes[a])
            size //= sizes[a]
        shape.append(size)
    return jnp.moveaxis(jnp.reshape(x, shape), [where[a] for a in present], range(len(present)))


def _joined(x, spec, axes: Sequence[str]) -> jax.Array:
    """Undo `_split` for a result, which has all axes in front; where it is not split all agree."""
    for i, a in reversed(list(enumerate(axes))):
        if a not in _named(spec):
            x = lax.index_in_dim(x, 0, i, keepdims=False)
    present = [a for a in axes if a in _named(spec)]
    for d in range(x.ndim - len(present)):
        for a in reversed(_of_dim(spec[d]) if d < len(spec) else ()):
            i = present.index(a)
            # The last axis of a dimension runs fastest, so it joins first.
            x = jnp.moveaxis(x, i, len(present) - 1 + d)
            present.pop(i)
            at = len(present) + d
            x = jnp.reshape(x, (*x.shape[:at], -1, *x.shape[at + 2 :]))
    return x


def _run(closed, args):
    return _jax.evaluate(closed, args, _inside, mesh=False)


def _inside(eqn, *values):
    """An equation of a body; types that tell on which devices a value varies are dropped."""
    name, p = eqn.primitive.name, eqn.params
    if name in ("pvary", "pcast"):
        return list(values)
    if name == "psum_invariant":
        return [lax.psum(v, p["axes"]) for v in values]
    if name == "all_gather_invariant":
        return [
            lax.all_gather(v, p["axis_name"], axis=p["all_gather_dimension"], tiled=p["tiled"])
            for v in values
        ]
    subs = _jax.subjaxprs(eqn)
    if name == "scan":
        return _scan(eqn, values)
    if name == "while":
        n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        (cond,), (body,) = subs["cond_jaxpr"], subs["body_jaxpr"]
        holds = lambda state: _run(cond, [*values[:n], *state])[0]
        step = lambda state: _run(body, [*values[n:m], *state])
        return lax.while_loop(holds, step, list(values[m:]))
    if name == "cond":
        branches = [lambda *args, b=b: _run(b, args) for b in subs["branches"]]
        return lax.switch(values[0], branches, *values[1:])
    if name in CALLS and "jaxpr" in subs:
        fn = lambda *args: _run(subs["jaxpr"][0], args)
        wrapped = jax.checkpoint(fn) if "remat" in name or name == "checkpoint" else jax.jit(fn)
        return list(wrapped(*values))
    if subs:
        new = {param: list(map(_plain, jaxprs)) for param, jaxprs in subs.items()}
        eqn = _jax.with_subjaxprs(eqn, new)
    if name == "custom_jvp_call":
        eqn = _jax.with_jvp_rule(eqn, lambda rule, _: _plain(rule))
    if name == "custom_vjp_call":
        eqn = _jax.with_vjp_rules(eqn, _plain, lambda rule, _: _plain(rule))
    return _jax.bind(eqn, *values)


def _plain(closed) -> Any:
    """Return the jaxpr of a part of a body, without types that tell where a value varies."""
    avals = [
        ShapedArray(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in closed.jaxpr.invars
    ]
    return _jax.trace_flat(lambda *args: _run(closed, args), avals)


def _scan(eqn, values):
    (closed,), p = _jax.subjaxprs(eqn)["jaxpr"], eqn.params
    consts, carry = _jax.scan_split(eqn)

    def body(state, xs):
        outs = _run(closed, [*values[:consts], *state, *xs])
        return outs[:carry], outs[carry:]

    state, ys = lax.scan(
        body,
        list(values[consts : consts + carry]),
        list(values[consts + carry :]),
        length=p["length"],
        reverse=p["reverse"],
    )
    return [*state, *ys]
