"""How far an op is from the truth: ulp distance, the truth in mpmath, and the errors of a sample.

`robustops.testing` makes the public part of this public. The accuracy benchmark draws the truth
once and measures other libraries against it too.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._spec import Op


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


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The errors of an op on a sample, in ulps of its dtype."""

    value: float
    """Largest error of the value."""
    derivative: float
    """Largest error of a first derivative."""
    value_at: tuple[Any, ...]
    """The arguments with the largest error of the value."""
    derivative_at: tuple[Any, ...]
    """The arguments with the largest error of a derivative."""
    samples: int
    """Number of arguments compared, those whose true values are representable."""


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
    truth = true_values(op, dtype, samples=samples, seed=seed)
    of_value, of_derivative = errors(truth, dtype, *evaluate(rowwise(op), truth.arrays))

    def worst(found):
        if np.isnan(found).all():
            return 0.0, ()
        row = int(np.nanargmax(found))
        return float(found[row]), truth.point(row)

    (value, value_at), (derivative, derivative_at) = worst(of_value), worst(of_derivative)
    return Accuracy(value, derivative, value_at, derivative_at, int(truth.compared.sum()))


def rowwise(op: Op, fn: Callable | None = None) -> Callable:
    """The op (or another function of its signature) of one element or slice."""
    fn = op.fn if fn is None else fn
    return (lambda *xs: fn(*xs, axis=-1)) if op.reduces else fn


