"""The contract C1 to C7, one test for every registered op and dtype."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import robustops as ro
from robustops import ops
from robustops._spec import OPS
from robustops.testing import (
    accuracy,
    all_values,
    check_total,
    check_zero_absorbs,
    edge_cases,
    ulp_distance,
)

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
# A reduction sees every pair of edges in a slice of three.
THIRD = [0.0, math.nan, math.inf]


def rowwise(op) -> Callable:
    """The op as a function of arrays of equal shape, a reduction along the last axis."""
    return (lambda x: op.fn(x, axis=-1)) if op.reduces else op.fn


def grid(op, dtype, third=0):
    """Every combination of edges: pairs for two arguments, rows of three for a reduction."""
    edges = edge_cases(dtype)
    if op.reduces:
        rows = list(itertools.combinations_with_replacement(edges, 2))
        rows = [[*row, np.asarray(THIRD[third], dtype)] for row in rows]
        return (np.asarray(rows, dtype),)
    if len(op.domain) == 1:
        return (all_values(dtype) if jnp.finfo(dtype).bits == 16 else edges,)
    return tuple(a.ravel() for a in np.meshgrid(*[edges] * len(op.domain)))


def test_every_public_op_is_registered_and_exported():
    public = {n for n in vars(ops) if not n.startswith("_")}
    assert public == set(OPS)
    assert all(getattr(ro, name) is op.fn for name, op in OPS.items())


@each_op
@each_dtype
def test_c1_total(op, dtype, x64):
    args = grid(op, dtype)
    if not op.reduces:
        return check_total(op.fn, *args)
    # A slice (a, b, 0) as a function of a and b.
    (rows,) = args
    third = rows[0, 2]

    def of_two(a, b):
        return op.fn(jnp.stack([a, b, jnp.full_like(a, third)], -1), axis=-1)

    of_two.__name__ = op.name
    check_total(of_two, rows[:, 0], rows[:, 1])


@each_op
@each_dtype
def test_c2_accuracy(op, dtype, x64):
    slow_reference = dtype == jnp.float64 and op.reduces
    found = accuracy(op, dtype, samples=12 if slow_reference else 120, seed=1)
    assert found.samples >= (4 if slow_reference else 20)
    assert found.value <= op.ulps[0], found
    assert found.derivative <= op.ulps[1], found


@each_op
@each_dtype
def test_c2_edges(op, dtype, x64):
    """Values and derivatives at the points that define the op, both modes."""
    info = jnp.finfo(dtype)

    def truth(v):
        v = v(info) if callable(v) else v
        return np.asarray(jnp.asarray(v, jnp.float64).astype(dtype))

    fn = rowwise(op)
    for args, value, derivatives in op.edges:
        arrays = [jnp.asarray(a(info) if callable(a) else a, dtype) for a in args]
        assert np.all(ulp_distance(fn(*arrays), truth(value).astype(object)) <= op.ulps[0]), args
        if derivatives is None:
            continue
        derivatives = derivatives if isinstance(derivatives, tuple) else (derivatives,)
        argnums = tuple(range(len(arrays)))
        for mode in (jax.jacrev, jax.jacfwd):
            got = mode(fn, argnums)(*arrays)
            for have, want in zip(got, derivatives, strict=True):
                want = truth(want)
                errors = ulp_distance(have, want.astype(object))
                assert np.all(errors <= op.ulps[1]), (args, mode, have, want)


@each_op
@each_dtype
def test_c3_nan_in_nan_out(op, dtype, x64):
    edges = edge_cases(dtype)
    nans = np.full_like(edges, np.nan)
    if op.reduces:
        out = rowwise(op)(np.stack([edges, nans], -1))
        assert np.isnan(np.asarray(out, np.float64)).all()
        return
    for i in range(len(op.domain)):
        args = [edges] * len(op.domain)
        args[i] = nans
        assert np.isnan(np.asarray(op.fn(*args), np.float64)).all()
        if len(op.domain) == 1:
            assert np.isnan(np.asarray(jax.grad(lambda x: op.fn(x).sum())(nans[:1]))).all()


@each_op
@each_dtype
def test_c4_zero_absorbs(op, dtype, x64):
    for third in range(len(THIRD)):
        args = grid(op, dtype, third)
        if not op.reduces:
            bad = np.asarray([math.nan, math.inf, -math.inf], dtype)
            args = [np.concatenate([a[-2000:], bad]) for a in args]
        check_zero_absorbs(rowwise(op), *args)


@each_op
def test_c4_each_argument_constant_in_turn(op):
    """A constant argument contributes nothing, and is not even asked for its partial."""
    if len(op.domain) < 2:
        return
    args = [jnp.asarray(a) for a in grid(op, jnp.float32)]
    for i in range(len(args)):

        def one(x, i=i):
            return op.fn(*[x if k == i else a for k, a in enumerate(args)])

        check_total(one, args[i])


@each_op
def test_c5_one_extension(op, x64):
    """Outside the domain a constant; everywhere finite differences agree with the derivative."""
    fn = rowwise(op)
    rng = np.random.default_rng(0)
    shape = (400, 3) if op.reduces else (400,)
    args = [jnp.asarray(rng.uniform(-4, 4, shape)) for _ in op.domain]
    for i, (lo, _) in enumerate(op.domain):
        if len(op.domain) == 1 and math.isfinite(lo):
            below = jnp.asarray([lo, lo - 1e-300, lo - 1, lo - 1e30])
            assert np.ptp(np.asarray(fn(below))) == 0
            assert not np.any(jax.grad(lambda x: fn(x).sum())(below))
        step = 1e-6
        up, down = (
            fn(*[a + s * step if k == i else a for k, a in enumerate(args)]) for s in (1, -1)
        )
        ones = [jnp.full_like(a, float(k == i)) for k, a in enumerate(args)]
        slope = jax.jvp(fn, tuple(args), tuple(ones))[1]
        near_kink = abs(args[i] - lo) < 2 * step if math.isfinite(lo) else jnp.zeros(shape, bool)
        if op.name == "safe_pow":  # x^y of x < 0 is no function of a real y
            near_kink |= (args[0] < 0) & (i == 1)
        if op.name == "safe_div":
            near_kink |= abs(args[1]) < 1e-2
        error = abs((up - down) / (2 * step) - slope)
        error = jnp.where(near_kink.reshape(error.shape) if not op.reduces else False, 0, error)
        assert np.all(error <= 1e-6 * (1 + abs(slope))), op.name


@each_op
@each_dtype
def test_c6_dtype(op, dtype, x64):
    fn = rowwise(op)
    x = jnp.asarray([0.5, 0.25], dtype)
    with jax.numpy_dtype_promotion("strict"):
        args = [x] * len(op.domain)
        assert fn(*args).dtype == dtype
        assert jax.grad(lambda *a: fn(*a).sum())(*args).dtype == dtype


@each_op
def test_c6_integers_and_weak_types(op):
    fn = rowwise(op)
    n = len(op.domain)
    assert fn(*[jnp.asarray([1, 2])] * n).dtype == jnp.float32
    assert fn(*[jnp.asarray([True, False])] * n).dtype == jnp.float32
    if not op.reduces:
        assert fn(*[2.0] * n).weak_type
        assert fn(*[2] * n).weak_type
        assert (fn(*[2.0] * n) * jnp.ones((), jnp.bfloat16)).dtype == jnp.bfloat16
        assert not fn(*[jnp.ones(())] * n).weak_type


@each_op
def test_c6_complex_is_refused(op):
    with pytest.raises(
        TypeError, match=rf"{op.name}: complex input is not supported, got complex64"
    ):
        rowwise(op)(*[jnp.ones(2, jnp.complex64)] * len(op.domain))


@each_op
def test_c7_composes(op):
    """Every transformation gives what the plain call gives."""
    fn = rowwise(op)
    n = len(op.domain)
    rng = np.random.default_rng(0)
    args = tuple(jnp.asarray(rng.uniform(0.1, 2, (8, 4)), jnp.float32) for _ in range(n))

    def loss(*a):
        return fn(*a).sum()

    every = tuple(range(n))
    want, gradient = fn(*args), jax.grad(loss, every)(*args)

    def same(got, expected=want):
        jax.tree.map(
            lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-6, atol=1e-7), got, expected
        )

    same(jax.jit(fn)(*args))
    if op.reduces:
        same(jax.vmap(fn)(*args))
        same(jax.jit(jax.vmap(jax.grad(loss)))(*args), gradient[0])
    else:
        same(jax.vmap(jax.vmap(fn), in_axes=1, out_axes=1)(*args))
        if n == 2:  # one argument shared over the batch
            same(jax.vmap(fn, (0, None))(args[0], args[1][0]), fn(args[0], args[1][:1]))
    same(lax.scan(lambda c, a: (c, fn(*a)), 0, args)[1])
    same(lax.map(lambda a: fn(*a), args))
    same(lax.cond(True, fn, lambda *a: want, *args))
    same(lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, fn(*args)), (0, want * 0))[1])
    same(jax.jit(jax.grad(jax.checkpoint(loss), every))(*args), gradient)
    for mode in (jax.jacfwd, jax.jacrev):
        same(jax.jit(mode(loss, every))(*args), gradient)
    hessian = jax.jit(jax.hessian(loss))(*args)
    over = jax.jit(jax.jacrev(jax.jacrev(loss)))(*args)
    np.testing.assert_allclose(hessian, over, rtol=1e-4, atol=1e-4)


@each_op
@pytest.mark.parametrize("check_vma", [True, False])
def test_c7_shard_map(op, check_vma):
    fn = rowwise(op)
    n = len(op.domain)
    x = jnp.linspace(0.1, 2, 32).reshape(8, 4)
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    # The second argument, if there is one, is replicated: the rule must match the two.
    args, specs = (x, x[:1] + 1)[:n], (P("i"), P())[:n]
    sharded = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P("i"), check_vma=check_vma)
    argnums = tuple(range(n))
    np.testing.assert_allclose(sharded(*args), fn(*args), rtol=1e-6)
    got = jax.jit(jax.grad(lambda *a: sharded(*a).sum(), argnums))(*args)
    want = jax.grad(lambda *a: fn(*a).sum(), argnums)(*args)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-6), got, want)


@each_op
def test_c7_exports_to_every_platform(op):
    fn = rowwise(op)
    args = [jnp.ones((2, 4))] * len(op.domain)
    exported = export.export(
        jax.jit(jax.value_and_grad(lambda *a: fn(*a).sum())),
        platforms=["cpu", "cuda", "rocm", "tpu"],
    )(*args)
    value, gradient = exported.call(*args)
    np.testing.assert_allclose(value, fn(*args).sum(), rtol=1e-6)
    assert np.isfinite(gradient).all()


@each_op
def test_no_nan_is_made_inside(op):
    """Masked branches must not make one either: debug_nans and checkify look at every equation."""
    args = [jnp.asarray(a) for a in grid(op, jnp.float32)]
    fn = rowwise(op)

    def gradient(*a):
        out, pullback = jax.vjp(fn, *a)
        return pullback(jnp.ones_like(out))

    both = (fn, gradient)
    with jax.debug_nans(True):
        for f in both:
            jax.block_until_ready(jax.jit(f)(*args))
    for f in both:
        error, _ = jax.jit(checkify.checkify(f, errors=checkify.nan_checks))(*args)
        error.throw()


@each_op
def test_jaxpr_shows_the_name(op):
    jaxpr = jax.make_jaxpr(rowwise(op))(*[jnp.ones((2, 3))] * len(op.domain))
    names = [e.params.get("name") for e in jaxpr.jaxpr.eqns if e.primitive.name in ("jit", "pjit")]
    assert names, jaxpr
