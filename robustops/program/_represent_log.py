"""The logarithm of a variable, or of its distance from a constant, from the equations behind it.

exp(100) overflows, but its logarithm is 100; 1 - sigmoid(20) rounds to 0, but its logarithm is -20.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .._numerics import power_of_two, widen
from ..ops import log_cosh, logaddexp, logsumexp, softplus
from ._represent_beside import log_beside_one
from ._represent_logspace import (
    LN2,
    Log,
    flipped,
    joined,
    leaf_log,
    log1mexp,
    log_erfc,
    logsubexp,
    minus,
    plain_log,
    raised,
    xor,
)
from ._represent_nodes import STRUCTURAL, Node, affine, moved, nonnegative, same


def _moved_log(n, r):
    negative = None
    if r.negative is not None:
        negative = r.negative
        if n.name not in ("convert_element_type", "reduce_precision"):
            negative = moved(n, jnp.broadcast_to(negative, r.value.shape))
    return r._replace(value=moved(n, r.value), negative=negative)


def _log(rep, n: Node) -> Log | None:
    given = n.carried() if n.carried is not None else n.given
    if given is not None:
        return Log(given)
    x = n.operand
    match n.name:
        case "exp":
            pole = rep.extended(x)
            return Log(widen(x.value if pole is None else pole))
        case "log" | "log1p":
            return _log_of_log(rep, n, x)
        case "exp2":
            return Log(widen(x.value) * LN2)
        case "expm1":
            v = widen(x.value)
            value = jnp.maximum(v, 0) + log1mexp(abs(v))
            return Log(value, v < 0)
        case "logistic":
            return Log(-softplus(-widen(x.value)))
        case "cosh":
            return Log(log_cosh(widen(x.value)))
        case "sinh":
            v = abs(widen(x.value))
            return Log(v + log1mexp(2 * v) - LN2, x.value < 0)
        case "erfc":
            return Log(log_erfc(widen(x.value)))
        case "mul" | "square" | "integer_pow":
            return _log_of_power(rep, n)
        case "div":
            a, b = map(rep.any_log, n.inputs)
            value = minus(a.value, b.value, signed=b.negative is not None)
            return joined(value, a, b, negative=xor(a.negative, b.negative))
        case "sqrt" | "rsqrt":
            r = rep.log(x)
            half = 0.5 if n.name == "sqrt" else -0.5
            return r and joined(half * r.value, r)
        case "abs":
            r = rep.log(x)
            return r and r._replace(negative=None)
        case "pow":
            return _log_of_pow(rep, n, x)
        case "add" | "add_any" | "sub":
            return _log_of_sum(rep, n)
        case "reduce_sum" | "cumsum" if nonnegative(x):
            return _log_of_reduced_sum(rep, n, x)
        case "reduce_sum" if n.eqn.params["axes"]:
            return _log_of_signed_sum(rep, n, x)
        case "reduce_prod" | "cumprod":
            a = rep.any_log(x)
            over = lambda v: (
                jnp.sum(v, n.eqn.params["axes"])
                if n.name == "reduce_prod"
                else lax.cumsum(v, **along(n))
            )
            odd = None if a.negative is None else over(a.negative.astype(jnp.int32)) % 2 == 1
            return joined(over(a.value), a, negative=odd)
        case "dot_general" if any(map(rep.log, n.inputs)):
            return _log_of_dot(rep, n) or _log_of_scaled_dot(n)
        case "dot_general":
            return _log_of_scaled_dot(n)
        case "scatter-add" if n.inputs[0].scalar == 0 and nonnegative(n.inputs[2]):
            return _log_of_scatter_add(rep, n)
        case "reduce_max" | "reduce_min" if nonnegative(x):
            r = rep.log(x)
            reduce = jnp.max if n.name == "reduce_max" else jnp.min
            return r and joined(reduce(r.value, n.eqn.params["axes"]), r)
        case "max" | "min" | "clamp":
            return _log_between(rep, n)
    return None


def _log_of_log(rep, n, x):
    """log|log v|; of a v within exp(-15) of 1, log|v - 1|, where log v has lost its digits."""
    offset, slope, base = affine(x)
    offset += n.name == "log1p"
    if (r := rep.log_affine(offset, slope, base)) is None:
        return None
    value, from_one = leaf_log(r.value), rep.log_affine(offset - 1, slope, base)
    if from_one is not None:
        value = jnp.where(from_one.value < -15, from_one.value, value)
    return joined(value, r, negative=r.value < 0)


def along(n: Node) -> dict[str, Any]:
    """Return the axis and direction of a cumulative operation."""
    return {"axis": n.eqn.params["axis"], "reverse": n.eqn.params["reverse"]}


def _log_of_power(rep, n):
    """Products and whole powers, informative even where the factors are plain: they underflow."""
    if n.name == "mul" and not same(*n.inputs):
        a, b = map(rep.any_log, n.inputs)
        return joined(a.value + b.value, a, b, negative=xor(a.negative, b.negative))
    r = rep.any_log(n.inputs[0])
    y = 2 if n.name in ("mul", "square") else n.eqn.params["y"]
    return joined(raised(r.value, y), r, negative=r.negative if y % 2 else None)


def _log_of_pow(rep, n, x):
    a, y = rep.any_log(x), n.inputs[1].scalar
    if a.negative is not None and (y is None or y % 1):  # NaN of a negative number, as plain
        a = a._replace(value=jnp.where(a.negative, jnp.nan, a.value))
    odd = y is not None and y % 2 == 1
    value = raised(a.value, widen(n.inputs[1].value))
    return joined(value, a, negative=a.negative if odd else None)


def _log_of_sum(rep, n):
    a, b = n.inputs
    if not (rep.log(a) or rep.log(b)):
        return None
    la, lb = rep.any_log(a), rep.any_log(b)
    if not (nonnegative(a) and nonnegative(b)):
        if n.name == "sub":
            lb = lb._replace(negative=flipped(lb.value, lb.negative))
        terms = jnp.stack([jnp.broadcast_to(r.value, n.aval.shape) for r in (la, lb)])
        none = jnp.zeros((), bool)
        signs = [none if r.negative is None else r.negative for r in (la, lb)]
        negative = jnp.stack([jnp.broadcast_to(s, n.aval.shape) for s in signs])
        return _summed(terms, negative, 0, la, lb)
    if n.name != "sub":
        floored = any(i.scalar is not None for i in n.inputs)
        return joined(logaddexp(la.value, lb.value), la, lb, floored=floored)
    plain = logsubexp(la.value, lb.value)
    negative = la.value < lb.value
    ra, rb = rep.log_beside_one(a, -1), rep.log_beside_one(b, -1)
    if ra and rb:  # a - b = (1 - b) - (1 - a), for two numbers close to 1
        near_one = (jnp.minimum(la.value, lb.value) > -LN2) & (jnp.maximum(la.value, lb.value) <= 0)
        plain = jnp.where(near_one, logsubexp(rb.value, ra.value), plain)
        negative = jnp.where(near_one, ra.value > rb.value, negative)
    return joined(plain, la, lb, negative=negative, cancels=True)


def _log_of_reduced_sum(rep, n, x):
    r = rep.log(x)
    if r is None:
        return None
    if n.name == "cumsum":
        return joined(lax.cumlogsumexp(r.value, **along(n)), r)
    axes = n.eqn.params["axes"]
    return joined(logsumexp(r.value, axes) if axes else r.value, r)


def _log_of_signed_sum(rep, n, x):
    r = rep.log(x)
    return r and _summed(r.value, r.negative, n.eqn.params["axes"], r)


def _summed(logs, negative, axes, *parts):
    """The sum along `axes` of terms of either sign, the largest taken out of it."""
    top = lax.stop_gradient(jnp.max(logs, axes, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    terms = jnp.exp(logs - top)
    if negative is not None:
        terms = jnp.where(negative, -terms, terms)
    total = jnp.sum(terms, axes)
    value = leaf_log(total) + jnp.squeeze(top, axes)
    return joined(value, *parts, negative=total < 0, cancels=True)


def _log_between(rep, n):
    """Logarithm is increasing: it goes through max, min and clip of what is not negative."""
    if n.name == "clamp":
        low, x, high = n.inputs
        bounds = [(jnp.maximum, low), (jnp.minimum, high)]
    else:
        x, bound = n.inputs if n.inputs[0].scalar is None else n.inputs[::-1]
        bounds = [(jnp.maximum if n.name == "max" else jnp.minimum, bound)]
    if not nonnegative(x):
        return None
    if (r := rep.log(x)) is None:
        return None
    value, floored = r.value, r.floored
    for pick, bound in bounds:
        if pick is jnp.maximum and bound.scalar is not None and bound.scalar <= 0:
            continue
        if not nonnegative(bound):
            return None
        value = pick(value, rep.any_log(bound).value)
        floored = floored or pick is jnp.maximum
    return r._replace(value=value, floored=floored)


def _log_of_dot(rep, n):
    """Logarithm of a product of matrices, if its terms are not many more numbers."""
    (contract, batch) = n.eqn.params["dimension_numbers"]
    terms = math.prod(n.aval.shape) * math.prod(n.inputs[0].aval.shape[i] for i in contract[0])
    if terms > 4 * max(math.prod(i.aval.shape) for i in n.inputs):
        return None
    logs = [rep.any_log(i) for i in n.inputs]
    frees = [n.inputs[i].aval.ndim - len(contract[i]) - len(batch[i]) for i in (0, 1)]

    def spread(v, i):
        free = [d for d in range(v.ndim) if d not in contract[i] and d not in batch[i]]
        v = jnp.transpose(v, (*batch[i], *free, *contract[i]))
        at = len(batch[i]) + (0 if i else frees[0])
        return jnp.expand_dims(v, tuple(range(at, at + frees[1 - i])))

    product = spread(logs[0].value, 0) + spread(logs[1].value, 1)
    axes = tuple(range(n.aval.ndim, n.aval.ndim + len(contract[0])))
    if all(map(nonnegative, n.inputs)):
        return joined(logsumexp(product, axes), *logs)
    signs = [None if r.negative is None else spread(r.negative, i) for i, r in enumerate(logs)]
    negative = xor(*signs)
    if negative is not None:
        negative = jnp.broadcast_to(negative, product.shape)
    return _summed(product, negative, axes, *logs)


def _log_of_pieces(rep, offset, slope, n):
    which = n.inputs[:1] if n.name == "select_n" else ()
    pieces = n.inputs[len(which) :]
    logs = [rep.log_affine(offset, slope, p) for p in pieces]
    if not any(logs):
        return None
    logs = [
        plain_log(offset, slope, p) if r is None else r for p, r in zip(pieces, logs, strict=False)
    ]
    dtype = widen(n.value).dtype
    bind = lambda arrays: _jax.bind(n.eqn, *[w.value for w in which], *arrays)[0]
    value = bind([r.value.astype(dtype) for r in logs])
    negative = None
    if any(r.negative is not None for r in logs):
        none = jnp.zeros((), bool)
        signs = (none if r.negative is None else r.negative for r in logs)
        negative = bind(
            [jnp.broadcast_to(s, r.value.shape) for s, r in zip(signs, logs, strict=False)]
        )
    return joined(value, *logs, negative=negative)


def log_affine(rep, offset, slope, x):
    """Return log|offset + slope * x| where that is better than the log of its value."""
    if not x.floating or x.scalar is not None or slope == 0:
        return None
    if x.name in STRUCTURAL:
        r = rep.log_affine(offset, slope, x.inputs[0])
        return r and _moved_log(x, r)
    if x.body is not None:
        return rep.log_affine(offset, slope, rep.inside(x))
    if x.again is not None:
        return _log_again(rep, offset, slope, x)
    inner = affine(x)
    if inner.base is not x:
        return rep.log_affine(offset + slope * inner.offset, slope * inner.slope, inner.base)
    if x.name in ("select_n", "concatenate"):
        return _log_of_pieces(rep, offset, slope, x)
    if offset == 0:
        if slope != 1:
            return _scaled(rep.log(x), slope)
        return _log(rep, x)
    if abs(offset) == abs(slope):
        if offset != 1:
            return _scaled(rep.log_beside_one(x, 1 if offset == slope else -1), offset)
        return log_beside_one(rep, x, round(slope))
    if offset > 0 > slope and offset > -slope:
        # offset + slope x = (offset + slope) - slope (1 - x): an epsilon that the 1 has absorbed
        r = rep.log_beside_one(x, -1)
        if r is not None and r.negative is None:
            rest = math.log(offset + slope)
            value = logaddexp(r.value + math.log(-slope), rest)
            return r._replace(value=value, floored=True)
    r = rep.log(x)
    if r is None or not nonnegative(x):
        return None
    b = r.value + math.log(abs(slope))
    a = jnp.full_like(b, math.log(abs(offset)))
    if offset * slope > 0:
        negative = None if offset > 0 else jnp.full(b.shape, True)
        return joined(logaddexp(a, b), r, negative=negative, floored=True)
    return joined(logsubexp(a, b), r, negative=a < b if offset > 0 else a > b, cancels=True)


def _log_again(rep, offset, slope, x):
    """The logarithm of a result of a scan or cond: that of its body, in another scan or cond."""
    found = []

    def form(n):
        r = type(rep)().log_affine(offset, slope, n)
        found.append(r)
        r = plain_log(offset, slope, n) if r is None else r
        negative = jnp.zeros(r.value.shape, bool) if r.negative is None else r.negative
        return r.value, jnp.broadcast_to(negative, r.value.shape)

    value, negative = x.again(form)
    informed = [r for r in found if r is not None]
    if not informed:
        return None
    signed = any(r.negative is not None for r in informed) or len(informed) < len(found)
    return joined(value, *informed, negative=negative if signed else None)


def _scaled(r, factor):
    if r is None:
        return None
    negative = flipped(r.value, r.negative) if factor < 0 else r.negative
    return r._replace(value=r.value + math.log(abs(factor)), negative=negative)


def _log_of_scaled_dot(n):
    """Logarithm of a product of matrices, each brought to order 1 first."""
    values = [widen(i.value) for i in n.inputs]
    scales = [power_of_two(jnp.max(abs(lax.stop_gradient(v)), initial=0)) for v in values]
    params = dict(n.eqn.params, preferred_element_type=values[0].dtype)
    v = n.eqn.primitive.bind(*(v / s for v, s in zip(values, scales, strict=True)), **params)
    return Log(leaf_log(v) + sum(map(jnp.log, scales)), v < 0, cancels=True)


def _log_of_scatter_add(rep, n):
    """Logarithm of sums over segments: the largest term of each is taken out of it."""
    if (r := rep.log(n.inputs[2])) is None or r.negative is not None:
        return None
    add, largest, shift = segments(n, r.value, -jnp.inf)
    return joined(leaf_log(add(jnp.exp(r.value - shift))) + largest, r)


def segments(n: Node, x: jax.Array, lowest: float):
    """Return the sum over segments that `n` is, the largest of `x` in each, and so for each x."""
    p, where = n.eqn.params, n.inputs[1].value
    add = lambda v: n.eqn.primitive.bind(jnp.zeros(n.aval.shape, x.dtype), where, v, **p)
    options = {
        k: p[k] for k in ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    }
    start = jnp.full(n.aval.shape, lowest, x.dtype)
    largest = lax.stop_gradient(lax.scatter_max(start, where, x, **options))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return add, largest, jax.vjp(add, x)[1](largest)[0]  # the transpose of a sum is a gather
