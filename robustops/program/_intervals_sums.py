"""Bounds of reductions, running and windowed sums, and contractions.

Each rule returns the results of its equation as `Bounds`, before rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._intervals import Bounds, Value, format_of, inf, value
from ._intervals_arrays import FULL, each, full, hull, shaped
from ._intervals_elementwise import mul

# Relative to the sum of magnitudes: accelerators multiply float32 matrices in fewer bits.
CONTRACTION = 2.0**-7


def scatter_add(eqn, x, indices, updates):
    """Elements added to at indices: as often as there are indices, unless these are unique."""
    numbers = eqn.params["dimension_numbers"]
    window = set(numbers.update_window_dims)
    count = math.prod(n for k, n in enumerate(updates.shape) if k not in window)
    if eqn.params["unique_indices"]:
        count = 1
    u, o = hull(updates), hull(x)
    low = shaped(eqn, o).lo + count * np.minimum(u.lo.min(initial=0), 0)
    high = shaped(eqn, o).hi + count * np.maximum(u.hi.max(initial=0), 0)
    return [_summed(low, high, bool(u.nan.any() | o.nan.any()), count + 1, format_of(x.dtype))]


def extremum(f: Callable) -> Callable:
    """The rule of a reduction that picks one of the elements."""

    def rule(eqn, x):
        axes = tuple(eqn.params["axes"])
        return [Bounds(f(x.lo, axes), f(x.hi, axes), np.any(x.nan, axes))]

    return rule


def _summed(low, high, nan, count, f, positive=None, negative=None) -> Bounds:
    """Bounds of a floating sum of `count` terms in any order, from the exact ones.

    `positive` and `negative` bound the sums of the terms of one sign: partial sums may reach those.
    """
    if f.kind != "float":
        return Bounds(low, high, False)
    slack = math.expm1(min(count * f.eps, 80.0))
    positive = np.maximum(high, 0) if positive is None else positive
    negative = np.minimum(low, 0) if negative is None else negative
    low_out, high_out = _outward(low, high, positive, negative, slack, f)
    above, below = positive * (1 + slack) > f.most, negative * (1 + slack) < f.least
    high_out = np.where(above, inf, high_out)
    low_out = np.where(below, -inf, low_out)
    return Bounds(low_out, high_out, nan | (above & below))


def _outward(low, high, positive, negative, slack, f):
    """Widen the bounds of a sum by a part of the sum of magnitudes, as far as this is finite."""
    error = slack * (np.minimum(positive, f.most) - np.maximum(negative, f.least))
    # Terms of one sign cannot cancel.
    low_out = np.where(negative == 0, low * max(1 - slack, 0), low - error)
    high_out = np.where(positive == 0, high * max(1 - slack, 0), high + error)
    return low_out, high_out


def _along(v: Bounds, axes: Sequence[int], shape: Sequence[int], f: Callable) -> Any:
    """Sum `f` of the bounds along axes that may be stored as one."""
    axes = tuple(axes)
    count = math.prod(shape[k] for k in axes if v[0].shape[k] == 1)
    return f(v).sum(axes) * count


def reduce_sum(eqn, x):
    """A sum along axes, in any order."""
    axes, shape = eqn.params["axes"], x.shape
    b = x.bounds
    low, high = (_along(b, axes, shape, lambda v, i=i: v[i]) for i in (0, 1))
    positive = _along(b, axes, shape, lambda v: np.maximum(v.hi, 0))
    negative = _along(b, axes, shape, lambda v: np.minimum(v.lo, 0))
    nan = np.any(x.nan, tuple(axes))
    count = math.prod(shape[k] for k in axes)
    out = _summed(low, high, nan, count, format_of(x.dtype), positive, negative)
    # A sum of numbers of one sign is no less than any of them.
    if count:
        most = np.max(x.lo, tuple(axes))
        out = Bounds(np.where(negative == 0, np.maximum(out.lo, most), out.lo), out.hi, out.nan)
    return [out]


def reduce_prod(eqn, x):
    """A product along axes: of the largest magnitude to the power of their number."""
    axes = tuple(eqn.params["axes"])
    count = math.prod(x.shape[k] for k in axes)
    most = np.max(np.maximum(np.abs(x.lo), np.abs(x.hi)), axes, initial=0)
    high = np.maximum(most, 1.0) ** count if count else np.ones_like(most)
    nan = np.any(x.nan, axes) | np.isinf(high)
    return [Bounds(np.where(np.all(x.lo >= 0, axes), 0.0, -high), high, nan)]


def cumulative_sum(eqn, x):
    """Running sums, in either direction."""
    axis, n = eqn.params["axis"], x.shape[eqn.params["axis"]]
    if math.prod(x.lo.shape) * (n if x.lo.shape[axis] == 1 else 1) > FULL * 4:
        low = np.minimum(x.lo, 0).min(axis, keepdims=True) * n
        high = np.maximum(x.hi, 0).max(axis, keepdims=True) * n
        return [_summed(low, high, np.any(x.nan), n, format_of(x.dtype))]
    b = full(x, [axis])
    turn = (lambda a: np.flip(a, axis)) if eqn.params["reverse"] else (lambda a: a)
    run = lambda a: turn(np.cumsum(turn(a), axis))
    nan = turn(np.logical_or.accumulate(turn(b.nan), axis))
    positive, negative = run(np.maximum(b.hi, 0)), run(np.minimum(b.lo, 0))
    return [_summed(run(b.lo), run(b.hi), nan, n, format_of(x.dtype), positive, negative)]


def cumulative_product(eqn, x):
    """Running products."""
    n = x.shape[eqn.params["axis"]]
    high = max(abs(x.low), abs(x.high), 1.0) ** n if n < 10**6 else inf
    return [shaped(eqn, Bounds(0.0 if x.low >= 0 else -high, high, x.may_be_nan or high == inf))]


def cumulative_extremum(eqn, x):
    """A running maximum or minimum."""
    return [hull(x, [eqn.params["axis"]])]


def cumulative_logsumexp(eqn, x):
    """A running log of a sum of exponentials."""
    b = hull(x, [eqn.params["axis"]])
    return [
        Bounds(b.lo, b.hi + math.log(max(x.shape[eqn.params["axis"]], 1)), b.nan | np.isinf(b.hi))
    ]


def window_sum(eqn, x):
    """Sums over windows."""
    count = math.prod(eqn.params["window_dimensions"])
    b = shaped(eqn, hull(x))
    low, high = count * np.minimum(b.lo, 0), count * np.maximum(b.hi, 0)
    return [_summed(low, high, b.nan, count, format_of(x.dtype))]


def window_extremum(fill: float) -> Callable:
    """Maxima or minima over windows; `fill` where a window is padding only."""

    def rule(eqn, x):
        b = shaped(eqn, hull(x))
        p = eqn.params
        # A window that lies in the padding alone has no element.
        empty = any(
            low >= w or high >= w
            for (low, high), w in zip(p["padding"], p["window_dimensions"], strict=True)
        )
        if not empty:
            return [b]
        return [Bounds(np.minimum(b.lo, fill), np.maximum(b.hi, fill), b.nan)]

    return rule


def select_and_scatter_add(eqn, source, operand):
    """The transpose of a maximum over windows: each source goes to one place of its window."""
    p = eqn.params
    overlap = math.prod(
        -(-w // s) for w, s in zip(p["window_dimensions"], p["window_strides"], strict=True)
    )
    b = shaped(eqn, hull(source))
    low, high = overlap * np.minimum(b.lo, 0), overlap * np.maximum(b.hi, 0)
    return [_summed(low, high, b.nan, overlap, format_of(source.dtype))]


def _contracted(low, high, nan, positive, negative, count, dtype) -> Bounds:
    f = format_of(dtype)
    out = _summed(low, high, nan, count, f, positive, negative)
    if f.kind != "float" or f.eps < 1e-10:
        return out
    low, high = _outward(out.lo, out.hi, positive, negative, CONTRACTION, f)
    # Fewer bits do not overflow sooner.
    low = np.where(out.lo >= f.least, np.maximum(low, f.least), low)
    high = np.where(out.hi <= f.most, np.minimum(high, f.most), high)
    return Bounds(low, high, out.nan)


def dot_general(eqn, a, b):
    """Sums of products. Exact if either operand is known, else by the bounds along the sum."""
    ((ca, cb), (ba, bb)) = eqn.params["dimension_numbers"]
    count = math.prod(a.shape[k] for k in ca)
    dtype = eqn.outvars[0].aval.dtype
    free_a = [k for k in range(len(a.shape)) if k not in ca and k not in ba]
    free_b = [k for k in range(len(b.shape)) if k not in cb and k not in bb]
    if "linear" in eqn.params:  # absorbing: a partial that is not finite counts as 0
        p = (b, a)[eqn.params["linear"]]
        if not p.finite:
            most = format_of(p.dtype).most
            low, high = np.clip(p.lo, -most, 0), np.clip(p.hi, 0, most)
            p = value(Bounds(low, high), p.shape, p.dtype)
            a, b = (a, p) if eqn.params["linear"] == 0 else (p, b)
    if _known(a) or _known(b):
        if a.finite and b.finite:
            return [_matmul(eqn, a, b, count, dtype)]
    # One pair of bounds along the sum: out axes are (batch, free of a, free of b).
    x, y = hull(a, ca), hull(b, cb)
    order_a, order_b = [*ba, *free_a, *ca], [*bb, *free_b, *cb]
    n, m = len(free_a), len(free_b)

    def lay_a(v):
        v = v.transpose(order_a)
        return v.reshape(v.shape[: len(ba) + n] + (1,) * m)

    def lay_b(v):
        v = v.transpose(order_b)
        return v.reshape(v.shape[: len(bb)] + (1,) * n + v.shape[len(bb) : len(bb) + m])

    x, y = each(x, lay_a), each(y, lay_b)
    product = mul(eqn, x, y)
    low, high = product.lo * count, product.hi * count
    positive, negative = np.maximum(high, 0), np.minimum(low, 0)
    nan = product.nan
    return [_contracted(low, high, nan, positive, negative, count, dtype)]


def _known(v: Value) -> bool:
    return v.lo.size > 1 and bool(np.all(v.lo == v.hi))


def _matmul(eqn, a, b, count, dtype) -> Bounds:
    """A product with one known matrix: its positive and negative parts, each with its bound."""
    ((ca, cb), (ba, bb)) = eqn.params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    name_a = {k: next(letters) for k in range(len(a.shape))}
    name_b = {}
    for k, l in (*zip(ca, cb, strict=True), *zip(ba, bb, strict=True)):
        name_b[l] = name_a[k]
    for k in range(len(b.shape)):
        name_b.setdefault(k, next(letters))
    free_a = [k for k in range(len(a.shape)) if k not in ca and k not in ba]
    free_b = [k for k in range(len(b.shape)) if k not in cb and k not in bb]
    out = [name_a[k] for k in (*ba, *free_a)] + [name_b[k] for k in free_b]
    given = [name_a[k] for k in range(len(a.shape))], [name_b[k] for k in range(len(b.shape))]
    spec = f"{''.join(given[0])},{''.join(given[1])}->{''.join(out)}"
    # Shared axes of both have to be there in full; free ones may be stored as one.
    x, y = full(a, (*ca, *ba)), full(b, (*cb, *bb))
    product = lambda u, v: np.einsum(spec, u, v, optimize=True)
    plus, minus = lambda v: np.maximum(v, 0), lambda v: np.minimum(v, 0)
    if _known(a):
        x, y = y, x
        product = lambda u, v: np.einsum(spec, v, u, optimize=True)
    w = y.lo
    low = product(x.lo, plus(w)) + product(x.hi, minus(w))
    high = product(x.hi, plus(w)) + product(x.lo, minus(w))
    positive = product(plus(x.hi), plus(w)) + product(minus(x.lo), minus(w))
    negative = product(minus(x.lo), plus(w)) + product(plus(x.hi), minus(w))
    return _contracted(low, high, np.False_, positive, negative, count, dtype)


def conv_general_dilated(eqn, x, kernel):
    """Sums of products, and of zeros where the window leaves the array."""
    spec = eqn.params["dimension_numbers"].rhs_spec
    count = math.prod(kernel.shape) // max(kernel.shape[spec[0]], 1)
    product = mul(eqn, hull(x), hull(kernel))
    product = shaped(eqn, product)
    low, high = np.minimum(product.lo * count, 0), np.maximum(product.hi * count, 0)
    dtype = eqn.outvars[0].aval.dtype
    return [_contracted(low, high, product.nan, high, low, count, dtype)]


def arg_extremum(eqn, x):
    """An index along an axis."""
    n = math.prod(x.shape[k] for k in eqn.params["axes"])
    return [shaped(eqn, Bounds(0.0, float(max(n - 1, 0))))]


def logical(f: Callable) -> Callable:
    """The rule of a reduction of predicates."""

    def rule(eqn, x):
        axes = tuple(eqn.params["axes"])
        return [Bounds(f(x.lo, axes), f(x.hi, axes))]

    return rule


ROUNDING = frozenset("cumlogsumexp cumprod reduce_prod".split())


RULES: dict[str, Callable] = {
    "argmax": arg_extremum,
    "argmin": arg_extremum,
    "conv_general_dilated": conv_general_dilated,
    "cumlogsumexp": cumulative_logsumexp,
    "cummax": cumulative_extremum,
    "cummin": cumulative_extremum,
    "cumprod": cumulative_product,
    "cumsum": cumulative_sum,
    "absorbing_dot_general": dot_general,
    "dot_general": dot_general,
    "reduce_and": logical(lambda v, axes: v.min(axes, initial=1)),
    "reduce_max": extremum(lambda v, axes: v.max(axes, initial=-inf)),
    "reduce_min": extremum(lambda v, axes: v.min(axes, initial=inf)),
    "reduce_or": logical(lambda v, axes: v.max(axes, initial=0)),
    "reduce_prod": reduce_prod,
    "reduce_sum": reduce_sum,
    "reduce_window_max": window_extremum(-inf),
    "reduce_window_min": window_extremum(inf),
    "reduce_window_sum": window_sum,
    "scatter-add": scatter_add,
    "select_and_scatter_add": select_and_scatter_add,
}
