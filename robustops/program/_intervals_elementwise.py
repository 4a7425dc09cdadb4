"""Bounds of the results of elementwise primitives, from those of their operands.

Rules compute in float64 and do not round: `rounded` does, by what `BASIC`, `EXACT` say of the
primitive. A bound may come out NaN where it is undefined; that counts as none.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from ._intervals import (
    Bounds,
    Rule,
    Value,
    any_nan,
    format_of,
    has_inf,
    has_zero,
    inf,
    magnitude,
    related,
)
from ._intervals_conditions import RULES as CONDITIONS

# Their result is one of their operands, or an integer: no rounding.
EXACT = frozenset(
    """
    abs and ceil clamp eq floor ge gt is_finite le lt max min ne neg not
    or population_count round shift_right_logical sign xor
    """.split()
)
# They round once, correctly.
BASIC = frozenset(
    """
    absorbing_div absorbing_mul add add_any convert_element_type div mul reduce_precision sqrt
    square sub zmul
    """.split()
)
# Of these, XLA rearranges none into another that rounds differently.
MONOTONE = frozenset("add add_any convert_element_type mul sub zmul".split())
IDENTITIES = frozenset(
    """
    copy device_put name optimization_barrier pcast pvary sharding_constraint stop_gradient
    """.split()
)


def increasing(f: Callable, low: float = -inf, high: float = inf) -> Rule:
    """The rule of an increasing function of all numbers, with values in `[low, high]`."""

    return lambda eqn, x: Bounds(np.maximum(f(x.lo), low), np.minimum(f(x.hi), high), x.nan)


def on(f: Callable, least: float, most: float = inf) -> Rule:
    """The rule of an increasing function of `[least, most]`: NaN outside."""

    def rule(eqn, x):
        outside = (x.lo < least) | (x.hi > most)
        inside = np.clip(x.lo, least, most), np.clip(x.hi, least, most)
        return Bounds(f(inside[0]), f(inside[1]), x.nan | outside)

    return rule


def decreasing(rule: Rule) -> Rule:
    """The rule of `f(-x)`, for the rule of `f`."""
    return lambda eqn, x: rule(eqn, Bounds(-x.hi, -x.lo, x.nan))


def within(low: float, high: float, infinite: bool = False) -> Rule:
    """The rule of a function with values in `[low, high]`, NaN at infinity unless `infinite`."""
    return lambda eqn, x: Bounds(low, high, x.nan | (np.False_ if infinite else has_inf(x)))


_vector = lambda f: lambda x: np.vectorize(f, otypes=[np.float64])(x)
_erf = _vector(math.erf)
_erfc = _vector(math.erfc)


def _logistic(x):
    return np.where(
        x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
    )


def _abs(eqn, x):
    return Bounds(*magnitude(x), x.nan)


def _square(eqn, x):
    low, high = magnitude(x)
    return Bounds(low * low, high * high, x.nan)


def _exp_of_minus_square(eqn, x):
    low, high = magnitude(x)
    return Bounds(np.exp(-high * high), np.exp(-low * low), x.nan)


def _one_minus_square(eqn, x):
    square = _square(eqn, x)
    return Bounds(1 - square.hi, 1 - square.lo, x.nan)


def add(eqn, a, b):
    """The rule of `add`, a sum of any two arrays."""
    clash = ((a.hi == inf) & (b.lo == -inf)) | ((a.lo == -inf) & (b.hi == inf))
    return Bounds(a.lo + b.lo, a.hi + b.hi, any_nan(a, b) | clash)


def _sub(eqn, a, b):
    plain = add(eqn, a, Bounds(-b.hi, -b.lo, b.nan))
    if not (isinstance(a, Value) and isinstance(b, Value)) or a.may_be_nan or b.may_be_nan:
        return plain
    if format_of(a.dtype).kind != "float" or not (a.finite and b.finite):
        return plain
    low, high = related(a, b)
    # A product that is fused with one of the two differs from what the other one is rounded to.
    noise = a.noise + b.noise
    return Bounds(np.maximum(plain.lo, low - noise), np.minimum(plain.hi, high + noise), plain.nan)


def mul(eqn, a, b):
    """The rule of `mul`."""
    if a is b:
        return _square(eqn, a)
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    corners = [np.where(np.isnan(c), 0.0, c) for c in corners]
    clash = (has_zero(a) & has_inf(b)) | (has_inf(a) & has_zero(b))
    return Bounds(reduce(np.minimum, corners), reduce(np.maximum, corners), any_nan(a, b) | clash)


def _zmul(eqn, p, t):
    out = mul(eqn, p, t)
    return Bounds(out.lo, out.hi, any_nan(p, t))


def _div(eqn, a, b):
    pole = has_zero(b)
    corners = [x / y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    corners = [np.where(np.isnan(c), 0.0, c) for c in corners]
    low = np.where(pole, -inf, reduce(np.minimum, corners))
    high = np.where(pole, inf, reduce(np.maximum, corners))
    clash = (pole & has_zero(a)) | (has_inf(a) & has_inf(b))
    return Bounds(low, high, any_nan(a, b) | clash)


def _max(eqn, a, b):
    return Bounds(np.maximum(a.lo, b.lo), np.maximum(a.hi, b.hi), any_nan(a, b))


def _min(eqn, a, b):
    return Bounds(np.minimum(a.lo, b.lo), np.minimum(a.hi, b.hi), any_nan(a, b))


def _clamp(eqn, low, x, high):
    return _min(eqn, _max(eqn, x, low), high)


def _cbrt(eqn, x):
    # XLA's is wrong for subnormals, even in sign, but no larger there than at the smallest normal.
    tiny = format_of(x.dtype).tiny
    small, most = (x.lo < tiny) & (x.hi > -tiny), np.cbrt(tiny)
    low, high = np.cbrt(x.lo), np.cbrt(x.hi)
    low, high = (
        np.where(small, np.minimum(low, -most), low),
        np.where(small, np.maximum(high, most), high),
    )
    return Bounds(low, high, x.nan)


def _polynomial(eqn, x, *coefficients):
    out = coefficients[-1]
    for c in coefficients[-2::-1]:
        out = add(eqn, mul(eqn, out, x), c)
    return Bounds(*out)


def _rsqrt(eqn, x):
    low, high = np.maximum(x.lo, 0), np.maximum(x.hi, 0)
    # At -0, and at a negative number that is flushed to it, it is -inf.
    bottom = np.where(has_zero(x), -inf, 1 / np.sqrt(high))
    return Bounds(bottom, 1 / np.sqrt(low), x.nan | (x.lo < 0))


def _cosh(eqn, x):
    low, high = magnitude(x)
    return Bounds(np.cosh(low), np.cosh(high), x.nan)


def _tan(eqn, x):
    inside = (x.lo > -1.57) & (x.hi < 1.57)
    # Further out it is finite still: no float is pi / 2. The nearest double gives 2e16.
    low = np.where(inside, np.tan(x.lo), -1e17)
    return Bounds(low, np.where(inside, np.tan(x.hi), 1e17), x.nan | has_inf(x))


def _lgamma(eqn, x):
    f = np.vectorize(lambda v: inf if v <= 0 or v == inf else math.lgamma(v), otypes=[np.float64])
    return Bounds(-0.1215, np.maximum(f(x.lo), f(x.hi)), x.nan | (x.lo <= 0))


def _digamma(eqn, x):
    # log(x) - 1/x < digamma(x) < log(x) - 1/(2x), x > 0
    low, high = np.maximum(x.lo, 0), np.maximum(x.hi, 0)
    return Bounds(np.log(low) - 1 / low, np.log(high) - 1 / (2 * high), x.nan | (x.lo <= 0))


def _atan2(eqn, y, x):
    # XLA flushes what is subnormal on the way, and then 0 / 0 is NaN.
    tiny = format_of(x.dtype).tiny
    small = lambda v: (v.lo < tiny) & (v.hi > -tiny)
    return Bounds(-math.pi, math.pi, any_nan(y, x) | (small(y) & small(x)))


def power(x: Any, n: int) -> Bounds:
    """Bounds of `x**n`, n a positive integer."""
    low, high = magnitude(x)
    if n % 2 == 0:
        return Bounds(low**n, high**n, x.nan)
    return Bounds(np.sign(x.lo) * np.abs(x.lo) ** n, np.sign(x.hi) * np.abs(x.hi) ** n, x.nan)


def _integer_pow(eqn, x):
    n = eqn.params["y"]
    if n == 0:
        return Bounds(1.0, 1.0)
    if n > 0:
        return power(x, n)
    f = format_of(x.dtype)
    below = power(x, -n)
    # What underflows on the way counts as 0.
    gone = lambda v: np.where(np.abs(v) < f.tiny, 0.0, v)
    below = Bounds(gone(below.lo), gone(below.hi), below.nan)
    return _div(eqn, Bounds(np.float64(1), np.float64(1)), below)


def _pow(eqn, x, y):
    negative = x.lo < 0
    whole = (y.lo == y.hi) & (np.round(y.lo) == y.lo)
    size = magnitude(x)
    corners = [s**e for s in size for e in (y.lo, y.hi)]
    # Between the corners the exponent 0 and the base 1 give 1.
    inside = (has_zero(y) & ~(y.lo == y.hi)) | ((size[0] <= 1) & (size[1] >= 1) & ~(y.lo == y.hi))
    low, high = reduce(np.minimum, corners), reduce(np.maximum, corners)
    low, high = (
        np.where(inside, np.minimum(low, 1), low),
        np.where(inside, np.maximum(high, 1), high),
    )
    low = np.where(negative, -high, low)
    nan = any_nan(x, y) | (negative & ~whole)
    return Bounds(low, high, nan | (np.isnan(low) | np.isnan(high)))


def _rem(eqn, x, y):
    if format_of(x.dtype).kind != "float":
        most = np.maximum(*np.abs([y.lo, y.hi]))
        pole = has_zero(y)
        f = format_of(x.dtype)
        low = np.where(pole, f.least, np.where(x.lo < 0, -most, 0))
        return Bounds(low, np.where(pole, f.most, np.minimum(most, np.maximum(x.hi, 0))))
    most = np.minimum(magnitude(x)[1], magnitude(y)[1])
    low, high = np.where(x.lo < 0, -most, 0), np.where(x.hi > 0, most, 0)
    return Bounds(low, high, any_nan(x, y) | has_zero(y) | has_inf(x))


def _integer_div(eqn, a, b):
    f = format_of(a.dtype)
    out = _div(eqn, a, b)
    pole = has_zero(b)
    low = np.where(pole, f.least, np.minimum(np.trunc(out.lo), np.floor(out.lo)))
    return Bounds(low, np.where(pole, f.most, np.ceil(out.hi)))


def _absorbing_mul(eqn, x, y):
    p, t = (y, x) if eqn.params["linear"] == 0 else (x, y)
    # A partial that is not finite counts as 0.
    bad = has_inf(p) | p.nan
    most = format_of(p.dtype).most
    low, high = np.maximum(p.lo, -most), np.minimum(p.hi, most)
    low, high = np.where(bad, np.minimum(low, 0), low), np.where(bad, np.maximum(high, 0), high)
    return mul(eqn, Bounds(low, high, np.False_), t)


def _absorbing_div(eqn, t, d):
    out = _div(eqn, t, d)
    return Bounds(out.lo, out.hi, t.nan | (has_inf(t) & has_inf(d)))


def div(eqn, a, b):
    """The rule of `div`, of floats or of integers."""
    return (_div if format_of(a.dtype).kind == "float" else _integer_div)(eqn, a, b)


def _reduce_precision(eqn, x):
    bits = eqn.params["mantissa_bits"]
    most = 2.0 ** (2 ** (eqn.params["exponent_bits"] - 1)) * (1 - 2.0 ** -(bits + 2))
    wide = lambda v, sign: v + sign * np.abs(v) * 2.0**-bits
    low, high = wide(x.lo, -1), wide(x.hi, 1)
    return Bounds(np.where(low < -most, -inf, low), np.where(high > most, inf, high), x.nan)


def _nextafter(eqn, x, y):
    f = format_of(x.dtype)
    step = lambda v: np.abs(v) * f.eps + f.tiny
    return Bounds(x.lo - step(x.lo), x.hi + step(x.hi), any_nan(x, y))


RULES: dict[str, Rule] = {
    **CONDITIONS,
    "abs": _abs,
    "absorbing_div": _absorbing_div,
    "absorbing_mul": _absorbing_mul,
    "acos": decreasing(on(lambda x: np.arccos(-x), -1, 1)),
    "acosh": on(np.arccosh, 1),
    "add": add,
    "add_any": add,
    "asin": on(np.arcsin, -1, 1),
    "asinh": increasing(np.arcsinh),
    "atan": increasing(np.arctan),
    "atan2": _atan2,
    "atanh": on(np.arctanh, -1, 1),
    "cbrt": _cbrt,
    "ceil": increasing(np.ceil),
    "clamp": _clamp,
    "cos": within(-1, 1),
    "cosh": _cosh,
    "digamma": _digamma,
    "div": div,
    "erf": increasing(_erf, -1, 1),
    "erf_inv": on(_vector(lambda v: _erf_inv(v)), -1, 1),
    "erfc": decreasing(increasing(lambda x: _erfc(-x), 0, 2)),
    "exp": increasing(np.exp, 0),
    "exp2": increasing(np.exp2, 0),
    "expm1": increasing(np.expm1, -1),
    "floor": increasing(np.floor),
    "instead": lambda eqn, y, z: z,
    "integer_pow": _integer_pow,
    "lgamma": _lgamma,
    "log": on(np.log, 0),
    "log1p": on(np.log1p, -1),
    "log2": on(np.log2, 0),
    "logistic": increasing(_logistic, 0, 1),
    "max": _max,
    "min": _min,
    "mul": mul,
    "neg": lambda eqn, x: Bounds(-x.hi, -x.lo, x.nan),
    "nextafter": _nextafter,
    "one_minus_square": _one_minus_square,
    "polynomial": _polynomial,
    "population_count": within(0, 64),
    "pow": _pow,
    "reduce_precision": _reduce_precision,
    "rem": _rem,
    "round": increasing(np.round),
    "rsqrt": _rsqrt,
    "sign": increasing(np.sign, -1, 1),
    "sin": within(-1, 1),
    "sinh": increasing(np.sinh),
    "sqrt": on(np.sqrt, 0),
    "square": _square,
    "sub": _sub,
    "tan": _tan,
    "tanh": increasing(np.tanh, -1, 1),
    "zmul": _zmul,
}
# Functions of jax with a derivative of their own that have a closed form, by name.
NAMED: dict[str, Rule] = {
    "exp_neg_sq": _exp_of_minus_square,
}
RULES.update((name, lambda eqn, x: x.bounds) for name in IDENTITIES)
# Errors in ulps where a compiled function is known, or allowed, to be less exact than `ULPS`.
LOOSE = {
    "acosh": 64, "asinh": 64, "atanh": 64, "cosh": 128, "digamma": 256, "erf_inv": 64, "exp2": 128,
    "lgamma": 256, "polynomial": 64, "pow": 256, "sinh": 128, "tan": 64,
}  # fmt: skip
# Numbers that rounding does not leave.
RANGES = {
    "acos": (0, 4), "cos": (-1, 1), "cosh": (1, inf), "erf": (-1, 1), "erfc": (0, 2),
    "exp": (0, inf), "exp2": (0, inf), "expm1": (-1, inf), "logistic": (0, 1), "sin": (-1, 1),
    "tanh": (-1, 1),
}  # fmt: skip


def _erf_inv(v):
    """Invert erf by bisection, outward at 1."""
    if abs(v) >= 1:
        return math.copysign(inf, v)
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle) < v else (low, middle)
    return low
