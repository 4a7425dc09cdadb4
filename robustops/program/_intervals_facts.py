"""What an equation tells beyond bounds: differences between arrays, reached maxima, comparisons."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from .._jax import NEGATED
from ._derivatives import original_name
from ._intervals import (
    ULPS,
    Bounds,
    Value,
    format_of,
    inf,
    moved,
    nearest,
    rounded,
    value,
)
from ._intervals_elementwise import (
    BASIC,
    EXACT,
    IDENTITIES,
    LOOSE,
    MONOTONE,
    RANGES,
    RULES,
    div,
    mul,
)

_WHOLE = frozenset("ceil floor iota round sign".split())
_PICKS = frozenset("abs clamp cummax cummin max min neg reduce_max reduce_min sort".split())
# How far a comparison is pushed back through the elementwise operations before its use.
_DEPTH = 8


def elementwise(eqn: Any, ins: Sequence[Value]) -> Value:
    """Apply the rule of an elementwise primitive."""
    aval, name = eqn.outvars[0].aval, name_of(eqn)
    if name in ("max", "min") and not any(v.may_be_nan for v in ins):
        for a, b in (ins, ins[::-1]):
            below = a.high <= b.low if name == "max" else a.low >= b.high
            if below and b.shape == aval.shape:
                return renamed(b)
    out = value(_bounds(eqn, ins), aval.shape, aval.dtype)
    out.made = eqn, tuple(ins)
    out.noise = noise(name, ins, out)
    _relate(eqn, ins, out)
    return out


def name_of(eqn: Any) -> str:
    """Return the name of the primitive; for a shadow of `robustify`, that of its original."""
    return original_name(eqn.primitive.name)


def _bounds(eqn, ins) -> Bounds:
    name, dtype = name_of(eqn), eqn.outvars[0].aval.dtype
    f = format_of(dtype)
    out = RULES[name](eqn, *ins)
    if name == "convert_element_type" and _is_wider(ins[0].dtype, dtype):
        return out
    if f.kind != "float" or name not in EXACT:
        ulps = LOOSE.get(name, ULPS)
        if name == "integer_pow":
            ulps += abs(eqn.params["y"])
        out = rounded(out, f, ulps, name in BASIC, dtype if name in MONOTONE else None)
        if name in ("div", "mul") and f.kind == "float":
            for other in _regrouped(name, ins, f):
                other = rounded(other, f, 2 * ULPS)
                low, high = np.minimum(out.lo, other.lo), np.maximum(out.hi, other.hi)
                out = Bounds(low, high, out.nan | other.nan)
    if name in RANGES:
        low, high = RANGES[name]
        out = Bounds(np.clip(out.lo, low, high), np.clip(out.hi, low, high), out.nan)
    return out


def _regrouped(name, ins, f):
    """What XLA may make of quotients of quotients, and of products with two constants.

    `a / b / c` becomes `a / (b * c)`, whose divisor may underflow where neither `b` nor `c` is 0.
    """
    a, b = ins
    factors = lambda v, of: v.made[1] if v.made is not None and name_of(v.made[0]) == of else None
    if name == "div":
        if inner := factors(a, "div"):
            yield div(None, inner[0], _value_like(rounded(mul(None, inner[1], b), f), a))
        if inner := factors(b, "div"):
            yield div(None, _value_like(rounded(mul(None, a, inner[1]), f), a), inner[0])
        return
    for whole, outer in (ins, ins[::-1]):
        if outer.low == outer.high and (inner := factors(whole, "mul")):
            for rest, fixed in (inner, inner[::-1]):
                if fixed.low == fixed.high:
                    yield mul(None, rest, rounded(mul(None, fixed, outer), f))


def _value_like(b: Bounds, v: Value) -> Value:
    return value(b, v.shape, v.dtype)


def _is_wider(old, new) -> bool:
    old, new = format_of(old), format_of(new)
    return old.kind == new.kind == "float" and new.eps <= old.eps and new.most >= old.most


def noise(name: str, ins: Sequence[Value], out: Value) -> float:
    """How much the result may differ when it is computed in two places."""
    if format_of(out.dtype).kind != "float":
        return 0.0
    if name in IDENTITIES or name in _PICKS:
        return max(v.noise for v in ins)
    if name == "convert_element_type" and _is_wider(ins[0].dtype, out.dtype):
        return ins[0].noise
    if name in _WHOLE or (
        name == "convert_element_type" and format_of(ins[0].dtype).kind != "float"
    ):
        return 0.0
    if not out.finite:
        return inf
    return ULPS * format_of(out.dtype).eps * max(abs(out.low), abs(out.high))


def _relate(eqn, ins, out: Value) -> None:
    name = name_of(eqn)
    f = format_of(out.dtype)
    if f.kind == "bool":
        out.test = _test(name, ins)
        if name == "eq" and (axes := _peak_axes(*ins) or _peak_axes(*ins[::-1])):
            out.reaches = axes, 1.0
        return
    x = ins[0]
    if name == "convert_element_type":
        out.test = x.test  # the index of a `cond` is its predicate
    if name == "convert_element_type" and x.finite and out.finite:
        out.reaches = x.reaches
        if format_of(x.dtype).kind == f.kind == "float":
            error = 0.0 if _is_wider(x.dtype, out.dtype) else f.eps * max(abs(x.low), abs(x.high))
            out.relations = {k: (l - error, h + error) for k, (l, h) in x.differences.items()}
        return
    if f.kind != "float" or not out.finite or not all(v.finite for v in ins):
        return
    if name in ("add", "add_any", "sub"):
        error = ULPS * f.eps * max(abs(out.low), abs(out.high))
        a, b = ins
        low, high = (-b.high, -b.low) if name == "sub" else (b.low, b.high)
        found = {k: (l + low - error, h + high + error) for k, (l, h) in a.differences.items()}
        if name != "sub":
            for k, (l, h) in b.differences.items():
                found.setdefault(k, (l + a.low - error, h + a.high + error))
        elif b.peak and b.peak[1] and (axes := _peak_axes(a, b)):
            out.reaches = axes, -(a.noise + b.noise)
        out.relations = nearest(found)
    elif name in ("max", "min"):
        out.relations = nearest(_extremum(name == "max", *ins))
        if name == "max":
            out.reaches = ins[0].reaches or ins[1].reaches
    elif name == "exp" and x.reaches:
        least = np.exp(x.reaches[1]) * (1 - ULPS * f.eps)
        out.reaches = (x.reaches[0], float(least)) if least >= f.tiny else None


def _extremum(largest: bool, a: Value, b: Value):
    pick = max if largest else min
    one, two = a.differences, b.differences
    found = {}
    for key in one.keys() | two.keys():
        base = key[0]
        if base.finite:
            l, h = one.get(key, (a.low - base.high, a.high - base.low))
            l2, h2 = two.get(key, (b.low - base.high, b.high - base.low))
            found[key] = pick(l, l2), pick(h, h2)
    return found


def _peak_axes(a: Value, b: Value) -> frozenset[int] | None:
    """The axes along which `a` somewhere equals `b`, its own maximum or minimum."""
    if b.peak is None:
        return None
    base, dims = b.peak[0]
    for (other, their), bounds in a.differences.items():
        if other is base and bounds == (0.0, 0.0):
            shared = all(p is None or p == q for p, q in zip(dims, their, strict=True))
            axes = [q for p, q in zip(dims, their, strict=True) if p is None and q is not None]
            if shared and len(axes) == sum(p is None for p in dims):
                return frozenset(axes)
    return None


def reduced(eqn: Any, x: Value, out: Value) -> Value:
    """Add to the result of a reduction what is known of a sum or maximum."""
    name, axes = name_of(eqn), set(eqn.params["axes"])
    if name in ("reduce_sum", "reduce_max") and x.reaches and x.reaches[0] <= axes:
        if name == "reduce_max" or x.low >= 0:
            low = np.maximum(out.lo, x.reaches[1])
            out = value(Bounds(low, np.maximum(out.hi, low), out.nan), out.shape, out.dtype)
    if name in ("reduce_max", "reduce_min") and x.finite and out.finite:
        kept = [k for k in range(len(x.shape)) if k not in axes]
        new = lambda dims: tuple(kept.index(d) if d in kept else None for d in dims)
        for (base, dims), (l, h) in x.differences.items():
            if base.finite:
                spread = out.low - base.high, out.high - base.low
                bounds = (l, spread[1]) if name == "reduce_max" else (spread[0], h)
                out.relations[base, new(dims)] = bounds
        out.relations = nearest(out.relations)
        out.peak = (x, new(range(len(x.shape)))), name == "reduce_max"
    out.test = _test(name, [x])
    out.noise = noise(name, [x], out)
    return out


def renamed(x: Value) -> Value:
    """Return the same array as the result of another equation."""
    out = value(x.bounds, x.shape, x.dtype, births=x.births, test=x.test, made=x.made)
    facts = moved(x, range(len(x.shape)))
    for name, fact in facts.items():
        setattr(out, name, fact)
    return out


def _test(name: str, ins: Sequence[Value]) -> tuple[tuple, tuple]:
    if name in NEGATED:
        a, b = ins
        if format_of(a.dtype).kind not in ("float", "int"):
            return (), ()
        known = not (a.may_be_nan or b.may_be_nan)
        return ((name, a, b),), ((NEGATED[name], a, b),) if known else ()
    if name == "is_finite":
        return (("finite", ins[0], ins[0]),), ()
    if name in ("and", "reduce_and"):
        return tuple(fact for x in ins for fact in x.test[0]), ()
    if name in ("or", "reduce_or"):
        return (), tuple(fact for x in ins for fact in x.test[1])
    if name == "not":
        return ins[0].test[1], ins[0].test[0]
    if name in IDENTITIES or name == "convert_element_type":
        return ins[0].test
    return (), ()


def refine(
    values: Sequence[Value], comparisons: Sequence[tuple[str, Value, Value]]
) -> Sequence[Value]:
    """Return the values where the comparisons hold, element by element."""
    known: dict[Value, Value] = {}
    for name, a, b in comparisons:
        for old, new in _narrowed(name, known.get(a, a), known.get(b, b), a, b):
            known[old] = new
    return [_again(v, known, _DEPTH) for v in values] if known else values


def _narrowed(name, a: Value, b: Value, old_a, old_b):
    if name == "finite":
        f = format_of(a.dtype)
        return [(old_a, _cut(a, Bounds(f.least, f.most), nan=False))]
    if a.may_be_nan or b.may_be_nan:
        a, b = (v.with_bounds(v.lo, v.hi, False) for v in (a, b))
    step = format_of(a.dtype).smallest or 1.0  # of integers
    above = lambda v: np.where(v == 0, step, v)
    below = lambda v: np.where(v == 0, -step, v)
    match name:
        case "gt":
            pairs = Bounds(above(b.lo), inf), Bounds(-inf, below(a.hi))
        case "ge":
            pairs = Bounds(b.lo, inf), Bounds(-inf, a.hi)
        case "lt":
            pairs = Bounds(-inf, below(b.hi)), Bounds(above(a.lo), inf)
        case "le":
            pairs = Bounds(-inf, b.hi), Bounds(a.lo, inf)
        case "eq":
            pairs = Bounds(b.lo, b.hi), Bounds(a.lo, a.hi)
        case _ if b.low == b.high == 0 and a.low >= 0:
            pairs = Bounds(step, inf), Bounds(-inf, inf)
        case _:
            return []
    return [(old_a, _cut(a, pairs[0], nan=False)), (old_b, _cut(b, pairs[1], nan=False))]


def _cut(v: Value, b: Bounds, nan: bool = True) -> Value:
    """Return `v` within `b`; where nothing is left, which cannot be, as it was."""
    low, high = np.maximum(v.lo, b.lo), np.minimum(v.hi, b.hi)
    empty = low > high
    low, high = np.where(empty, v.lo, low), np.where(empty, v.hi, high)
    narrower = np.any(low > v.lo) or np.any(high < v.hi) or (v.may_be_nan and not nan)
    if low.ndim != len(v.shape) or not narrower:
        return v
    return v.with_bounds(low, high, v.nan & nan)


def _again(v: Value, known: dict[Value, Value], depth: int) -> Value:
    """Compute `v` again from what is now known of the Values that it is made of."""
    if v in known:
        return known[v]
    same = tuple(range(len(v.shape)))
    out = v
    for (base, dims), (l, h) in v.relations.items():
        if base in known and dims == same and base.shape == v.shape:
            new = known[base]
            out = _cut(out, Bounds(new.lo + l, new.hi + h), nan=bool(new.may_be_nan or l != h or l))
    if depth and v.made is not None:
        eqn, ins = v.made
        new = [_again(x, known, depth - 1) if x.shape == v.shape else x for x in ins]
        if any(a is not b for a, b in zip(new, ins, strict=True)):
            b = _bounds(eqn, new)
            again = value(b, v.shape, v.dtype)
            low, high = np.maximum(again.lo, out.lo), np.minimum(again.hi, out.hi)
            if not np.any(low > high):
                out = v.with_bounds(low, high, again.nan & out.nan)
    known[v] = out
    return out


def select(which: Value, cases: Sequence[Value]) -> tuple[Value, list[Value]]:
    """Return what `select_n` gives, and the cases that may show."""
    if format_of(which.dtype).kind == "bool":
        can = [which.lo <= 0, which.hi >= 1]
    else:
        can = [(which.lo <= k) & (k <= which.hi) for k in range(len(cases))]
    for k, c in enumerate(can):
        if not any(np.any(o) for i, o in enumerate(can) if i != k) and np.all(c):
            return renamed(cases[k]), [cases[k]]
    if len(cases) == 2:
        cases = [refine([c], t)[0] for c, t in zip(cases, which.test[::-1], strict=True)]
    both = list(zip(can, cases, strict=True))
    low = reduce(np.minimum, [np.where(c, v.lo, inf) for c, v in both])
    high = reduce(np.maximum, [np.where(c, v.hi, -inf) for c, v in both])
    nan = reduce(np.logical_or, [c & v.nan for c, v in both])
    out = value(Bounds(low, high, nan), cases[0].shape, cases[0].dtype)
    shown = [v for c, v in zip(can, cases, strict=True) if np.any(c)]
    out.noise = max(v.noise for v in shown)
    keys = set.intersection(*({*v.differences} for v in shown))
    out.relations = nearest(
        {
            k: (min(v.differences[k][0] for v in shown), max(v.differences[k][1] for v in shown))
            for k in keys
        }
    )
    return out, shown
