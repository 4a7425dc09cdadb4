"""The contract C1 to C7 as checks of an op's record; `check_contract` is their public face."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from ._accuracy import accuracy, rowwise, ulp_distance
from ._spec import Op
from ._total import (
    all_values,
    check_total_of_rows,
    check_zero_absorbs,
    derivatives,
    edge_cases,
    first_derivatives,
    unit_cotangents,
    unit_tangents,
)

DTYPES = ("float16", "bfloat16", "float32", "float64")
UNOPTIMIZED = {"xla_backend_optimization_level": 0}
"""Where only the transformation is in question; compiles in two thirds of the time."""


def check_contract(op: Op, /, *, dtypes: Sequence[Any] = DTYPES) -> None:
    """Assert that an op keeps the contract C1 to C7, which the documentation writes out.

    In each dtype: totality on every 16-bit number, or on edges and random bit patterns (C1);
    accuracy as claimed against mpmath, and the edges of the record (C2); NaN in, NaN out (C3); zero
    tangents absorb (C4); the dtype is kept under strict promotion (C6). In float64: finite
    differences agree with the derivative, and the op is constant outside its domain (C5). In
    float32: integers, weak types and complex input (C6); every transformation, `shard_map` over
    the devices there are, `jax.export`, `jax_debug_nans` and checkify (C7).

    Args:
      op: a record of `OPS`, or your own, `Op(my_op, naive=..., reference=..., ...)`. A function
        with an `axis` argument is taken for a reduction along it.
      dtypes: those to check; float64 is enabled meanwhile.

    Raises:
      AssertionError: it names the first bad input, and its notes the op, the dtype and the clause.
      ImportError: mpmath is not installed.
    """
    fn = rowwise(op)
    for dtype in map(jnp.dtype, dtypes):
        with jax.enable_x64(True):
            for clause in (_total, _accurate, _edges, _nan, _zero_absorbs, _keeps_dtype):
                _run(clause, op, fn, dtype)
            if dtype == jnp.float64:
                _run(_extends_consistently, op, fn, dtype)
            if dtype == jnp.float32:
                _run(_makes_no_nan, op, fn, dtype)
        if dtype == jnp.float32:
            for clause in (_constants, _types, _composes, _shards, _exports):
                _run(clause, op, fn, dtype)


def _run(clause: Callable, op: Op, fn: Callable, dtype: Any) -> None:
    try:
        clause(op, fn, dtype)
    except Exception as error:
        error.add_note(f"check_contract: {op.name} in {dtype.name} breaks {clause.__doc__}")
        raise


def _require(ok: Any, message: str) -> None:
    if not ok:
        raise AssertionError(message)


def _nowhere(bad: Any, message: str, arrays: Sequence[np.ndarray]) -> None:
    """Fail if `bad` holds in a row, and name the first."""
    if bad.any():
        row = int(np.argmax(bad))
        inputs = [a[row].tolist() for a in arrays]
        raise AssertionError(f"{message}, in {bad.sum()} rows, first at input {inputs}")


def _bit_patterns(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Finite numbers, uniform over the bit patterns."""
    bits = jnp.finfo(dtype).bits
    values = rng.integers(0, 2**bits, shape, dtype=f"uint{bits}").view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        return np.where(np.isfinite(values), values, np.asarray(1, dtype))


def _grid(op: Op, dtype: Any) -> list[np.ndarray]:
    """Finite arguments: every 16-bit number, or edges in all combinations and random bit patterns.

    One op and dtype have one shape of grid, so that one compilation serves several clauses.
    """
    edges, rng = edge_cases(dtype), np.random.default_rng(0)
    if op.reduces:
        rows = [(*pair, 0, 0) for pair in itertools.combinations_with_replacement(edges, 2)]
        rows = np.concatenate([np.asarray(rows, dtype), _bit_patterns(dtype, (200, 4), rng)])
        return [rows, *(rng.permutation(rows) for _ in op.domain[1:])]
    if len(op.domain) == 1 and jnp.finfo(dtype).bits == 16:
        return [all_values(dtype)]
    combined = np.meshgrid(*[edges] * len(op.domain))
    return [np.append(a.ravel(), _bit_patterns(dtype, (2000,), rng)) for a in combined]


