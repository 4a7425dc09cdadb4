"""Bounds of comparisons, predicates, bits of integers, and conversions.

Rules as in `_intervals_elementwise`.
"""

from collections.abc import Callable

import numpy as np

from ._intervals import Bounds, Rule, any_nan, format_of, has_inf, has_zero, inf


def _compare(never: Callable, always: Callable, with_nan: bool) -> Rule:
    """Of a comparison: where it is never true, where always; NaN decides it as `with_nan`."""

    def rule(eqn, a, b):
        nan = any_nan(a, b)
        no, yes = never(a, b), always(a, b)
        low = np.where(yes & (~nan | with_nan), 1.0, 0.0)
        return Bounds(low, np.where(no & ~(nan & with_nan), 0.0, 1.0))

    return rule


_disjoint = lambda a, b: (a.hi < b.lo) | (b.hi < a.lo)


def _same(a, b):
    if a is b:
        return np.broadcast_to(np.True_, np.shape(a.lo))
    return (a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo)


def _is_finite(eqn, x):
    bad = has_inf(x) | x.nan
    return Bounds(np.where(bad, 0.0, 1.0), 1.0)


def _logic(f: Callable, bits: Callable) -> Rule:
    def rule(eqn, a, b):
        if format_of(a.dtype).kind == "bool":
            return Bounds(f(a.lo, b.lo), f(a.hi, b.hi))
        return bits(a, b)

    return rule


def _and_bits(a, b):
    # Of two numbers one of which is not negative.
    f = format_of(a.dtype)
    known = (a.lo >= 0) | (b.lo >= 0)
    most = np.minimum(np.where(a.lo >= 0, a.hi, inf), np.where(b.lo >= 0, b.hi, inf))
    return Bounds(np.where(known, 0, f.least), np.where(known, most, f.most))


def _or_bits(a, b):
    f = format_of(a.dtype)
    known = (a.lo >= 0) & (b.lo >= 0)
    low, high = np.maximum(a.lo, b.lo), a.hi + b.hi
    return Bounds(np.where(known, low, f.least), np.where(known, high, f.most))


def _xor(eqn, a, b):
    if format_of(a.dtype).kind == "bool":
        return Bounds(0.0, 1.0)
    known = (a.lo >= 0) & (b.lo >= 0)
    f = format_of(a.dtype)
    return Bounds(np.where(known, 0, f.least), np.where(known, a.hi + b.hi, f.most))


def _not(eqn, x):
    if format_of(x.dtype).kind == "bool":
        return Bounds(1 - x.hi, 1 - x.lo)
    f = format_of(x.dtype)
    return Bounds(f.least, f.most)


def _shift_right(eqn, x, by):
    f = format_of(x.dtype)
    known = (x.lo >= 0) & (by.lo >= 0)
    low, high = np.floor(x.lo / 2.0**by.hi), np.floor(x.hi / 2.0**by.lo)
    return Bounds(np.where(known, low, f.least), np.where(known, high, f.most))


def _convert(eqn, x):
    new, old = format_of(eqn.params["new_dtype"]), format_of(x.dtype)
    if new.kind == "bool":
        zero = has_zero(x) | x.nan
        return Bounds(
            np.where(zero, 0.0, 1.0), np.where((x.lo == 0) & (x.hi == 0) & ~x.nan, 0.0, 1.0)
        )
    if old.kind == "float" and new.kind == "int":
        # NaN and what is too large become some integer.
        fits = (x.lo >= new.least) & (x.hi <= new.most) & ~x.nan
        return Bounds(
            np.where(fits, np.trunc(x.lo), new.least), np.where(fits, np.trunc(x.hi), new.most)
        )
    return x.bounds


RULES: dict[str, Rule] = {
    "and": _logic(np.minimum, _and_bits),
    "convert_element_type": _convert,
    "eq": _compare(_disjoint, _same, False),
    "ge": _compare(lambda a, b: a.hi < b.lo, lambda a, b: a.lo >= b.hi, False),
    "gt": _compare(lambda a, b: a.hi <= b.lo, lambda a, b: a.lo > b.hi, False),
    "is_finite": _is_finite,
    "le": _compare(lambda a, b: a.lo > b.hi, lambda a, b: a.hi <= b.lo, False),
    "lt": _compare(lambda a, b: a.lo >= b.hi, lambda a, b: a.hi < b.lo, False),
    "ne": _compare(_same, _disjoint, True),
    "not": _not,
    "or": _logic(np.maximum, _or_bits),
    "shift_right_logical": _shift_right,
    "xor": _xor,
}
