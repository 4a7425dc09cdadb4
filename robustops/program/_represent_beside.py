"""How far a variable is from 1: its complement, and the logarithms of 1 - v and 1 + v."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from .._numerics import widen
from ..ops import logsumexp, softplus
from ._represent_logspace import (
    LN2,
    LOG_ZERO,
    Log,
    joined,
    leaf_log,
    log1mexp,
    log_erfc,
    logsubexp,
    minus,
    plain_log,
    xor,
)
from ._represent_nodes import (
    STRUCTURAL,
    Node,
    affine,
    factors,
    may_be_small,
    moved,
    nonnegative,
    same,
    underneath,
)


def log_beside_one(rep, n, sign):
    x = n.operand
    match n.name:
        case "expm1" if sign > 0:
            return Log(widen(x.value))
        case "tanh":
            return Log(LN2 - softplus(-2.0 * sign * widen(x.value)), cancels=True)
        case "logistic" if sign < 0:
            return Log(-softplus(widen(x.value)), cancels=True)
        case "erf":
            return Log(log_erfc(-sign * widen(x.value)), cancels=True)
        case "erfc" if sign < 0:
            value = lax.erf(widen(x.value))
            return Log(leaf_log(value), value < 0, cancels=True)
        case "cos":
            half = widen(x.value) / 2
            return Log(
                LN2 + 2 * leaf_log(jnp.sin(half) if sign < 0 else jnp.cos(half)), cancels=True
            )
        case "exp" if sign < 0:
            v = widen(x.value)
            return Log(jnp.maximum(v, 0) + log1mexp(abs(v)), v > 0, cancels=True)
        case "div" if sign < 0 and (r := _log_of_others(rep, n) or _log_of_rest(rep, n)):
            return r
        case "max" | "min" | "clamp" if r := _log_beside_bounds(rep, n, sign):
            return r
    if sign < 0 and (pair := factors(n)) and same(*pair):
        # 1 - a^2 = (1 - a)(1 + a)
        less, more = rep.log_beside_one(pair[0], -1), rep.log_beside_one(pair[0], 1)
        if less and more:
            negative = xor(less.negative, more.negative)
            return joined(less.value + more.value, less, more, negative=negative)
    r = rep.log(n)
    if r is None or not (nonnegative(n) or (sign < 0 and r.negative is not None)):
        return None
    if sign > 0:
        return joined(softplus(r.value), r, floored=True, cancels=False)
    value, above = jnp.maximum(r.value, 0) + log1mexp(abs(r.value)), r.value > 0
    if not nonnegative(n):
        value, above = jnp.where(r.negative, softplus(r.value), value), above & ~r.negative
    return joined(value, r, negative=above, cancels=True, floored=False)


def normalised_axes(n: Node) -> tuple[int, ...] | None:
    """Return the axes along which `n` is e / sum(e), or None if it is no such quotient."""
    e, total = n.inputs
    below = underneath(total)
    if below.name != "reduce_sum" or not same(below.inputs[0], e) or not nonnegative(e):
        return None
    axes = below.eqn.params["axes"]
    kept = tuple(1 if i in axes else s for i, s in enumerate(e.aval.shape))
    while total.name in ("broadcast_in_dim", "reshape", "copy", "stop_gradient"):
        if total.aval.shape == kept:
            return axes
        total = total.inputs[0]
    return axes if total.aval.shape in (kept, ()) else None


def _log_of_others(rep, n):
    """log(1 - p) of p = e / sum(e): the sum of the other e, formed without a subtraction."""
    axes = normalised_axes(n)
    r = rep.log(n.inputs[0])
    if axes is None or r is None:
        return None
    top = jnp.max(r.value, axes, keepdims=True)
    is_top = r.value == top
    alone = is_top & (jnp.sum(is_top, axes, keepdims=True) == 1)
    whole = logsumexp(r.value, axes, keepdims=True)
    rest = logsumexp(jnp.where(alone, -jnp.inf, r.value), axes, keepdims=True)
    others = jnp.where(alone, rest, logsubexp(jnp.broadcast_to(whole, r.value.shape), r.value))
    return joined(minus(others, whole), r, cancels=True)


def _log_of_rest(rep, n):
    """log(1 - p) of p = a / (a + b): that of b / (a + b), formed without a subtraction."""
    part, total = n.inputs
    if not nonnegative(part) or not nonnegative(total):
        return None
    offset, slope, base = affine(total)
    if base is not total and part.scalar is not None and part.scalar == offset:
        known, rest = nonnegative(base) and slope > 0, rep.log_affine(0.0, slope, base)
        rest = plain_log(0.0, slope, base) if rest is None else rest
    elif base is not total and slope == 1 and offset > 0 and same(base, part):
        known, rest = (
            True,
            Log(jnp.full(part.aval.shape, math.log(offset), widen(part.value).dtype)),
        )
    elif total.name in ("add", "add_any") and any(same(i, part) for i in total.inputs):
        other = total.inputs[same(total.inputs[0], part)]
        known, rest = nonnegative(other), rep.any_log(other)
    else:
        return None
    if not known:
        return None
    return joined(minus(rest.value, rep.any_log(total).value), rest, cancels=True)


def _log_beside_bounds(rep, n, sign):
    """log(1 - clip(x)): a floor only if the bound itself stays away from 1."""
    if n.name == "clamp":
        low, x, high = n.inputs
        bounds = [(jnp.maximum, low), (jnp.minimum, high)]
    else:
        x, bound = n.inputs if n.inputs[0].scalar is None else n.inputs[::-1]
        bounds = [(jnp.maximum if n.name == "max" else jnp.minimum, bound)]
    r = rep.log_beside_one(x, sign)
    if r is None or r.negative is not None or any(b.scalar is None for _, b in bounds):
        return None
    value, floored = r.value, r.floored
    for pick, bound in bounds:
        edge = 1 + sign * bound.scalar
        if edge < 0:
            return None
        if (pick is jnp.maximum) == (sign > 0):
            value = jnp.maximum(value, math.log(edge)) if edge else value
            floored = floored or edge > 0
        else:
            value = jnp.minimum(value, math.log(edge) if edge else LOG_ZERO)
    return r._replace(value=value, floored=floored)


def complement(rep, n):
    if not n.floating or n.scalar is not None:
        return None
    if n.body is not None:
        return rep.complement(rep.inside(n))
    if n.name in STRUCTURAL and n.name != "split":
        c = rep.complement(n.inputs[0])
        return c if c is None else moved(n, c)
    offset, slope, base = affine(n)
    if offset == 1 and base is not n and may_be_small(base):
        return -slope * widen(base.value)
    x = widen(n.operand.value) if n.operand.floating else n.operand.value
    match n.name:
        case "exp":
            return -jnp.expm1(jnp.minimum(x, 1.0))
        case "logistic":
            return jax.nn.sigmoid(-x)
        case "tanh":
            return 2 * jax.nn.sigmoid(-2 * x)
        case "erf":
            return lax.erfc(x)
        case "cos":
            return 2 * jnp.square(jnp.sin(x / 2))
    if (pair := factors(n)) and same(*pair):
        c = rep.complement(pair[0])
        return c if c is None else c * (1 + widen(pair[0].value))
    return None
