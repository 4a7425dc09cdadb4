"""Products in which zero absorbs: what a derivative multiplies its tangents with.

A derivative rule is linear in its tangents. Its products `p * t`, quotients `t / d`, contractions,
convolutions and triangular solves become those of this file: the local partial `p` (of a solve, the
inverse of the matrix) counts as 0 where it is not finite, so a tangent or cotangent of exactly 0
gives exactly 0 and nothing else becomes NaN either.

Each is a primitive with the operands of the one that it replaces and a parameter `linear`, the
position of the tangent. Derivative and transpose are given in terms of the same primitives, so they
hold to every order. (A select around an ordinary product would have a wrong second derivative
where the partial is 0, as that of x^2 is at 0.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from .._jax import ad, batching
from .._zmul import vary_alike


def mul(p: jax.Array, t: jax.Array) -> jax.Array:
    """Return `p * t`, linear in `t`; 0 where `p` is 0 or not finite."""
    return absorbing_mul_p.bind(*vary_alike(p, t), linear=1, out_dtype=None)


def div(t: jax.Array, d: jax.Array) -> jax.Array:
    """Return `t / d`, linear in `t`; 0 where `d` is 0 or NaN."""
    return absorbing_div_p.bind(*vary_alike(t, d), linear=0)


def finite(p: jax.Array) -> jax.Array:
    """Return `p`, and 0 where it is not finite."""
    return jnp.where(jnp.isfinite(p), p, 0)


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """Return the sum of the terms of a tangent."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def _mul(x, y, *, linear, **params):
    p = (y, x)[linear]
    return jnp.where(jnp.isfinite(p) & (p != 0), lax.mul_p.bind(x, y, **params), 0)


def _div(t, d, *, linear):
    del linear  # the numerator, always
    return jnp.where(jnp.isnan(d) | (d == 0), 0, lax.div_p.bind(t, d))


def _contraction(primitive, x, y, *, linear, **params):
    operands = (x, finite(y)) if linear == 0 else (finite(x), y)
    return primitive.bind(*operands, **params)


def _solve(a, t, *, linear, **params):
    del linear  # the right-hand side, always
    used = _triangle(a, params)
    sound = jnp.all(jnp.isfinite(used), (-2, -1), keepdims=True)
    if not params["unit_diagonal"]:
        diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)
        sound &= jnp.all(diagonal != 0, -1)[..., None, None]
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    x = lax.linalg.triangular_solve_p.bind(jnp.where(sound, used, eye), t, **params)
    return jnp.where(sound, x, 0)


def _triangle(a, params):
    """The entries of `a` that a triangular solve reads, 0 elsewhere."""
    off = int(params["unit_diagonal"])
    return jnp.tril(a, -off) if params["lower"] else jnp.triu(a, off)


def _absorbing(primitive, value):
    abstract_eval = lambda x, y, *, linear, **params: primitive.abstract_eval(x, y, **params)[0]
    return _jax.new_primitive(f"absorbing_{primitive.name}", abstract_eval, value)


def _bilinear_jvp(primitive, primals, tangents, *, linear, **params):
    """d(x * y) = dx * y + x * dy, where the tangent's place is the linear one."""
    terms = []
    for i, t in enumerate(tangents):
        if type(t) is not ad.Zero:
            operands = vary_alike(t, primals[1]) if i == 0 else vary_alike(primals[0], t)
            terms.append(primitive.bind(*operands, linear=i, **params))
    return primitive.bind(*primals, linear=linear, **params), total(terms)


def _div_jvp(primals, tangents, *, linear):
    """d(t / d) = dt / d - (t / d) dd / d."""
    t, d = primals
    dt, dd = tangents
    out = absorbing_div_p.bind(t, d, linear=linear)
    terms = []
    if type(dt) is not ad.Zero:
        terms.append(div(dt, d))
    if type(dd) is not ad.Zero:
        terms.append(div(mul(-out, dd), d))
    return out, total(terms)