def sample(op: Op, dtype: Any, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw arguments inside the domain, where functions are hard in different ways.

    Log-uniform, of ordinary size, beside 1 and the domain's ends, and beside another argument or
    element.
    """
    info = jnp.finfo(dtype)
    shape = (n, 4) if op.reduces else (n,)
    by_row = shape[:1] + (1,) * (len(shape) - 1)
    low, high = math.log2(float(info.tiny)), math.log2(float(info.max))

    def small():
        return 2.0 ** rng.uniform(-info.nmant - 1, 0, shape) * rng.choice([-1.0, 1.0], shape)

    arrays: list[np.ndarray] = []
    for lo, hi in op.domain:
        # A slice shares its order of magnitude, else one element would decide everything.
        far = 2.0 ** rng.uniform(low, high, by_row) * rng.uniform(0.1, 1.0, shape)
        kinds = [far, 2.0 ** rng.uniform(-10, 10, shape), rng.uniform(0, 40, shape), 1 + small()]
        x = np.choose(rng.choice(4, by_row, p=[0.3, 0.3, 0.3, 0.1]), kinds)
        if lo < 0:
            x = x * rng.choice([-1.0, 1.0], shape)
        others = arrays[0].astype(np.float64) if arrays else x[..., :1] if op.reduces else x
        # XLA would flush a subnormal difference.
        apart = abs(others) > float(info.tiny) * 2.0 ** (info.nmant + 1)
        x = np.where((rng.random(by_row) < 0.1) & apart, others * (1 + small()), x)
        for end, sign in ((lo, 1), (hi, -1)):
            if math.isfinite(end) and end != 0:
                x = np.where(rng.random(shape) < 0.2, end + sign * abs(small()), x)
        with np.errstate(over="ignore"):
            x = _moved_inside(x.astype(dtype), lo, hi)
        arrays.append(x)
    return arrays


def _moved_inside(x: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """Numbers outside an interval become their reciprocals, or else a point well inside."""
    tiny = float(jnp.finfo(x.dtype).tiny)

    def outside(x):
        wide = x.astype(np.float64)
        return ~((wide > lo) & (wide < hi) & (abs(wide) >= tiny) & np.isfinite(wide))

    x = np.where(outside(x), 1 / np.where(x == 0, 1, x), x).astype(x.dtype)
    middle = 0.5 if lo < 0.5 < hi else lo + 0.5
    return np.where(outside(x), np.asarray(middle, x.dtype), x)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Arguments, and the true values and derivatives there as mpmath numbers."""

    arrays: list[np.ndarray]
    values: np.ndarray
    """[rows, outputs]."""
    derivatives: list[np.ndarray]
    """For each argument [rows, outputs times elements]."""
    magnitudes: np.ndarray
    """[rows, 2]: what the ulps of value and derivative refer to at least."""
    compared: np.ndarray
    """[rows]: where the value is representable."""

    def point(self, row: int) -> tuple:
        """The arguments of one row."""
        return tuple(a[row].tolist() for a in self.arrays)


def true_values(op: Op, dtype: Any, *, samples: int, seed: int) -> Truth:
    """Draw a sample and evaluate the reference and its derivatives there."""
    arrays = sample(op, dtype, samples, np.random.default_rng(seed))
    return truth_at(op, dtype, arrays)


def truth_at(op: Op, dtype: Any, arrays: list[np.ndarray]) -> Truth:
    """Evaluate the reference and its derivatives at given arguments inside the domain."""
    try:
        import mpmath
    except ImportError as error:
        raise ImportError("accuracy needs mpmath: pip install 'robustops[testing]'") from error
    values, magnitudes = [], []
    derivatives: list[list] = [[] for _ in arrays]
    # The difference of hypot(x, y +- step) keeps 15 digits where y / x is barely representable:
    # prec > 2 * 1022 + prec / 3 + 50 bits in float64; in float32, three times 126, as a distance
    # of a tiny element from an ordinary one needs beside a huge pair.
    with mpmath.workprec(3200 if jnp.finfo(dtype).bits == 64 else 720):
        for row in range(len(arrays[0])):
            exact: list = [[mpmath.mpf(float(v)) for v in np.atleast_1d(a[row])] for a in arrays]
            if not op.reduces:
                exact = [e[0] for e in exact]
            values.append(_listed(op.reference(mpmath, *exact)))
            magnitudes.append(op.conditioning(mpmath, *exact) if op.conditioning else (0, 0))
            for k, of_argument in enumerate(derivatives):
                of_argument.append(np.ravel(_derivatives(mpmath, op, exact, k)))
    of_value = np.asarray(values, dtype=object)
    return Truth(
        arrays,
        of_value,
        [np.asarray(d, dtype=object) for d in derivatives],
        np.asarray(magnitudes, dtype=object),
        # A saturated value goes on as a constant: its derivative is not the true one either. One
        # that rounds to the largest number counts as saturated.
        np.logical_and.reduce(_representable(of_value, dtype, saturated=False), axis=1),
    )


def evaluate(fn: Callable, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values and Jacobians of a function of one element or slice, at every row, by jax."""
    inputs = tuple(jnp.asarray(a) for a in arrays)
    values = jax.jit(jax.vmap(fn))(*inputs)
    jacobian = jax.jit(jax.vmap(jax.jacrev(fn, argnums=tuple(range(len(inputs))))))(*inputs)
    return np.asarray(values), [np.asarray(j) for j in jacobian]


def errors(
    truth: Truth, dtype: Any, values: np.ndarray, derivatives: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Largest error of value and derivatives in each row, in ulps of `dtype`; NaN: none compared.

    `derivatives` may be empty: not every library has them.
    """
    rows = len(truth.compared)
    of_value = _row_errors(truth, dtype, values.reshape(rows, -1), truth.values, 0)
    of_derivative = np.full(rows, math.nan)
    for got, want in zip(derivatives, truth.derivatives, strict=False):
        found = _row_errors(truth, dtype, got.reshape(rows, -1), want, 1)
        of_derivative = np.fmax(of_derivative, found)
    return of_value, of_derivative


def _row_errors(
    truth: Truth, dtype: Any, got: np.ndarray, want: np.ndarray, which: int
) -> np.ndarray:
    info = jnp.finfo(dtype)
    # 16-bit numbers are computed with as float32.
    flushed = 4 * float(jnp.finfo(jnp.float64 if info.bits == 64 else jnp.float32).tiny)
    compared = _representable(want, dtype) & truth.compared[:, None]
    found = np.full(got.shape, math.nan)
    for index in zip(*np.nonzero(compared), strict=True):
        magnitude = truth.magnitudes[index[0], which]
        near = abs(float(got[index]) - want[index]) < flushed
        found[index] = (
            0 if near else ulp_distance(got[index], want[index], dtype=dtype, magnitude=magnitude)
        )
    return np.fmax.reduce(found, axis=1)


def _representable(want: np.ndarray, dtype: Any, saturated: bool = True) -> np.ndarray:
    import mpmath

    info = jnp.finfo(dtype)
    low, high = float(info.tiny), mpmath.mpf(float(info.max))
    if not saturated:
        with mpmath.workprec(128):
            high -= 2.0 ** (int(info.maxexp) - 2 - int(info.nmant))  # half a unit in the last place
    return np.vectorize(lambda v: v == 0 or low <= abs(v) <= high, otypes=[bool])(want)


def _listed(out: Any) -> list:
    return out if isinstance(out, list) else [out]


def _derivatives(mpmath: Any, op: Op, exact: list, k: int) -> np.ndarray:
    """d out / d argument k by a central difference with a relative step of 2^-(precision / 3)."""
    step = mpmath.mpf(2) ** -(mpmath.mp.prec // 3)

    def moved(element, sign):
        args = list(exact)
        if op.reduces:
            args[k] = list(args[k])
            args[k][element] += sign * step * abs(args[k][element])
        else:
            args[k] += sign * step * abs(args[k])
        return _listed(op.reference(mpmath, *args))

    columns = []
    for element in range(len(exact[k]) if op.reduces else 1):
        centre = exact[k][element] if op.reduces else exact[k]
        up, down = moved(element, 1), moved(element, -1)
        columns.append([(u - d) / (2 * step * abs(centre)) for u, d in zip(up, down, strict=True)])
    return np.asarray(columns, dtype=object).T
