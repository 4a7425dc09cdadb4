"""Between which numbers an array lies, and how far two arrays can be apart: for `certify`.

A `Value` stands for every array that a variable of a program can be. Its bounds are float64 and
have, along each axis, either the axis' length or 1 (the same bounds all along). An infinite bound
means that the array may be infinite there.

Two arrays that come from one are not independent, and softmax lives on that: `x - max(x)` is never
positive, and 0 somewhere. So a Value also knows between what numbers its difference to others lies.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ULPS = 4
# Beyond this many elements an array has one pair of bounds.
_LARGEST = 2**18
# How many differences to other arrays a Value remembers: the nearest ones.
_RELATIONS = 8
inf = math.inf


class Format(NamedTuple):
    """What certify must know of a dtype."""

    kind: str
    """"float", "int", "bool", "key" for random keys, "other" for complex numbers."""
    most: float
    least: float
    tiny: float
    smallest: float
    eps: float


@functools.cache
def format_of(dtype: Any) -> Format:
    """Return the facts of a dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        f = jnp.finfo(dtype)
        tiny, smallest = float(f.tiny), float(f.smallest_subnormal)
        return Format("float", float(f.max), -float(f.max), tiny, smallest, float(f.eps))
    if dtype == jnp.bool_:
        return Format("bool", 1.0, 0.0, 0.0, 0.0, 0.0)
    if jnp.issubdtype(dtype, jnp.integer):
        i = jnp.iinfo(dtype)
        return Format("int", float(i.max), float(i.min), 0.0, 0.0, 0.0)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return Format("key", 0.0, 0.0, 0.0, 0.0, 0.0)
    return Format("other", inf, -inf, 0.0, 0.0, 0.0)


class Bounds(NamedTuple):
    """Lowest and highest number of each element, and whether it may be NaN."""

    lo: Any
    hi: Any
    nan: Any = False


Rule = Callable[..., Bounds]
"""`rule(eqn, *operands)`: bounds of the result, before rounding."""


Key = tuple["Value", tuple[int | None, ...]]
"""A Value, and the axis that each of its axes is here; None where the fact holds all along it."""


@dataclasses.dataclass(eq=False)
class Value:
    """What is known of an array.

    Attributes:
      lo: lowest number.
      hi: highest number.
      nan: whether it may be NaN.
      shape: the array's shape.
      dtype: its dtype.
      births: which operations made it non-finite, if it may be.
      noise: how much its elements may differ when XLA computes them in two places.
      relations: the bounds of the difference to other Values.
      peak: the Value whose maximum this is (or minimum, then False is with it): along the axes
        that are None it is reached.
      reaches: axes along which at least one element is no less than a number, and this number.
      made: the rule, equation and operands that it comes from, if it is elementwise.
      test: of a predicate, the comparisons that hold when it is true, and when it is false.
      absent: whether it only fills the place of what another branch saves, and is never read.
    """

    lo: np.ndarray
    hi: np.ndarray
    nan: np.ndarray
    shape: tuple[int, ...]
    dtype: Any
    births: frozenset = frozenset()
    noise: float = 0.0
    relations: dict[Key, tuple[float, float]] = dataclasses.field(default_factory=dict)
    peak: tuple[Key, bool] | None = None
    reaches: tuple[frozenset[int], float] | None = None
    made: tuple[Any, ...] | None = None
    test: tuple[tuple, tuple] = ((), ())
    absent: bool = False

    @functools.cached_property
    def finite(self) -> bool:
        """Whether it is proved finite."""
        return format_of(self.dtype).kind in ("int", "bool", "key") or bool(
            np.all(np.isfinite(self.lo) & np.isfinite(self.hi) & ~self.nan)
        )

    @functools.cached_property
    def low(self) -> float:
        """Lowest number of any element."""
        return float(self.lo.min(initial=inf))

    @functools.cached_property
    def high(self) -> float:
        """Highest number of any element."""
        return float(self.hi.max(initial=-inf))

    @functools.cached_property
    def may_be_nan(self) -> bool:
        """Whether any element may be NaN."""
        return bool(self.nan.any())

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.lo, self.hi, self.nan)

    @property
    def differences(self) -> dict[Key, tuple[float, float]]:
        """The relations, and that it is itself."""
        return {(self, tuple(range(len(self.shape)))): (0.0, 0.0), **self.relations}

    def with_bounds(self, lo: Any, hi: Any, nan: Any) -> "Value":
        """Return the same Value within narrower bounds."""
        new = value(Bounds(lo, hi, nan), self.shape, self.dtype)
        new.noise, new.relations = self.noise, nearest(self.differences)
        new.made = self.made
        new.births = frozenset() if new.finite else self.births
        return new