def _padded(arrays: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    return [np.resize(a, (rows, *a.shape[1:])) for a in arrays]


def _total(op: Op, fn: Callable, dtype: Any) -> None:
    """C1: finite values, first and second derivatives."""
    check_total_of_rows(fn, _grid(op, dtype), 1)


def _accurate(op: Op, fn: Callable, dtype: Any) -> None:
    """C2: the accuracy that the record claims."""
    # A slice has several derivatives, and in float64 each takes some 2400 bits.
    samples = 120 if not op.reduces else 12 if dtype == jnp.float64 else 40
    found = accuracy(op, dtype, samples=samples, seed=1)
    _require(found.samples >= samples // 6, f"too few true values are representable: {found}")
    _require(found.value <= op.ulps[0], f"the claimed {op.ulps[0]} ulp of the value: {found}")
    _require(
        found.derivative <= op.ulps[1], f"the claimed {op.ulps[1]} ulp of the derivative: {found}"
    )


def _jacobians(op: Op, fn: Callable, arrays: Sequence[np.ndarray]) -> tuple[list, list]:
    """The Jacobian of each row by each argument, in forward and in reverse mode."""
    inputs = tuple(arrays)

    def both(unit, output):
        if op.reduces:  # a slice of another length than the grid's is another compilation
            return first_derivatives(fn, inputs, unit, output)
        found = derivatives(fn, inputs, unit, output, unit)
        return found[1], found[3]

    out = jax.eval_shape(fn, *inputs)
    outputs = unit_cotangents(out, 1)
    units, columns = list(unit_tangents(arrays, 1)), [[] for _ in arrays]
    for unit in units:
        k = next(k for k, t in enumerate(unit) if t.any())
        columns[k].append(both(unit, outputs[0])[0])
    rows = [both(units[0], output)[1] for output in outputs]
    shapes = [out.shape + a.shape[1:] for a in arrays]
    forward = [np.stack(c, -1).reshape(s) for c, s in zip(columns, shapes, strict=True)]
    reverse = [np.stack([row[k] for row in rows], 1).reshape(s) for k, s in enumerate(shapes)]
    return forward, reverse


def _edges(op: Op, fn: Callable, dtype: Any) -> None:
    """C2: values and derivatives at the edges of the record, called eagerly and jitted."""
    info = jnp.finfo(dtype)

    def in_dtype(v):
        return np.asarray(v(info) if callable(v) else v, np.float64).astype(dtype)

    def agree(what, got, want, ulps, args):
        errors = ulp_distance(got, in_dtype(want).astype(object))
        _require(
            np.all(errors <= ulps), f"{what} at the edge {args} is {got}, not {in_dtype(want)}"
        )

    slices: dict[tuple, list] = {}
    for args, value, slopes in op.edges:
        arrays = [in_dtype(a) for a in args]
        slices.setdefault(tuple(a.shape for a in arrays), []).append((arrays, value, slopes))
    for edges in slices.values():
        arrays = [np.stack(column) for column in zip(*(edge[0] for edge in edges), strict=True)]
        if not op.reduces:
            arrays = _padded(arrays, len(_grid(op, dtype)[0]))
        values = np.asarray(fn(*map(jnp.asarray, arrays)))
        modes = _jacobians(op, fn, arrays)
        for row, (args, value, slopes) in enumerate(edges):
            agree("the value", values[row], value, op.ulps[0], args)
            if slopes is None:
                continue
            wanted = slopes if isinstance(slopes, tuple) else (slopes,)
            for mode, jacobian in zip(("forward", "reverse"), modes, strict=True):
                for got, want in zip(jacobian, wanted, strict=True):
                    agree(f"the derivative ({mode} mode)", got[row], want, op.ulps[1], args)


def _nan(op: Op, fn: Callable, dtype: Any) -> None:
    """C3: NaN in gives NaN out."""
    grid = _grid(op, dtype)
    for k in range(len(grid)):
        for element in np.ndindex(grid[k].shape[1:]):
            arrays = [a.copy() for a in grid]
            arrays[k][(..., *element)] = math.nan
            unit, out = next(unit_tangents(arrays, 1)), jax.eval_shape(fn, *arrays)
            ones = np.ones(out.shape, dtype)
            value, slope, *_ = derivatives(fn, tuple(arrays), unit, ones, unit)
            hidden = ~np.isnan(np.asarray(value).reshape(len(value), -1).astype(np.float64))
            # A cumulative op is NaN from its first NaN on.
            hidden = hidden.all(1) if any(element) else hidden.any(1)
            _nowhere(hidden, "NaN is hidden", arrays)
            if len(grid) == 1 and not op.reduces:
                _require(np.isnan(slope).all(), "the derivative at NaN is not NaN")
        # XLA for CPU fuses an op into a sum with other maxima, which drop a NaN.
        arrays = [np.full((64, *a.shape[1:]), 0.5, a.dtype) for a in grid]
        arrays[k][5] = math.nan
        total = jax.jit(lambda *arrays: jnp.sum(fn(*arrays)))(*arrays)
        _require(bool(jnp.isnan(total)), "a NaN is hidden in the sum of the values")


def _zero_absorbs(op: Op, fn: Callable, dtype: Any) -> None:
    """C4: a zero tangent or cotangent gives exactly zero."""
    grid = _grid(op, dtype)
    check_zero_absorbs(fn, *grid)
    for bad in (math.nan, math.inf, -math.inf):
        for k in range(len(grid)):
            arrays = [a.copy() for a in grid]
            arrays[k].reshape(len(grid[k]), -1)[:, -1] = bad
            check_zero_absorbs(fn, *arrays)


def _constants(op: Op, fn: Callable, dtype: Any) -> None:
    """C4: a constant argument is not even asked for its partial."""
    grid = _grid(op, dtype)
    out = jax.eval_shape(fn, *grid)
    for k in range(len(grid) if len(grid) > 1 else 0):
        one = lambda x, k=k: fn(*grid[:k], x, *grid[k + 1 :])
        unit = next(unit_tangents(grid[k : k + 1], 1))
        found = first_derivatives(one, (grid[k],), unit, unit_cotangents(out, 1)[0])
        for slope in jax.tree.leaves(found):
            bad = ~np.isfinite(np.asarray(slope, np.float64)).reshape(len(slope), -1).all(1)
            _nowhere(bad, "the derivative beside a constant is not finite", grid)


def _extends_consistently(op: Op, fn: Callable, dtype: Any) -> None:
    """C5: outside the domain a constant; finite differences agree with the derivative."""
    grid, rng = _grid(op, dtype), np.random.default_rng(0)
    rows = len(grid[0])
    if len(grid) == 1 and not op.reduces:
        for end, sign in zip(op.domain[0], (-1, 1), strict=True):
            if math.isfinite(end):
                beyond = _padded([end + sign * np.asarray([0, 1e-300, 1e-9, 1, 1e30])], rows)
                ((slope,), _), value = _jacobians(op, fn, beyond), fn(*beyond)
                _require(np.ptp(value) == 0, f"it is not constant beyond {end}")
                _require(not slope.any(), f"its derivative is not 0 beyond {end}")
    arrays = [rng.uniform(-4, 4, a.shape) for a in grid]
    for k, a in enumerate(arrays):
        for element in np.ndindex(a.shape[1:]):
            step = np.zeros_like(a)
            step[(..., *element)] = 1e-6
            moved = [[*arrays[:k], a + s * step, *arrays[k + 1 :]] for s in (-1, 0, 1)]
            below, _, above = (np.asarray(fn(*xs)) for xs in moved)
            slopes = [_jacobians(op, fn, xs)[0][k][(..., *element)] for xs in moved]
            # The mean value theorem: the difference is the slope of some point in between.
            difference = (above - below) / 2e-6
            slack = 1e-8 * (1 + abs(difference) + abs(above))
            wrong = difference < np.min(slopes, 0) - slack
            wrong |= difference > np.max(slopes, 0) + slack
            wrong = wrong.reshape(rows, -1).any(1)
            _nowhere(wrong, "finite differences are not the derivative", arrays)


def _keeps_dtype(op: Op, fn: Callable, dtype: Any) -> None:
    """C6: the dtype of the result is the input's, under strict promotion."""
    args = [jnp.ones(2, dtype)] * len(op.domain)
    with jax.numpy_dtype_promotion("strict"):
        out = jax.eval_shape(fn, *args)
        slope = jax.eval_shape(jax.grad(lambda *a: fn(*a).sum()), *args)
    _require(out.dtype == dtype, f"the value has {out.dtype}")
    _require(slope.dtype == dtype, f"the derivative has {slope.dtype}")


def _types(op: Op, fn: Callable, dtype: Any) -> None:
    """C6: integers become floats, weak types stay weak, complex input is a TypeError."""
    n, default = len(op.domain), jnp.result_type(float)
    for given in (jnp.asarray([1, 2]), jnp.asarray([True, False])):
        out = jax.eval_shape(fn, *[given] * n)
        _require(out.dtype == default, f"{given.dtype} becomes {out.dtype}, not {default}")
    if not op.reduces:
        for given in (2.0, 2):
            _require(fn(*[given] * n).weak_type, f"the result of {given!r} is not weak")
        _require(not fn(*[jnp.ones(())] * n).weak_type, "the result of a strong array is weak")
    try:
        fn(*[jnp.ones(2, jnp.complex64)] * n)
    except TypeError:
        return
    raise AssertionError("complex input is not refused with a TypeError")


def _composes(op: Op, fn: Callable, dtype: Any) -> None:
    """C7: every transformation gives what the plain call gives."""
    n, rng = len(op.domain), np.random.default_rng(0)
    args = tuple(jnp.asarray(rng.uniform(0.1, 2, (8, 4)), dtype) for _ in range(n))
    every = tuple(range(n))

    def loss(*a):
        return fn(*a).sum()

    value = fn(*args)
    gradient = jax.grad(loss, every)(*args)  # eager, as is the value

    @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
    def transformed(*args):
        values = {
            "jit": fn(*args),
            "vmap": jax.vmap(fn)(*args),
            "scan": lax.scan(lambda c, a: (c, fn(*a)), 0, args)[1],
            "cond": lax.cond(args[0][0, 0] > 0, fn, lambda *a: value * 0, *args),
            "while_loop": lax.while_loop(
                lambda c: c[0] < 1, lambda c: (c[0] + 1, fn(*args)), (0, value * 0)
            )[1],
        }
        if not op.reduces:
            values["vmap, vmap"] = jax.vmap(jax.vmap(fn), in_axes=1, out_axes=1)(*args)
        gradients = {
            "checkpoint": jax.grad(jax.checkpoint(loss), every)(*args),
            "jacfwd": jax.jacfwd(loss, every)(*args),
            "jacrev": jax.jacrev(loss, every)(*args),
        }
        return values, gradients, jax.hessian(loss)(*args), jax.jacrev(jax.jacrev(loss))(*args)

    def same(label, got, want, rtol=2e-6, atol=1e-7):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol, atol, err_msg=label)

    values, gradients, hessian, over = transformed(*args)
    for label, got in values.items():
        same(label, got, value)
    for label, got in gradients.items():
        same(label, got, gradient)
    same("hessian and reverse over reverse", hessian, over, 1e-4, 1e-4)
    if n == 2 and not op.reduces:
        shared = jax.vmap(fn, (0, None))(args[0], args[1][0])
        same("an argument shared over the batch", shared, fn(args[0], args[1][:1]))


def _shards(op: Op, fn: Callable, dtype: Any) -> None:
    """C7: shard_map, with and without check_vma."""
    n, devices = len(op.domain), jax.device_count()
    x = jnp.linspace(0.1, 2, 4 * devices, dtype=dtype).reshape(devices, 4)
    mesh = jax.make_mesh((devices,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    # The second argument, if there is one, is replicated: the rule must match the two.
    args, specs = (x, x[:1] + 1)[:n], (P("i"), P())[:n]
    argnums = tuple(range(n))

    def both(f):
        return jax.value_and_grad(lambda *a: f(*a).sum(), argnums)

    def sharded(check_vma):
        return jax.shard_map(
            fn, mesh=mesh, in_specs=specs, out_specs=P("i"), check_vma=check_vma
        )

    want, got = (
        jax.jit(both(f), compiler_options=UNOPTIMIZED)(*args) for f in (fn, sharded(True))
    )
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-6), got, want)
    # Unchecked it is the same program; it must trace.
    jax.eval_shape(both(sharded(False)), *args)


def _exports(op: Op, fn: Callable, dtype: Any) -> None:
    """C7: jax.export to every platform."""
    args = [jnp.ones((2, 4), dtype)] * len(op.domain)
    exported = export.export(
        jax.jit(jax.value_and_grad(lambda *a: fn(*a).sum())),
        platforms=["cpu", "cuda", "rocm", "tpu"],
    )(*args)
    value, gradient = exported.call(*args)
    np.testing.assert_allclose(value, fn(*args).sum(), rtol=1e-6)
    _require(np.isfinite(gradient).all(), "the gradient of the exported function is not finite")


def _makes_no_nan(op: Op, fn: Callable, dtype: Any) -> None:
    """C7: no NaN is made inside, not even in a branch that is thrown away."""
    grid = tuple(_grid(op, dtype))
    unit, out = next(unit_tangents(grid, 1)), jax.eval_shape(fn, *grid)
    with jax.debug_nans(True):  # looks at what a jitted function returns
        jax.block_until_ready(derivatives(fn, grid, unit, unit_cotangents(out, 1)[0], unit))

    def value_and_gradient(*a):
        out, pullback = jax.vjp(fn, *a)
        return out, pullback(jnp.ones_like(out))

    checked = checkify.checkify(value_and_gradient, errors=checkify.nan_checks)
    error, _ = jax.jit(checked, compiler_options=UNOPTIMIZED)(*map(jnp.asarray, grid))
    error.throw()
