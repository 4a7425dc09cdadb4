"""Tools that hold an op to its contract: ulp distance, edge grids, totality and accuracy checks.

For this library's tests and benchmarks, and for your own ops: `check_total(my_op, x)` works on any
function. The contract C1 to C7 is written out in the documentation. `accuracy` needs mpmath:
`pip install 'robustops[testing]'`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._spec import OPS, Op

__all__ = [
    "OPS",
    "Accuracy",
    "Op",
    "accuracy",
    "all_values",
    "check_total",
    "check_zero_absorbs",
    "edge_cases",
    "ulp_distance",
]


def ulp_distance(
    actual: ArrayLike, expected: Any, *, dtype: Any = None, magnitude: Any = 0
) -> np.ndarray:
    """Distance of `actual` from the truth in units in the last place of `dtype` at the truth.

    |actual - expected| / ulp(expected), with ulp(v) = eps 2^floor(log2 |v|), not below that of the
    smallest normal number, since XLA flushes what is smaller to zero. Equal
    infinities and NaN against NaN are 0 apart; any other mismatch of a non-finite number is inf.

    Args:
      actual: array of a floating dtype.
      expected: float64 array, or a sequence of mpmath numbers, of the same shape.
      dtype: whose ulp is meant; default that of `actual`.
      magnitude: where the truth is smaller than this number its ulp counts instead; for results
        that are small differences of large terms.

    Returns:
      float64 array.

    Raises:
      ValueError: the shapes differ.
    """
    got = np.asarray(actual)
    info = jnp.finfo(got.dtype if dtype is None else dtype)
    out = np.empty(got.shape)
    truth = np.asarray(expected, dtype=object)
    if truth.shape != got.shape:
        raise ValueError(f"ulp_distance: shapes differ, {got.shape} and {truth.shape}.")
    for index, want in np.ndenumerate(truth):
        have = float(got[index])
        if math.isnan(have) or math.isnan(float(want)) or math.isinf(have) or abs(want) == math.inf:
            same = have == want or (math.isnan(have) and math.isnan(float(want)))
            out[index] = 0.0 if same else math.inf
            continue
        size = float(max(abs(want), magnitude, float(info.tiny)))
        exponent = math.frexp(size)[1] - 1
        # The difference is formed in the precision of `expected`, not rounded before.
        out[index] = float(abs(want - have) / (float(info.eps) * 2.0**exponent))
    return out


def edge_cases(dtype: Any) -> np.ndarray:
    """Finite numbers at which ops break, ascending, both signs.

    0, the smallest subnormal and normal numbers, eps, 1 - eps/2, 1, 1 + eps, small integers, the
    square roots of the smallest and largest numbers, the arguments at which exp overflows and
    sigmoid saturates, and the largest number.
    """
    info = jnp.finfo(dtype)
    top = float(info.max)
    positive = [
        0.0, float(info.smallest_subnormal), float(info.tiny), 10 * float(info.tiny),
        math.sqrt(float(info.tiny)), float(info.eps), 0.1, 0.5, 1 - float(info.epsneg), 1.0,
        1 + float(info.eps), 1.5, 2.0, 2.5, 3.0, 10.0, 20.0, math.log(top), 2 * math.log(top),
        math.sqrt(top), top / 2, top,
    ]  # fmt: skip
    return np.unique(np.asarray([s * v for v in positive for s in (-1.0, 1.0)]).astype(dtype))


def all_values(dtype: Any) -> np.ndarray:
    """Every finite number of a 16-bit floating dtype, ascending by bit pattern."""
    if jnp.finfo(dtype).bits != 16:
        raise ValueError(f"all_values: dtype must have 16 bits, got {np.dtype(dtype).name}.")
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        return values[np.isfinite(values)]


def _one_at_a_time(arrays: Sequence[jax.Array]) -> list[tuple[jax.Array, ...]]:
    """Tangents along each argument in turn."""
    return [
        tuple(jnp.full_like(a, float(k == i)) for k, a in enumerate(arrays))
        for i in range(len(arrays))
    ]


def _finite(label: str, fn: Any, got: Any, arrays: Sequence[jax.Array]) -> None:
    for leaf in jax.tree.leaves(got):
        bad = ~np.isfinite(np.asarray(leaf).astype(np.float64))
        if bad.any():
            row = np.argwhere(bad)[0]
            near = [np.asarray(a)[tuple(row[: a.ndim])] for a in arrays]
            raise AssertionError(
                f"{getattr(fn, '__name__', fn)}: {label} is not finite at {int(bad.sum())} of "
                f"{bad.size} points, first at index {tuple(map(int, row))}, input {near}."
            )


def check_total(fn: Callable, *args: ArrayLike) -> None:
    """Assert that `fn` has finite values, first and second derivatives at finite arguments.

    Derivatives are taken in forward and in reverse mode, the second ones as forward over forward
    and forward over reverse, along each argument (and from each output) in turn.

    Args:
      fn: elementwise in arrays of one shape; its result may have one axis more, of several outputs.
        A reduction over n elements is checked as a function of n arrays.
      *args: finite floating arrays of equal shape.

    Raises:
      AssertionError: it names the function, the derivative, and the first bad input.
    """
    arrays = tuple(jnp.asarray(a) for a in args)
    out = jax.jit(fn)(*arrays)
    _finite("the value", fn, out, arrays)
    directions = _one_at_a_time(arrays)
    if out.ndim == arrays[0].ndim:
        cotangents = [jnp.ones_like(out)]
    else:
        units = np.eye(out.shape[-1])
        cotangents = [jnp.broadcast_to(jnp.asarray(u, out.dtype), out.shape) for u in units]

    def forward(xs, ts):
        return jax.jvp(fn, xs, ts)[1]

    def reverse(xs, ct):
        return jax.vjp(fn, *xs)[1](ct)

    @jax.jit
    def twice_forward(xs, ts, us):
        return jax.jvp(lambda *v: forward(v, ts), xs, us)[1]

    @jax.jit
    def twice_reverse(xs, ct, us):
        return jax.jvp(lambda *v: reverse(v, ct), xs, us)[1]

    once_forward, once_reverse = jax.jit(forward), jax.jit(reverse)
    for i, ts in enumerate(directions):
        _finite(f"the derivative by argument {i}", fn, once_forward(arrays, ts), arrays)
        for j, us in enumerate(directions):
            label = f"the second derivative by arguments {i}, {j}"
            _finite(label, fn, twice_forward(arrays, ts, us), arrays)
    for ct in cotangents:
        _finite("the gradient (reverse mode)", fn, once_reverse(arrays, ct), arrays)
        for j, us in enumerate(directions):
            label = f"the derivative of the gradient by argument {j}"
            _finite(label, fn, twice_reverse(arrays, ct, us), arrays)


def check_zero_absorbs(fn: Callable, *args: ArrayLike) -> None:
    """Assert that a zero tangent or cotangent gives exactly zero, at NaN and inf too.

    Args:
      fn: function of the arrays.
      *args: floating arrays; finite or not.

    Raises:
      AssertionError: it names the mode and the first bad input.
    """
    arrays = [jnp.asarray(a) for a in args]
    zeros = tuple(jnp.zeros_like(a) for a in arrays)

    @jax.jit
    def both(xs, ts):
        out, forward = jax.jvp(fn, xs, ts)
        return forward, jax.vjp(fn, *xs)[1](jnp.zeros_like(out))

    forward, reverse = both(tuple(arrays), zeros)
    for label, got in (("forward", forward), ("reverse", reverse)):
        for leaf in jax.tree.leaves(got):
            bad = np.asarray(leaf) != 0  # NaN too
            if bad.any():
                raise AssertionError(
                    f"{getattr(fn, '__name__', fn)}: a zero tangent gives "
                    f"{np.asarray(leaf)[bad][0]} in {label} mode, first at index "
                    f"{tuple(map(int, np.argwhere(bad)[0]))}."
                )


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The errors of an op on a sample, in ulps of its dtype."""

    value: float
    """Largest error of the value."""
    derivative: float
    """Largest error of a first derivative."""
    value_at: tuple
    """The arguments with the largest error of the value."""
    derivative_at: tuple
    """The arguments with the largest error of a derivative."""
    samples: int
    """Number of arguments compared, those whose true values are representable."""