def value(bounds: Bounds, shape: Sequence[int], dtype: Any, **facts: Any) -> Value:
    """Make a Value of bounds that broadcast to `shape`, in a compact form."""
    shape = tuple(shape)
    lo, hi, nan = np.broadcast_arrays(*(np.asarray(a) for a in bounds))
    ones = (1,) * (len(shape) - lo.ndim) + lo.shape
    lo, hi, nan = (a.reshape(ones) for a in (lo, hi, nan))
    if lo.size > _LARGEST:
        lo, hi, nan = (np.full((1,) * len(shape), v) for v in (lo.min(), hi.max(), bool(nan.any())))
    return Value(
        lo.astype(np.float64), hi.astype(np.float64), nan.astype(bool), shape, dtype, **facts
    )


def constant(array: Any, dtype: Any) -> Value:
    """The Value of one array."""
    if format_of(dtype).kind in ("other", "key"):
        return anything(np.shape(array), dtype)
    if format_of(dtype).kind == "float":
        array = np.asarray(array).astype(dtype)  # a Python number may round to 1
    wide = np.asarray(array).astype(np.float64)
    if wide.size > 1 and (wide == wide.flat[0]).all():
        wide = wide.flat[0]
    return between(wide, wide, np.shape(array), dtype)


def between(low: Any, high: Any, shape: Sequence[int], dtype: Any) -> Value:
    """The Value of arrays of `dtype` between two arrays; NaN where these are."""
    f, nan = format_of(dtype), np.isnan(low) | np.isnan(high)
    bounds = Bounds(np.where(nan, -inf, low), np.where(nan, inf, high), nan)
    return value(_snapped(*bounds[:2], f, nan) if f.kind == "float" else bounds, shape, dtype)


def anything(shape: Sequence[int], dtype: Any, births: frozenset = frozenset()) -> Value:
    """What is known of an array of which nothing is known."""
    f = format_of(dtype)
    if f.kind in ("int", "bool", "key"):
        return value(Bounds(f.least, f.most), shape, dtype)
    return value(Bounds(-inf, inf, True), shape, dtype, births=births)


def absent(shape: Sequence[int], dtype: Any) -> Value:
    """What a branch returns in the place of what only another branch saves for the gradient."""
    return value(Bounds(0.0, 0.0), shape, dtype, absent=True)


def nearest(relations: dict[Key, tuple[float, float]]) -> dict[Key, tuple[float, float]]:
    """Return only the tightest relations."""
    if len(relations) <= _RELATIONS:
        return relations
    order = sorted(relations.items(), key=lambda item: item[1][1] - item[1][0])
    return dict(order[:_RELATIONS])


def rounded(
    b: Bounds, f: Format, ulps: float = ULPS, basic: bool = False, exact: Any = None
) -> Bounds:
    """Widen bounds outward by `ulps`, flush what is subnormal, and see what overflows.

    A `basic` operation rounds once, so that what fits the dtype stays finite. Given the dtype
    `exact`, a bound that is one of its numbers is not widened: rounding is monotone.
    """
    lo, hi, nan = (np.asarray(a) for a in b)
    # An undefined bound is none.
    lo, hi = np.where(np.isnan(lo), -inf, lo), np.where(np.isnan(hi), inf, hi)
    if f.kind == "float":
        lo_out, hi_out = lo - np.abs(lo) * (ulps * f.eps), hi + np.abs(hi) * (ulps * f.eps)
        if exact is not None:
            lo_out, hi_out = (
                np.where(v.astype(exact).astype(np.float64) == v, v, out)
                for v, out in ((lo, lo_out), (hi, hi_out))
            )
        if basic:
            lo_out = np.where(lo >= -f.most, np.maximum(lo_out, -f.most), lo_out)
            hi_out = np.where(hi <= f.most, np.minimum(hi_out, f.most), hi_out)
        return _snapped(
            np.where(np.isinf(lo), lo, lo_out), np.where(np.isinf(hi), hi, hi_out), f, nan
        )
    # Integers wrap around.
    fits = (lo >= f.least) & (hi <= f.most)
    wide = 2.0**53
    exact = (np.abs(lo) < wide) & (np.abs(hi) < wide)
    fits &= exact | (f.most < wide)
    return Bounds(np.where(fits, lo, f.least), np.where(fits, hi, f.most), False)


