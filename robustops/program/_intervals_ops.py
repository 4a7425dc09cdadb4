"""What is known of robustops' own ops beyond the bounds of their equations.

They are total: finite operands give a finite result. And some have bounds that the equations do not
show, because these take care of overflow and rounding in ways that interval analysis cannot follow.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .. import _jax
from ._intervals import Bounds, Value, format_of, inf, rounded, value

# name -> bounds of the result from lowest, highest number and count of the operands' elements.
RANGES: dict[str, Callable[[float, float, int], tuple[float, float]]] = {
    "log_softmax": lambda low, high, n: (low - high - math.log(n), 0.0),
    "logaddexp": lambda low, high, n: (low, high + math.log(2)),
    "logcumsumexp": lambda low, high, n: (low, high + math.log(n)),
    "logmeanexp": lambda low, high, n: (low, high),
    "logsumexp": lambda low, high, n: (low, high + math.log(n)),
    "safe_hypot": lambda low, high, n: (0.0, math.hypot(max(-low, high), max(-low, high))),
    "sigmoid": lambda low, high, n: (0.0, 1.0),
    "softmax": lambda low, high, n: (0.0, 1.0),
    "unit": lambda low, high, n: (-1.0, 1.0),
}
# Allowed beyond these bounds, in ulps: more than the ops claim.
_ULPS = 64


def by_contract(eqn: _jax.JaxprEqn, ins: Sequence[Value], outs: list[Value]) -> list[Value]:
    """Narrow the bounds of the results of a call of a total op with finite operands."""
    if not _jax.is_total(eqn) or not all(v.finite for v in ins):
        return outs
    floats = [v for v in ins if format_of(v.dtype).kind == "float"]
    low = min((v.low for v in floats), default=0.0)
    high = max((v.high for v in floats), default=0.0)
    count = max([math.prod(v.shape) for v in floats] or [1]) or 1
    name = _jax.function_name(eqn)
    # With a mask, a row may have no element at all.
    masked = any(format_of(v.dtype).kind == "bool" for v in ins)
    known = None if masked else RANGES.get(name)
    return [_narrowed(out, known and known(low, high, count)) for out in outs]


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