def _sample(op: Op, dtype: Any, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw arguments inside the domain: log-uniform, of ordinary size, and beside its ends."""
    info = jnp.finfo(dtype)
    shape = (n, 4) if op.reduces else (n,)
    low, high = math.log2(float(info.tiny)), math.log2(float(info.max))
    arrays = []
    for lo, hi in op.domain:
        # A slice shares its order of magnitude, else one element would decide everything.
        far = 2.0 ** (rng.uniform(low, high, shape[:1] + (1,) * (len(shape) - 1)))
        far = far * rng.uniform(0.1, 1.0, shape)
        kinds = [far, 2.0 ** rng.uniform(-10, 10, shape), rng.uniform(0, 40, shape)]
        x = np.choose(rng.integers(0, 3, shape[:1] + (1,) * (len(shape) - 1)), kinds)
        if lo < 0:
            x = x * rng.choice([-1.0, 1.0], shape)
        for end, sign in ((lo, 1), (hi, -1)):
            if math.isfinite(end) and end != 0:
                near = end + sign * 2.0 ** rng.uniform(-20, 0, shape)
                x = np.where(rng.random(shape) < 0.2, near, x)
        x = x.astype(dtype)
        inside = (x.astype(np.float64) > lo) & (x.astype(np.float64) < hi) & np.isfinite(x)
        inside &= abs(x.astype(np.float64)) >= float(info.tiny)
        arrays.append(np.where(inside, x, np.asarray(0.5, dtype)))
    return arrays


def accuracy(op: Op, dtype: Any, *, samples: int = 200, seed: int = 0) -> Accuracy:
    """Measure the largest error of an op and its first derivatives against mpmath.

    The sample lies inside `op.domain`: log-uniform over the dtype's range, of ordinary size, and
    beside the domain's ends; slices have four elements. Where a true value is not representable
    as a normal number nothing is compared, nor a derivative that is not. An error below four times
    the smallest normal number (float32's for 16 bits) is the trace of flushed summands, and counts
    as none.

    Args:
      op: a record of `OPS`, or one of your own.
      dtype: floating dtype; float64 needs `jax_enable_x64`.
      samples: number of arguments (or slices) drawn.
      seed: of the draw.

    Returns:
      An `Accuracy`.

    Raises:
      ImportError: mpmath is not installed.
    """
    try:
        import mpmath
    except ImportError as error:
        raise ImportError("accuracy needs mpmath: pip install 'robustops[testing]'") from error
    arrays = _sample(op, dtype, samples, np.random.default_rng(seed))
    fn = (lambda *xs: op.fn(*xs, axis=-1)) if op.reduces else op.fn
    inputs = tuple(jnp.asarray(a) for a in arrays)
    argnums = tuple(range(len(inputs)))
    values = np.asarray(jax.jit(jax.vmap(fn))(*inputs))
    jacobian = jax.jit(jax.vmap(jax.jacrev(fn, argnums=argnums)))(*inputs)
    worst = [0.0, 0.0]
    at: list[tuple] = [(), ()]
    compared = 0
    info = jnp.finfo(dtype)
    # 16-bit numbers are computed with as float32.
    flushed = 4 * float(jnp.finfo(jnp.float64 if info.bits == 64 else jnp.float32).tiny)

    def representable(want):
        return want == 0 or float(info.tiny) <= abs(want) <= float(info.max)

    def compare(which, got, want, scale, point):
        if abs(float(got) - want) < flushed:
            return
        ulps = float(ulp_distance(got, want, magnitude=scale))
        if not ulps <= worst[which]:
            worst[which], at[which] = ulps, point

    # Differences of nearly equal numbers keep 15 digits at this precision.
    with mpmath.workprec(2400 if info.bits == 64 else 400):
        for row in range(samples):
            point = tuple(a[row].tolist() for a in arrays)
            exact = [[mpmath.mpf(float(v)) for v in np.atleast_1d(a[row])] for a in arrays]
            if not op.reduces:
                exact = [e[0] for e in exact]
            truth = op.reference(mpmath, *exact)
            truth = truth if isinstance(truth, list) else [truth]
            scales = op.conditioning(mpmath, *exact) if op.conditioning else (0, 0)
            # A saturated value goes on as a constant: its derivative is not the true one either.
            if not all(representable(v) for v in truth):
                continue
            compared += 1
            for got, want in zip(np.ravel(values[row]), truth, strict=True):
                compare(0, got, want, scales[0], point)
            for k in argnums:
                grads = np.ravel(np.asarray(_true_derivatives(mpmath, op, exact, k), dtype=object))
                got = np.ravel(np.asarray(jacobian[k][row]))
                for have, want in zip(got, grads, strict=True):
                    if representable(want):
                        compare(1, have, want, scales[1], point)
    return Accuracy(worst[0], worst[1], at[0], at[1], compared)


def _true_derivatives(mpmath: Any, op: Op, exact: list, k: int) -> Any:
    """d out / d argument k by a central difference with a relative step of 2^-(precision / 3)."""
    step = mpmath.mpf(2) ** -(mpmath.mp.prec // 3)

    def moved(element, sign):
        args = list(exact)
        if op.reduces:
            args[k] = list(args[k])
            args[k][element] += sign * step * abs(args[k][element])
        else:
            args[k] += sign * step * abs(args[k])
        out = op.reference(mpmath, *args)
        return out if isinstance(out, list) else [out]

    size = len(exact[k]) if op.reduces else 1
    columns = []
    for element in range(size):
        centre = exact[k][element] if op.reduces else exact[k]
        up, down = moved(element, 1), moved(element, -1)
        columns.append([(u - d) / (2 * step * abs(centre)) for u, d in zip(up, down, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]