def _solve_jvp(primals, tangents, *, linear, **params):
    """d(a^-1 t) = a^-1 (dt - da a^-1 t), from the side that the matrix stands on."""
    a, t = primals
    da, dt = tangents
    solve = partial(absorbing_triangular_solve_p.bind, linear=linear, **params)
    out = solve(a, t)
    terms = []
    if type(dt) is not ad.Zero:
        terms.append(solve(a, dt))
    if type(da) is not ad.Zero:
        da = _triangle(da, params)
        da = da.conj() if params["conjugate_a"] else da
        da = jnp.matrix_transpose(da) if params["transpose_a"] else da
        moved = da @ finite(out) if params["left_side"] else finite(out) @ da
        terms.append(-solve(a, moved))
    return out, total(terms)


def _solve_transpose(ct, a, t, *, linear, **params):
    if type(ct) is ad.Zero:
        return [None, None]
    params["transpose_a"] = not params["transpose_a"]
    return [None, absorbing_triangular_solve_p.bind(a, ct, linear=linear, **params)]


def _mul_transpose(ct, x, y, *, linear, **params):
    p, t = (y, x) if linear == 0 else (x, y)
    grad = None if type(ct) is ad.Zero else _sum_to(mul(p, ct), t.aval)
    return [grad, None] if linear == 0 else [None, grad]


def _div_transpose(ct, t, d, *, linear):
    return [None if type(ct) is ad.Zero else _sum_to(div(ct, d), t.aval), None]


def _sum_to(x, aval):
    """Undo a broadcast from a scalar or along axes of length 1 (vmap leaves these implicit)."""
    if x.shape == aval.shape:
        return x
    axes = [i for i in range(x.ndim) if not aval.shape or aval.shape[i] != x.shape[i]]
    return jnp.sum(x, axes, keepdims=bool(aval.shape))


def _contraction_transpose(primitive, ct, x, y, *, linear, **params):
    if type(ct) is ad.Zero:
        return [None, None]
    p, t = (y, x) if linear == 0 else (x, y)
    avals = (t.aval, jax.typeof(p)) if linear == 0 else (jax.typeof(p), t.aval)
    rule = _contraction_transpose_rule(primitive, linear, avals, tuple(params.items()))
    (grad,) = _jax.inline(rule, [ct, p])
    return [grad, None] if linear == 0 else [None, grad]


@_jax.cache()
def _contraction_transpose_rule(primitive, linear, avals, params):
    rule = _jax.transpose_of(primitive, linear, avals, dict(params))
    return absorb(rule, (True, False))[0]


def _batcher(primitive):
    """The batching rule of the primitive that is replaced, absorbing."""

    def batcher(axis_data, args, dims, *, linear, **params):
        is_linear = (linear == 0, linear == 1)
        own = _jax.rewritten_batcher(primitive, lambda rule: absorb(rule, is_linear)[0])
        return own(axis_data, args, dims, **params)

    return batcher


absorbing_mul_p = _absorbing(lax.mul_p, _mul)
absorbing_div_p = _absorbing(lax.div_p, _div)
ad.primitive_jvps[absorbing_mul_p] = partial(_bilinear_jvp, absorbing_mul_p)
ad.primitive_jvps[absorbing_div_p] = _div_jvp
ad.primitive_transposes[absorbing_mul_p] = _mul_transpose
ad.primitive_transposes[absorbing_div_p] = _div_transpose
batching.defbroadcasting(absorbing_mul_p)
batching.defbroadcasting(absorbing_div_p)

_solve_p = lax.linalg.triangular_solve_p
absorbing_triangular_solve_p = _absorbing(_solve_p, _solve)
ad.primitive_jvps[absorbing_triangular_solve_p] = _solve_jvp
ad.primitive_transposes[absorbing_triangular_solve_p] = _solve_transpose
batching.fancy_primitive_batchers[absorbing_triangular_solve_p] = _batcher(_solve_p)

# The absorbing counterpart of each bilinear primitive, of division and of a triangular solve.
ABSORBING = {
    lax.mul_p: absorbing_mul_p,
    lax.div_p: absorbing_div_p,
    _solve_p: absorbing_triangular_solve_p,
}
# The one operand in which they are linear.
LINEAR_IN = {lax.div_p: 0, _solve_p: 1}
for _primitive in (lax.dot_general_p, lax.conv_general_dilated_p):
    _new = _absorbing(_primitive, partial(_contraction, _primitive))
    ad.primitive_jvps[_new] = partial(_bilinear_jvp, _new)
    ad.primitive_transposes[_new] = partial(_contraction_transpose, _primitive)
    batching.fancy_primitive_batchers[_new] = _batcher(_primitive)
    ABSORBING[_primitive] = _new