def _snapped(lo, hi, f: Format, nan) -> Bounds:
    """Bounds of numbers that may be flushed to 0 if subnormal, and that overflow to infinity."""
    small = (np.abs(lo) < f.tiny) & (lo != 0)
    lo = np.where(small, np.where(lo > 0, 0.0, -f.tiny), lo)
    small = (np.abs(hi) < f.tiny) & (hi != 0)
    hi = np.where(small, np.where(hi > 0, f.tiny, 0.0), hi)
    lo = np.where(lo < -f.most, -inf, np.where(lo > f.most, f.most, lo))
    hi = np.where(hi > f.most, inf, np.where(hi < -f.most, -f.most, hi))
    return Bounds(lo, hi, nan)


def join(a: Value, b: Value) -> Value:
    """Return what holds of both."""
    if a is b or b.absent:
        return a
    if a.absent:
        return b
    new = value(
        Bounds(np.minimum(a.lo, b.lo), np.maximum(a.hi, b.hi), a.nan | b.nan), a.shape, a.dtype
    )
    new.births, new.noise = a.births | b.births, max(a.noise, b.noise)
    other = b.differences
    new.relations = nearest(
        {
            key: (min(low, other[key][0]), max(high, other[key][1]))
            for key, (low, high) in a.differences.items()
            if key in other
        }
    )
    return new


def contains(a: Value, b: Value) -> bool:
    """Tell whether everything that `b` may be, `a` may be."""
    return bool(
        np.all(a.lo <= b.lo)
        and np.all(b.hi <= a.hi)
        and np.all(a.nan | ~b.nan)
        and b.births <= a.births
    )


def widened(old: Value, new: Value) -> Value:
    """Return a Value that contains both and leaves few steps to grow further."""
    both, f = join(old, new), format_of(old.dtype)
    steps = np.array([0, 1, 10, 100, 1e4, 1e8, 1e16, f.most, inf])
    steps = np.concatenate([-steps[::-1], steps])
    lo, hi = np.array(both.lo), np.array(both.hi)
    down, up = lo < old.lo, hi > old.hi
    lo = np.where(down, steps[np.searchsorted(steps, lo, "right") - 1], lo)
    hi = np.where(up, steps[np.minimum(np.searchsorted(steps, hi, "left"), len(steps) - 1)], hi)
    if f.kind != "float":
        lo, hi = np.maximum(lo, f.least), np.minimum(hi, f.most)
    return value(
        Bounds(lo, hi, both.nan), old.shape, old.dtype, births=both.births, noise=both.noise
    )


def related(a: Value, b: Value) -> tuple[float, float]:
    """Return bounds of `a - b` from what both are related to."""
    low, high = -inf, inf
    others = b.differences
    for (base, dims), (l, h) in a.differences.items():
        for (other, their), (l2, h2) in others.items():
            if base is other and _agree(dims, their):
                low, high = max(low, l - h2), min(high, h - l2)
    return low, high


def _agree(a: tuple[int | None, ...], b: tuple[int | None, ...]) -> bool:
    return all(p == q or p is None or q is None for p, q in zip(a, b, strict=True))


def moved(v: Value, axes: Sequence[int | None]) -> dict[str, Any]:
    """Return the facts of `v` for a copy in which its axis k is `axes[k]`; None if it is gone."""
    lost = {k for k, to in enumerate(axes) if to is None}

    def map_dims(base, dims):
        new = [None if d is None else axes[d] for d in dims]
        for d, to, size in zip(dims, new, base.shape, strict=True):
            if d is not None and to is None and size != 1:
                return None
        return tuple(new)

    relations = {}
    for (base, dims), bounds in v.differences.items():
        if (new := map_dims(base, dims)) is not None:
            relations[base, new] = bounds
    peak = None
    if v.peak is not None and (new := map_dims(*v.peak[0])) is not None:
        peak = (v.peak[0][0], new), v.peak[1]
    reaches = None
    if v.reaches is not None and not v.reaches[0] & lost:
        reaches = frozenset(int(axes[k]) for k in v.reaches[0]), v.reaches[1]  # pyright: ignore[reportArgumentType]
    return {"relations": nearest(relations), "peak": peak, "reaches": reaches, "noise": v.noise}


def has_zero(b: Any) -> Any:
    """Where the bounds contain 0."""
    return (b.lo <= 0) & (b.hi >= 0)


def has_inf(b: Any) -> Any:
    """Where the bounds contain an infinity."""
    return np.isinf(b.lo) | np.isinf(b.hi)


def any_nan(*operands: Any) -> Any:
    """Where any of the operands may be NaN."""
    found: Any = np.False_
    for v in operands:
        found = found | v.nan
    return found


def magnitude(b: Any) -> tuple[Any, Any]:
    """Bounds of |x|."""
    size = np.abs(b.lo), np.abs(b.hi)
    return np.where(has_zero(b), 0.0, np.minimum(*size)), np.maximum(*size)
