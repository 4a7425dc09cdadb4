"""The derivative map: a jaxpr with the same values, whose derivatives are total.

Each primitive whose derivative can fail is replaced by its *shadow*: a copy that computes exactly
the same, but differentiates by a rule in which zero absorbs (`_linear`). The rule is the
primitive's own, traced once and mapped like any other program; where that rule over- or underflows
on the way to a representable result, the one in `RULES` takes its place.

The map keeps the structure: equations are replaced one for one, in the jaxprs of jit, scan, while,
cond, remat and shard_map too, and in the rules of custom_jvp and custom_vjp. It is memoised by
jaxpr, so what jax has cached for a jaxpr (compiled code, derivatives) is found again.
"""

import functools
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .._jax import ad
from .._numerics import power_of_two
from ._linear import absorb, is_plain

# Primitives with a derivative that multiplies. Others (sums, selections, shapes) are linear, or
# unknown here and left alone.
SHADOWED = frozenset(
    """
    mul div rem pow integer_pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p log2 logistic
    sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh abs max min one_minus_square
    erf erfc erf_inv lgamma digamma polygamma igamma igammac regularized_incomplete_beta
    random_gamma bessel_i0e bessel_i1e polynomial dot_general conv_general_dilated
    reduce_max reduce_min reduce_prod cumprod cummax cummin cumlogsumexp scatter-mul
    cholesky triangular_solve tridiagonal_solve custom_linear_solve lu qr householder_product
    eig eigh svd
    """.split()
)


def _reciprocal_scale(*values):
    """A power of two, constant to derivatives, that brings the largest magnitude to order 1.

    Multiplying by it is exact. A chain of divisions would not do: XLA turns x / s / s into
    x / (s * s), and the square over- or underflows after all.
    """
    return 1 / power_of_two(functools.reduce(jnp.maximum, map(abs, values)))


def _arctan2_partial(along, across):
    """`along / (along^2 + across^2)`, whose squares may over- or underflow."""
    scale = _reciprocal_scale(along, across)
    a, b = along * scale, across * scale
    return a / (a * a + b * b) * scale


def _arcsinh_partial(x):
    """`1 / sqrt(1 + x^2)`, whose square may overflow."""
    scale = _reciprocal_scale(x, jnp.ones_like(x))
    a = x * scale
    return lax.rsqrt(a * a + scale * scale) * scale


def _polynomial_terms(count):
    """The terms of `lax.polynomial`, by powers of x: the primitive's own transpose has no zero."""

    def of_x(out, x, *rest):
        *coefficients, t = rest
        slope = jnp.zeros_like(out)
        for k, c in reversed([*enumerate(coefficients)][1:]):
            slope = slope * x + k * c
        return slope * t

    def of_coefficient(k):
        power = lambda x: lax.integer_pow(x, k)
        return lambda out, x, *rest: jnp.broadcast_to(
            power(x) * rest[-1] if k else rest[-1], out.shape
        )

    return of_x, *map(of_coefficient, range(count - 1))


# For each operand its term of the tangent, from the result, the operands and its own tangent; or a
# function that makes as many terms as there are operands.
RULES: dict[Any, Any] = {
    lax.div_p: (
        lambda out, x, y, t: t / y,
        # Not by the square of y, which underflows at 1e-25.
        lambda out, x, y, t: -(out * (1 / y)) * t,
    ),
    lax.atan2_p: (
        lambda out, y, x, t: _arctan2_partial(x, y) * t,
        lambda out, y, x, t: -_arctan2_partial(y, x) * t,
    ),
    lax.asinh_p: (lambda out, x, t: _arcsinh_partial(x) * t,),
    lax.acosh_p: (lambda out, x, t: lax.rsqrt(x - 1) * lax.rsqrt(x + 1) * t,),
}
if (_polynomial_p := getattr(lax, "polynomial_p", None)) is not None:  # since jax 0.12
    RULES[_polynomial_p] = _polynomial_terms


def _rule_from_terms(primitive, primals, tangents, **params):
    """The JVP rule, in jax's form, of a primitive with an entry in `RULES`."""
    out = primitive.bind(*primals, **params)
    rules: Any = RULES[primitive]
    if callable(rules):
        rules = rules(len(primals))
    terms = [
        term(out, *primals, t)
        for term, t in zip(rules, tangents, strict=True)
        if type(t) is not ad.Zero
    ]
    return out, sum(terms[1:], start=terms[0])


