"""What is known of robustops' own ops beyond the bounds of their equations.

They are total: finite operands give a finite result. And some have bounds that the equations do not
show, because these take care of overflow and rounding in ways that interval analysis cannot follow.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .. import _jax
from ._intervals import Bounds, Value, format_of, inf, rounded, value

# name -> bounds of the result from what the floating operands may be.
RANGES: dict[str, Callable[..., tuple[float, float]]] = {
    "class_cross_entropy": lambda x: (0.0, _log_ratio(x)),
    "log_softmax": lambda x: (-_log_ratio(x), 0.0),
    "logaddexp": lambda x, y: (max(x.low, y.low), max(x.high, y.high) + math.log(2)),
    "logcumsumexp": lambda x: (x.low, x.high + _log_count(x)),
    "logmeanexp": lambda x: (x.low, x.high),
    "logsumexp": lambda x: (x.low, x.high + _log_count(x)),
    "mean_square": lambda x: (0.0, _most(x) ** 2),
    "safe_hypot": lambda x, y: (0.0, math.hypot(_most(x), _most(y))),
    "sigmoid": lambda x: (0.0, 1.0),
    "soft_cross_entropy": lambda *floats: _weighted(*floats[-2:]),  # tables of numbers come first
    "softmax": lambda x: (0.0, 1.0),
    "unit": lambda x: (-1.0, 1.0),
    "welsch": lambda x: (0.0, 1.0),
}


def _most(x: Value) -> float:
    return max(abs(x.low), abs(x.high))


def _log_count(x: Value) -> float:
    return math.log(max(math.prod(x.shape), 1))


def _log_ratio(x: Value) -> float:
    """Largest -log softmax(x): at most all elements are in one row."""
    return x.high - x.low + _log_count(x)


def _weighted(x: Value, labels: Value) -> tuple[float, float]:
    most = math.prod(x.shape) * _most(labels) * _log_ratio(x)
    return (0.0 if labels.low >= 0 else -most), most


# Allowed beyond these bounds, in ulps: more than the ops claim.
_ULPS = 64


def by_contract(eqn: _jax.JaxprEqn, ins: Sequence[Value], outs: list[Value]) -> list[Value]:
    """Narrow the bounds of the results of a call of a total op with finite operands."""
    if not _jax.is_total(eqn) or not all(v.finite for v in ins):
        return outs
    floats = [v for v in ins if format_of(v.dtype).kind == "float"]
    # With a mask, a row may have no element at all.
    masked = any(format_of(v.dtype).kind == "bool" for v in ins)
    known = None if masked else RANGES.get(_jax.function_name(eqn))
    return [_narrowed(out, known and known(*floats)) for out in outs]


def _narrowed(out: Value, known: tuple[float, float] | None) -> Value:
    f = format_of(out.dtype)
    if f.kind != "float":
        return out
    least, most = f.least, f.most
    if known is not None:
        b = rounded(Bounds(*map(np.float64, known)), f, _ULPS)
        least, most = max(least, float(b.lo)), min(most, float(b.hi))
    if out.finite and out.low >= least and out.high <= most:
        return out
    bounds = Bounds(np.clip(out.lo, least, most), np.clip(out.hi, least, most))
    return value(bounds, out.shape, out.dtype, noise=inf)
