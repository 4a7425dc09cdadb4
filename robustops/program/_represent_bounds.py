"""Between which numbers a variable lies, as far as the program's own text tells.

Inputs are taken to be finite and below `ORDINARY` in magnitude; constants are looked at. A bound of
infinity means that the variable may be infinite or NaN. What is proven sound this way needs no
repair, and keeps its equation as it is.
"""

import math

import jax.numpy as jnp

from .._numerics import largest

ORDINARY = 1e4
UNKNOWN = (-math.inf, math.inf)


def of_dtype(dtype) -> tuple[float, float]:
    """Return the bounds of an input of this dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        most = min(ORDINARY, largest(dtype))
        return -most, most
    if dtype == jnp.bool_:
        return 0.0, 1.0
    if jnp.issubdtype(dtype, jnp.integer):
        return float(jnp.iinfo(dtype).min), float(jnp.iinfo(dtype).max)
    return UNKNOWN


def union(*parts):
    return min(p[0] for p in parts), max(p[1] for p in parts)


def finite(b) -> bool:
    return math.isfinite(b[0]) and math.isfinite(b[1])


def within(inner, outer) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def beyond(held, after, most):
    """Return `held`, as far as `most` on each side on which `after` goes beyond it."""
    low, high = zip(held, most, strict=True)
    return low[after[0] < held[0]], high[after[1] > held[1]]


def clipped(b, dtype):
    """Bounds after overflow has been repaired."""
    big = largest(dtype)
    return max(b[0], -big), min(b[1], big)


def times(a, b):
    """Bounds of a product; 0 times an infinite bound is 0, since a bound stands for numbers."""
    products = [x * y if x and y else 0.0 for x in a for y in b]
    return min(products), max(products)


def power(b, y):
    low, high = (_power(v, y) for v in b)
    if y % 2:
        return low, high
    return (0.0 if b[0] <= 0 <= b[1] else min(low, high)), max(low, high)


def _power(v, y):
    try:
        return v**y
    except OverflowError:
        return math.inf if v > 0 or y % 2 == 0 else -math.inf


def quotient(a, b):
    if b[0] == 0 < b[1] and (a[0] >= 0 or a[1] <= 0):  # of known sign, however large
        return (0.0, math.inf) if a[0] >= 0 else (-math.inf, 0.0)
    if b[0] <= 0 <= b[1]:
        return UNKNOWN
    return times(a, (1 / b[1], 1 / b[0]))


def increasing(f):
    """The rule of an increasing function; where it overflows its bound is infinite."""

    def at(v):
        try:
            return f(v)
        except OverflowError:
            return math.inf if v > 0 else -math.inf

    return lambda b: (at(b[0]), at(b[1]))


def logarithm(b):
    # A repaired log(0) is that of the smallest number, in no dtype below -750.
    return (math.log(b[0]) if b[0] > 0 else -750.0), (math.log(b[1]) if b[1] > 0 else -750.0)


UNARY = {
    "exp": increasing(math.exp),
    "exp2": increasing(lambda v: 2.0**v),
    "expm1": increasing(math.expm1),
    "log": logarithm,
    "log2": lambda b: times(logarithm(b), (1 / math.log(2), 1 / math.log(2))),
    "log10": lambda b: times(logarithm(b), (1 / math.log(10), 1 / math.log(10))),
    "log1p": lambda b: logarithm((1 + b[0], 1 + b[1])),
    "sqrt": increasing(lambda v: math.sqrt(max(v, 0.0))),
    "rsqrt": lambda b: (b[1] ** -0.5, b[0] ** -0.5) if b[0] > 0 else (0.0, math.inf),
    "tanh": increasing(math.tanh),
    "logistic": lambda b: (0.0, 1.0),
    "erf": increasing(math.erf),
    "erfc": lambda b: (0.0, 2.0),
    "sin": lambda b: (-1.0, 1.0),
    "cos": lambda b: (-1.0, 1.0),
    "sign": lambda b: (-1.0, 1.0),
    "neg": lambda b: (-b[1], -b[0]),
    "abs": lambda b: power(b, 2) if b == UNKNOWN else _magnitude(b),
    "cosh": lambda b: (1.0, increasing(math.cosh)((0.0, max(map(abs, b))))[1]),
    "floor": increasing(lambda v: v - 1),
    "ceil": increasing(lambda v: v + 1),
    "round": lambda b: (b[0] - 1, b[1] + 1),
    "acos": lambda b: (0.0, math.pi),
    "asin": lambda b: (-math.pi, math.pi),
    "atan": lambda b: (-math.pi, math.pi),
    "is_finite": lambda b: (0.0, 1.0),
}


def _magnitude(b):
    return (0.0 if b[0] <= 0 <= b[1] else min(map(abs, b))), max(map(abs, b))


BINARY = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "add_any": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": times,
    "div": quotient,
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "atan2": lambda a, b: (-math.pi, math.pi),
    "clamp": lambda low, x, high: (
        min(max(x[0], low[0]), high[1]),
        min(max(x[1], low[0]), high[1]),
    ),
}


def of_equation(name, params, shapes, inputs) -> tuple[float, float]:
    """Return the bounds of what a primitive gives, before repair, from those of its operands."""
    if name in UNARY:
        return UNARY[name](inputs[0])
    if name in BINARY:
        low, high = BINARY[name](*inputs)
        return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
    match name:
        case "square":
            return power(inputs[0], 2)
        case "integer_pow":
            y = params["y"]
            return power(inputs[0], y) if y >= 0 else quotient((1.0, 1.0), power(inputs[0], -y))
        case "pow":
            (low, high), (least, most) = inputs
            if low < 0 or not finite((least, most)) or (low == 0 and least < 0):
                even_or_broken = least == most and least % 2 != 1  # NaN of a negative number
                return (0.0, math.inf) if low >= 0 or even_or_broken else UNKNOWN
            corners = [_power(v, y) for v in (low, high) for y in (least, most)]
            return min(corners), max(corners)
        case "reduce_sum" | "cumsum":
            axes = params["axes"] if name == "reduce_sum" else (params["axis"],)
            count = math.prod(shapes[0][i] for i in axes)
            low, high = times(inputs[0], (float(count), float(count)))
            return (
                (min(low, inputs[0][0]), max(high, inputs[0][1]))
                if name == "cumsum"
                else (low, high)
            )
        case "reduce_prod" | "cumprod" if 0 <= inputs[0][0] and inputs[0][1] <= 1:
            return 0.0, inputs[0][1]
        case "reduce_max" | "reduce_min" | "cummax" | "cummin" | "sort":
            return inputs[0]
        case "reduce_window_max" | "reduce_window_min":  # of windows that are not all padding
            return inputs[0]
        case "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            count = float(math.prod(shapes[0][i] for i in contract))
            return times(times(*inputs), (count, count))
        case "conv_general_dilated":
            outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            count = float(math.prod(shapes[1]) // max(outputs, 1))
            return times(times(*inputs), (count, count))
        case "scatter-add":
            count = float(math.prod(shapes[2]))
            low, high = times(inputs[2], (count, count))
            return inputs[0][0] + min(low, 0.0), inputs[0][1] + max(high, 0.0)
        case "select_n":
            return union(*inputs[1:])
        case "concatenate" | "pad":
            return union(*inputs)
        case "iota":
            return 0.0, float(max(params["shape"], default=0))
    return UNKNOWN