@_jax.cache()
def _jvp_rule(primitive, avals, nonzero, params):
    real = not any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in avals)
    own = partial(_rule_from_terms, primitive) if real and primitive in RULES else None
    rule, out_nonzero = _jax.trace_jvp(primitive, avals, nonzero, dict(params), own)
    is_tangent = (False,) * len(avals) + (True,) * sum(nonzero)
    return absorb(rule, is_tangent, map_equation)[0], out_nonzero


def _shadow_jvp(primitive, primals, tangents, **params):
    nonzero = tuple(type(t) is not ad.Zero for t in tangents)
    avals = tuple(map(jax.typeof, primals))
    rule, out_nonzero = _jvp_rule(primitive, avals, nonzero, tuple(params.items()))
    values = _jax.inline(rule, [*primals, *(t for t in tangents if type(t) is not ad.Zero)])
    outs, given = values[: len(out_nonzero)], iter(values[len(out_nonzero) :])
    out_tangents = [
        next(given) if nz else ad.Zero(jax.typeof(out).to_tangent_aval())
        for out, nz in zip(outs, out_nonzero, strict=True)
    ]
    return (outs, out_tangents) if primitive.multiple_results else (outs[0], out_tangents[0])


_PREFIX = "robust_"
_shadows: dict[Any, Any] = {}
_originals: dict[Any, Any] = {}


def shadow(primitive: Any) -> Any:
    """Return the primitive that computes what `primitive` does and has total derivatives."""
    if primitive not in _shadows:
        _shadows[primitive] = _jax.copy_primitive(
            primitive, _PREFIX + primitive.name, partial(_shadow_jvp, primitive), derivatives
        )
        _originals[_shadows[primitive]] = primitive
    return _shadows[primitive]


_mapped: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_unchanged: WeakSet[Any] = WeakSet()


def derivatives(closed: Any) -> Any:
    """Return `closed` with total derivatives; itself if there is nothing to change."""
    if closed in _unchanged:
        return closed
    if closed not in _mapped:
        eqns = [map_equation(eqn) for eqn in closed.jaxpr.eqns]
        if all(new is old for new, old in zip(eqns, closed.jaxpr.eqns, strict=True)):
            _unchanged.add(closed)
            return closed
        _mapped[closed] = _jax.with_eqns(closed, eqns)
        _unchanged.add(_mapped[closed])
    return _mapped[closed]


def map_equation(eqn: Any) -> Any:
    """Return `eqn` with total derivatives; itself if there is nothing to change."""
    name = eqn.primitive.name
    if name in _jax.CALLS or name in ("scan", "while", "cond"):
        return _map_inside(eqn)
    if name == "custom_jvp_call":
        return _jax.with_jvp_rule(_map_inside(eqn), _absorb_rule)
    if name == "custom_vjp_call":
        return _jax.with_vjp_rules(_map_inside(eqn), derivatives, _absorb_rule)
    if name in SHADOWED and _can_fail(eqn):
        return eqn.replace(primitive=shadow(eqn.primitive))
    return eqn


def _absorb_rule(closed, linear):
    return absorb(closed, linear, map_equation)[0]


def _map_inside(eqn):
    subs = _jax.subjaxprs(eqn)
    new = {name: [derivatives(sub) for sub in jaxprs] for name, jaxprs in subs.items()}
    pairs = ((a, b) for name in subs for a, b in zip(subs[name], new[name], strict=True))
    if all(a is b for a, b in pairs):
        return eqn
    eqn = _jax.with_subjaxprs(eqn, new)
    policy = eqn.params.get("policy")
    return eqn.replace(params=eqn.params | {"policy": _policy(policy)}) if policy else eqn


@_jax.cache()
def _policy(policy):
    """A checkpoint policy that is asked about the primitives that the user knows."""
    original = lambda primitive: _originals.get(primitive, primitive)
    return lambda primitive, *args, **params: policy(original(primitive), *args, **params)


def _can_fail(eqn):
    """Tell whether the derivative multiplies by anything but finite nonzero constants."""
    if not _jax.has_jvp(eqn.primitive):
        return False
    if not any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
        return False
    if eqn.primitive is lax.mul_p:
        return not any(map(is_plain, eqn.invars))
    if eqn.primitive is lax.div_p:
        return not is_plain(eqn.invars[1])
    return True


def is_arithmetic(name: str) -> bool:
    """Tell whether a primitive is one whose derivative multiplies, or a shadow of such a one."""
    return original_name(name) in SHADOWED


def original_name(name: str) -> str:
    """Return the name of a primitive; of a shadow, that of its original."""
    return name.removeprefix(_PREFIX)


def readable_name(name: str) -> str:
    """Return the name of a primitive for people: a shadow is named after its original."""
    original = original_name(name)
    return name if name == original else f"{original} with a total derivative"