_absorbed: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()


def absorb(
    closed: Any, linear: Sequence[bool], primal: Callable | None = None
) -> tuple[Any, tuple[bool, ...]]:
    """Replace the products of a linear program by absorbing ones.

    Args:
      closed: A closed jaxpr, linear in some of its inputs: a derivative rule.
      linear: For each input whether it is one of those.
      primal: Maps each equation that no such input reaches; default: as it is.

    Returns:
      The new closed jaxpr, and for each output whether a linear input reaches it.
    """
    known = _absorbed.setdefault(closed, {})
    key = tuple(linear), primal
    if key not in known:
        known[key] = _absorb(closed, *key)
    return known[key]


def _absorb(closed, linear, primal):
    reached = {v for v, l in zip(closed.jaxpr.invars, linear, strict=True) if l}
    eqns = []
    for eqn in closed.jaxpr.eqns:
        mask = tuple(not isinstance(v, _jax.Literal) and v in reached for v in eqn.invars)
        if not any(mask):
            eqns.append(primal(eqn) if primal else eqn)
            continue
        out_mask: Sequence[bool] = [True] * len(eqn.outvars)
        if eqn.primitive in ABSORBING and sum(mask) == 1:
            position = mask.index(True)
            only = LINEAR_IN.get(eqn.primitive, position)
            if position == only and not is_plain(eqn.invars[1 - position]):
                params = eqn.params | {"linear": position}
                eqn = eqn.replace(primitive=ABSORBING[eqn.primitive], params=params)
        elif _jax.subjaxprs(eqn):
            eqn, out_mask = _absorb_inside(eqn, mask, primal)
        reached |= {v for v, r in zip(eqn.outvars, out_mask, strict=True) if r}
        eqns.append(eqn)
    out = tuple(not isinstance(v, _jax.Literal) and v in reached for v in closed.jaxpr.outvars)
    return _jax.with_eqns(closed, eqns), out


def is_plain(v: Any) -> bool:
    """Tell whether `v` is a finite nonzero constant of the program: it needs no care."""
    return isinstance(v, _jax.Literal) and bool(np.all(np.isfinite(v.val) & (v.val != 0)))


def _absorb_inside(eqn, mask, primal):
    """Absorb in the jaxprs of a jit, remat, call, cond, scan or linear solve; leave others."""
    name, subs = eqn.primitive.name, _jax.subjaxprs(eqn)
    if name == "scan":
        (body,) = subs["jaxpr"]
        consts, carry = _jax.scan_split(eqn)
        while True:
            new, out = absorb(body, mask, primal)
            carried = [a or b for a, b in zip(mask[consts : consts + carry], out, strict=False)]
            grown = (*mask[:consts], *carried, *mask[consts + carry :])
            if grown == mask:
                return _jax.with_subjaxprs(eqn, {"jaxpr": [new]}), out
            mask = grown
    if name == "cond":
        done = [absorb(branch, mask[1:], primal) for branch in subs["branches"]]
        out = [any(column) for column in zip(*(out for _, out in done), strict=True)]
        return _jax.with_subjaxprs(eqn, {"branches": [new for new, _ in done]}), out
    if name == "custom_linear_solve":
        return _absorb_linear_solve(eqn, mask, subs, primal)
    if name in _jax.CALLS:
        ((param, (body,)),) = subs.items()
        new, out = absorb(body, mask, primal)
        return _jax.with_subjaxprs(eqn, {param: [new]}), out
    return eqn, [True] * len(eqn.outvars)


def _absorb_linear_solve(eqn, mask, subs, primal):
    """Its functions are linear in their last arguments, as many as the right-hand side has."""
    everywhere = [True] * len(eqn.outvars)
    count = len(mask) - sum(eqn.params["const_lengths"])
    if any(mask[:-count]):
        return eqn, everywhere
    inner = [
        absorb(sub, (*[False] * (len(sub.jaxpr.invars) - count), *[True] * count), primal)[0]
        for sub in subs.get("jaxprs", ())
    ]
    return _jax.with_subjaxprs(eqn, {"jaxprs": inner} if inner else {}), everywhere
