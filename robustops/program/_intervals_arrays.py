"""Bounds of the results of primitives that move, join and pick elements of arrays.

Each rule returns the results of its equation as `Bounds`; those of `MOVES` one `Bounds`, and the
new place of each axis of the operand, if it has one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._intervals import Bounds, Value, format_of, inf

FULL = 2**16


def each(v: Any, f: Callable) -> Bounds:
    """Apply `f` to lowest, highest and NaN."""
    return Bounds(f(v.lo), f(v.hi), f(v.nan))


def hull(v: Value, axes: Sequence[int] | None = None) -> Bounds:
    """The same bounds all along `axes`, by default all."""
    along = tuple(range(len(v.shape))) if axes is None else tuple(axes)
    low, high = (
        np.min(v.lo, along, keepdims=True, initial=inf),
        np.max(v.hi, along, keepdims=True, initial=-inf),
    )
    return Bounds(low, high, np.any(v.nan, along, keepdims=True))


def full(v: Value, axes: Sequence[int] | None = None) -> Bounds:
    """The bounds of each element along `axes`, by default all."""
    along = range(len(v.shape)) if axes is None else axes
    shape = [
        n if k in along else have
        for k, (n, have) in enumerate(zip(v.shape, v.lo.shape, strict=True))
    ]
    return each(v, lambda a: np.broadcast_to(a, shape))


def broadcast_in_dim(eqn, x, *_):
    """Size-1 axes of the operand stay a single bound."""
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    inner = [1] * len(shape)
    for k, d in enumerate(dims):
        inner[d] = x.lo.shape[k]
    axes = [d if n == shape[d] else None for d, n in zip(dims, x.shape, strict=True)]
    return each(x, lambda a: a.reshape(inner)), axes


def transpose(eqn, x):
    """Axes change places."""
    order = eqn.params["permutation"]
    return each(x, lambda a: a.transpose(order)), [order.index(k) for k in range(len(order))]


def _kept(old: Sequence[int], new: Sequence[int]) -> list[int | None] | None:
    """Where the axes went if only axes of length 1 came and went."""
    places, k = [], 0
    wide = [(i, n) for i, n in enumerate(new) if n != 1]
    for n in old:
        if n == 1:
            places.append(None)
        elif k < len(wide) and wide[k][1] == n:
            places.append(wide[k][0])
            k += 1
        else:
            return None
    return places if k == len(wide) else None


def reshape(eqn, x, *_):
    """Any reshape; bounds along axes survive if the axes do, or if the array is small."""
    new = eqn.outvars[0].aval.shape
    places = _kept(x.shape, new)
    if places is not None:
        inner = [1] * len(new)
        for k, to in enumerate(places):
            if to is not None:
                inner[to] = x.lo.shape[k]
        return each(x, lambda a: a.reshape(inner)), places
    if x.lo.size == 1:
        return each(x, lambda a: a.reshape((1,) * len(new))), None
    if math.prod(x.shape) <= FULL:
        return each(full(x), lambda a: a.reshape(new)), None
    return each(hull(x), lambda a: a.reshape((1,) * len(new))), None


def broadcast_to(eqn, x, *_):
    """Broadcast as numpy does."""
    shape = eqn.outvars[0].aval.shape
    new = len(shape) - len(x.shape)
    axes = [k + new if n == shape[k + new] else None for k, n in enumerate(x.shape)]
    return each(x, lambda a: a.reshape((1,) * new + a.shape)), axes


def rev(eqn, x):
    """Reversed along some axes."""
    return each(x, lambda a: np.flip(a, eqn.params["dimensions"])), None


def slice_(eqn, x):
    """A slice with known ends."""
    p = eqn.params
    strides = p["strides"] or (1,) * len(x.shape)
    at = tuple(
        slice(None) if n == 1 else slice(a, b, s)
        for n, a, b, s in zip(
            x.lo.shape, p["start_indices"], p["limit_indices"], strides, strict=True
        )
    )
    return each(x, lambda a: a[at]), None


def _union(values: Sequence[Any]) -> Bounds:
    return Bounds(
        functools.reduce(np.minimum, [v.lo for v in values]),
        functools.reduce(np.maximum, [v.hi for v in values]),
        functools.reduce(np.logical_or, [v.nan for v in values]),
    )


def concatenate(eqn, *xs):
    """Side by side along one axis."""
    axis = eqn.params["dimension"]
    rest = [max(x.lo.shape[k] for x in xs) for k in range(len(xs[0].shape))]
    parts = [
        each(x, lambda a, x=x: np.broadcast_to(a, [*rest[:axis], x.shape[axis], *rest[axis + 1 :]]))
        for x in xs
    ]
    if sum(p.lo.size for p in parts) > FULL:
        return [_union([hull(x) for x in xs])]
    return [Bounds(*(np.concatenate([p[i] for p in parts], axis) for i in range(3)))]


def split(eqn, x):
    """Parts along one axis."""
    axis = eqn.params["axis"]
    if x.lo.shape[axis] == 1:
        return [x.bounds for _ in eqn.outvars]
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    pieces = [np.split(a, ends, axis) for a in x.bounds]
    return [Bounds(*p) for p in zip(*pieces, strict=True)]


def stack(eqn, *xs):
    """Rows along a new axis."""
    axis = eqn.params["axis"]
    inner = np.broadcast_shapes(*(x.lo.shape for x in xs))
    if len(xs) * math.prod(inner) > FULL:
        return [each(_union([hull(x) for x in xs]), lambda a: np.expand_dims(a, axis))]
    parts = [each(x, lambda a: np.broadcast_to(a, inner)) for x in xs]
    return [Bounds(*(np.stack([p[i] for p in parts], axis) for i in range(3)))]


def tile(eqn, x):
    """Copies along each axis."""
    return [hull(x)]


def unstack(eqn, x):
    """The rows along one axis."""
    axis = eqn.params["axis"]
    take = lambda a, i: np.take(a, 0 if a.shape[axis] == 1 else i, axis)
    return [each(x, lambda a, i=i: take(a, i)) for i in range(len(eqn.outvars))]


def pad(eqn, x, fill):
    """Padded; the same bounds along padded axes."""
    config = eqn.params["padding_config"]
    padded = [k for k, c in enumerate(config) if any(c)]
    ones = (1,) * len(x.shape)
    only_cut = all(low <= 0 and high <= 0 and not within for low, high, within in config)
    inner = hull(x, padded)
    return [inner if only_cut else _union([inner, each(fill, lambda a: a.reshape(ones))])]


def dynamic_slice(eqn, x, *starts):
    """A slice with ends that are not known."""
    cut = [k for k, n in enumerate(eqn.params["slice_sizes"]) if n != x.shape[k]]
    return [hull(x, cut)]


def dynamic_update_slice(eqn, x, update, *starts):
    """A part replaced, somewhere."""
    cut = [k for k, n in enumerate(update.shape) if n != x.shape[k]]
    return [_union([x.bounds, hull(update, cut)])]


def gather(eqn, x, indices):
    """Elements at indices; NaN where an index may be out of bounds and is to be filled."""
    p = eqn.params
    out = each(hull(x), lambda a: a.reshape((1,) * len(eqn.outvars[0].aval.shape)))
    mode = str(p["mode"])
    numbers = p["dimension_numbers"]
    limits = [x.shape[d] - p["slice_sizes"][d] for d in numbers.start_index_map]
    inside = indices.low >= 0 and all(
        float(np.max(indices.hi[..., min(k, indices.hi.shape[-1] - 1)], initial=0)) <= limit
        for k, limit in enumerate(limits)
    )
    if inside or "CLIP" in mode or "PROMISE" in mode:
        return [out]
    fill, f = p["fill_value"], format_of(x.dtype)
    if fill is None and f.kind == "float":
        return [Bounds(out.lo, out.hi, np.True_)]
    fills = [f.least, f.most] if fill is None else [float(fill)]
    return [Bounds(np.minimum(out.lo, min(fills)), np.maximum(out.hi, max(fills)), out.nan)]


def shaped(eqn, b: Bounds) -> Bounds:
    """One pair of bounds, of the rank of the result."""
    return each(b, lambda a: np.asarray(a).reshape((1,) * len(eqn.outvars[0].aval.shape)))


def scatter(eqn, x, indices, updates):
    """Elements replaced (or the smaller or larger taken) at indices."""
    return [shaped(eqn, _union([shaped(eqn, hull(x)), shaped(eqn, hull(updates))]))]


def iota(eqn):
    """0, 1, 2, ... along one axis."""
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    inner = [n if k == axis else 1 for k, n in enumerate(shape)]
    line = np.arange(shape[axis], dtype=np.float64).reshape(inner)
    return [Bounds(line, line)]


def sort(eqn, *xs):
    """Sorted together along one axis."""
    return [hull(x, [eqn.params["dimension"]]) for x in xs]


def top_k(eqn, x):
    """The largest along the last axis, and where they are."""
    b = hull(x, [len(x.shape) - 1])
    return [
        b,
        each(b, np.zeros_like)._replace(hi=np.full_like(b.hi, max(x.shape[-1] - 1, 0)), nan=False),
    ]


def bitcast(eqn, x):
    """Bits as a float: increasing for those of positive numbers."""
    new = (
        np.dtype(eqn.params["new_dtype"])
        if format_of(eqn.params["new_dtype"]).kind != "other"
        else None
    )
    if (
        format_of(x.dtype).kind == "int"
        and new == np.float32
        and 0 <= x.low
        and x.high < 0x7F800000
    ):
        read = lambda v: np.asarray(v).astype(np.uint32).view(np.float32).astype(np.float64)
        return [Bounds(read(x.lo), read(x.hi))]
    return None


MOVES: dict[str, Callable] = {
    "broadcast_in_dim": broadcast_in_dim,
    "broadcast_to": broadcast_to,
    "reshape": reshape,
    "rev": rev,
    "slice": slice_,
    "squeeze": reshape,
    "transpose": transpose,
}


RULES: dict[str, Callable] = {
    "bitcast_convert_type": bitcast,
    "concatenate": concatenate,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "iota": iota,
    "pad": pad,
    "scatter": scatter,
    "scatter-max": scatter,
    "scatter-min": scatter,
    "sort": sort,
    "split": split,
    "stack": stack,
    "tile": tile,
    "top_k": top_k,
    "unstack": unstack,
}
