"""What each primitive gives in the values mode: its own result where sound, else a total one.

A rule gets the node of an equation, with the plain result as its value, and returns the repaired
result. It selects, element by element: where the plain result is finite and nothing was lost on the
way to it, it stays as it is, bit for bit.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .._numerics import largest, narrow, smallest, widen
from .._spec import OPS
from ..ops import (
    safe_arctanh,
    safe_div,
    safe_exp,
    safe_log,
    safe_log1p,
    safe_log2,
    safe_log10,
    safe_pow,
    safe_rsqrt,
    safe_sqrt,
)
from ._differences import gamma_quotient, log_near_one
from ._instead import instead, unless_finite_throughout
from ._limits import limit
from ._represent import Representations
from ._represent_bounds import ORDINARY, clipped, finite
from ._represent_logspace import LOG_ZERO, Log
from ._represent_nodes import (
    STRUCTURAL,
    Node,
    affine,
    at_least_one,
    certain,
    factors,
    resolved,
    same,
)
from ._variances import variance

TOTAL = {op.replaces: op.fn for op in OPS.values() if op.replaces}


def saturate(y, finite):
    """Overflow of `finite` operands gives the largest finite number, and a derivative of 0."""
    big = largest(y.dtype)
    return jnp.where(finite & ~jnp.isfinite(y), jnp.clip(lax.stop_gradient(y), -big, big), y)


def unless_finite(y, other):
    return jnp.where(jnp.isfinite(y), y, other)


def unless_sound(sound, y, other):
    # The logarithms say nothing of 0 times a masked -inf.
    return jnp.where(sound | jnp.isnan(other), y, other)


def settled(x, dtype):
    """Return a wide `x` in `dtype`, saturated, with its infinities."""
    return jnp.where(jnp.isinf(x), x.astype(dtype), narrow(x, dtype))


def in_range(v, low=1.0):
    """Tell where |v| is so far from under- and overflow that 1 / v has digits too."""
    v = abs(v)
    return (v > smallest(v.dtype) * low) & (v < largest(v.dtype) / 8)


def precision(dtype) -> float:
    """The relative error up to which a result counts as sound."""
    return max(2.0**-11, 4 * float(jnp.finfo(dtype).eps))


def fits(n: Node, low: float = -math.inf) -> bool:
    """Tell whether the plain result of `n` lies above `low` and cannot overflow."""
    return (
        n.bounds[0] >= max(low, -largest(n.aval.dtype)) and n.bounds[1] < largest(n.aval.dtype) / 8
    )


def asked_once(tell: Callable[[Node], bool]) -> Callable[[Node], bool]:
    """Keep the answer on the node: along a chain of n products x x it would be asked 2^n times."""
    name = tell.__name__

    @functools.wraps(tell)
    def kept(n):
        if name not in n.told:
            n.told[name] = tell(n)
        return n.told[name]

    return kept


@asked_once
def explosive(n: Node) -> bool:
    """Tell whether an exponential in `n` may overflow for ordinary input."""
    if n.floating and fits(n):
        return False
    match n.name:
        case "exp" | "exp2" | "expm1" | "cosh" | "sinh":
            return True
        case "div" if vanishing(n.inputs[1]):
            return True
        case "mul" | "div" | "add" | "add_any" | "sub" | "max" | "min" | "select_n" | "dot_general":
            return any(map(explosive, n.inputs))
        case "reduce_sum" | "reduce_max" | "neg" | "integer_pow" | "square" | "cumsum" | "abs":
            return explosive(n.inputs[0])
    return n.name in STRUCTURAL and explosive(n.inputs[0])


@asked_once
def vanishing(n: Node) -> bool:
    """Tell whether `n` underflows with an exponential in it, as the density of an outlier does."""
    if not n.floating or n.bounds[0] > smallest(n.aval.dtype):
        return False
    match n.name:
        case "exp" | "exp2" | "erfc" | "logistic":
            return True
        case "mul" | "div" | "max" | "select_n" | "dot_general":
            return any(map(vanishing, n.inputs))
        case "add" | "add_any":
            from_minus_one = n.bounds[0] == 0 and any(i.scalar for i in n.inputs)  # elu(x) + 1
            return from_minus_one or all(map(vanishing, n.inputs))
        case "reduce_sum" if at_least_one(n):
            return False
        case "reduce_sum" | "reduce_max" | "integer_pow" | "square" | "cumsum":
            return vanishing(n.inputs[0])
    return n.name in STRUCTURAL and vanishing(n.inputs[0])


@asked_once
def powerful(n: Node) -> bool:
    """Tell whether `n` is of second or higher degree in something of unknown size.

    The bounds of such a one are those of ordinary input, and do not count: they would call
    x^2 / (x^2 + 1) sound, which is inf / inf at 1e20.
    """
    if n.name == "div" and powerful(n.inputs[1]):
        return True
    if not n.floating or max(map(abs, n.bounds)) < ORDINARY:
        return False
    match n.name:
        case "mul" | "dot_general":
            return not any(i.known for i in n.inputs) or any(map(powerful, n.inputs))
        case "square":
            return True
        case "integer_pow":
            return abs(n.eqn.params["y"]) > 1
        case "pow":
            return n.inputs[1].scalar is None or abs(n.inputs[1].scalar) > 1
        case "sub" if n.bounds[0] >= 0:  # from its own minimum, say: its size is no matter
            return False
        case "add" | "add_any" | "sub" | "max" | "min":
            return any(map(powerful, n.inputs))
        case "reduce_sum" | "neg" | "div":
            return powerful(n.inputs[0])
    return n.name in STRUCTURAL and powerful(n.inputs[0])


def accurate(rep: Representations, n: Node) -> jax.Array | None:
    """Return the value of `n` with the digits that 1 - p or log(1 + p) has lost, or None."""
    if n.name == "log":
        near = log_near_one(n.inputs[0])
        return near and jnp.where(near[1], near[0].astype(n.aval.dtype), n.value)
    offset, slope, base = affine(n)
    if base is n or not offset or offset != -slope:
        return None
    c = rep.complement(base)
    if c is None:
        return None
    lost = abs(n.value) < min(0.25, 8192 * float(jnp.finfo(n.aval.dtype).eps)) * abs(offset)
    return jnp.where(lost, narrow(offset * c, n.aval.dtype), n.value)


def from_log(r: Log, dtype):
    y = safe_exp(r.value)
    return narrow(y if r.negative is None else jnp.where(r.negative, -y, y), dtype)


def by_log(rep: Representations, n: Node, sound, q):
    """Return `q`, a product or quotient `n`, where it is sound, else `n` by its logarithm.

    A 0 that did not underflow is sound: by its logarithm it would be a constant.
    """
    r = rep.any_log(n)
    zero = (r.value < LOG_ZERO / 2) & jnp.isfinite(q)
    return unless_sound(sound | zero, q, from_log(r, q.dtype))


# Each logarithm's op and the natural logarithm of its base; jax 0.10 has no primitive log2.
LOGARITHMS = {
    "log": (safe_log, 1.0),
    "log1p": (safe_log1p, 1.0),
    "log2": (safe_log2, math.log(2)),
    "log10": (safe_log10, math.log(10)),
}


def _log(rep, n):
    x, naive = n.inputs[0], n.value
    least = -1 + 2**-10 if n.name == "log1p" else smallest(naive.dtype)
    if fits(x, least) and not powerful(x):
        return naive
    total, unit = LOGARITHMS[n.name]
    if n.name != "log1p":
        v, r = x.value, rep.log(x)
    else:
        v = 1 + x.value
        offset, slope, base = affine(x)
        r = rep.log_affine(offset + 1, slope, base)
    if r is None:
        return unless_finite(naive, total(x.value))
    # 1 / v^2 has digits too within the roots of the range, as the derivative of a quotient needs.
    bad = ~((v > 0) & in_range(v if r.floored else v * v))
    if r.cancels and not r.floored:
        tolerance = precision(naive.dtype) * jnp.maximum(1, abs(r.value))
        bad |= ~(abs(widen(naive) * unit - r.value) <= tolerance)
    zero = (r.value < LOG_ZERO / 2) & (r.value > -jnp.inf)
    y = settled(jnp.where(zero, math.log(smallest(v.dtype)), r.value) / unit, naive.dtype)
    odd = jnp.isnan(y) if r.negative is None else jnp.isnan(y) | r.negative
    return jnp.where(bad, jnp.where(odd, total(x.value), y), naive)


def _exp(rep, n):
    x, naive = n.inputs[0], n.value
    y = naive if fits(n) else unless_finite(naive, safe_exp(x.value))
    known = rep.product(x)
    if known is None:
        return y
    product, zero = known
    return jnp.where(zero, narrow(product, naive.dtype), y)


def _div(rep, n):
    (x, y), q = n.inputs, n.value
    fitting = fits(n) and fits(x) and (y.bounds[0] > smallest(q.dtype) or y.scalar)
    a, b = (x, y) if fitting else map(rep.resolved, n.inputs)
    both = powerful(a) and powerful(b)
    extreme = explosive(a) or explosive(b) or vanishing(b) or both
    if fitting and not extreme:
        return q
    return _quotient(rep, n, extreme)


def uncast(n: Node) -> jax.Array | None:
    """Return `n` as it was before a cast to a smaller range, where a sum overflows."""
    if n.name != "convert_element_type" or not n.inputs[0].floating:
        return None
    v = n.inputs[0].value
    return v if largest(v.dtype) > largest(n.aval.dtype) else None


def _quotient(rep, n, extreme):
    (x, y), q = n.inputs, n.value
    if (wide := uncast(x)) is not None:
        total = uncast(y)
        exact = narrow(safe_div(wide, widen(y.value) if total is None else total), q.dtype)
        q = jnp.where(jnp.isfinite(x.raw) & jnp.isfinite(y.raw), q, exact)
    better = [accurate(rep, x), accurate(rep, y)]
    a, b = (i.value if v is None else v for i, v in zip((x, y), better, strict=True))
    if any(v is not None for v in better):
        q = a / b
    q = unless_finite(q, safe_div(a, b))
    if not extreme:
        return q
    return by_log(rep, n, in_range(a) & in_range(b), q)


# The rounding of log(1 + p) shows in a product with more than this.
MAGNIFYING = 256.0


def _mul(rep, n):
    (x, y), q = n.inputs, n.value
    a, b = x.value, y.value
    masked = x is not y and (
        any(map(is_mask, n.inputs))
        or not (finite(x.bounds) and finite(y.bounds))
        or is_weighted(x, y)
        or is_weighted(y, x)
    )
    for i, other in ((x, y), (y, x)):
        if i.name == "log" and max(map(abs, other.bounds)) > MAGNIFYING:
            if (better := accurate(rep, i)) is not None:
                q = jnp.where(abs(other.value) > MAGNIFYING, better * other.value, q)
    if fits(n) and not masked:
        return q
    if x is not y:
        q = instead(q, jnp.where(((a == 0) | (b == 0)) & jnp.isnan(q), 0, q))
    if not fits(n):
        q = saturate(q, jnp.isfinite(a) & jnp.isfinite(b))
    wide = [i for i in n.inputs if explosive(i)]
    if not wide or (len(wide) == 1 and wide[0].scalar is not None):
        return q
    sound = functools.reduce(jnp.logical_and, (in_range(i.value) for i in wide))
    return by_log(rep, n, sound, q)


def is_mask(n: Node) -> bool:
    """Tell whether `n` is a mask: a boolean or integer as a number, or a constant with zeros."""
    if n.known:
        return n.bounds[0] <= 0 <= n.bounds[1]
    while n.name in STRUCTURAL:
        n = n.inputs[0]
        if not n.floating:
            return True
    return False


def is_weighted(w: Node, x: Node) -> bool:
    """Tell whether `w` is a probability and `x` may be the -inf of an entry masked beside it."""
    return 0 <= w.bounds[0] <= smallest(w.aval.dtype) and w.bounds[1] <= 1 and x.bounds[0] < -1


def is_input(n: Node) -> bool:
    """Tell whether `n` is an input of the program, which may have been masked by -inf."""
    while n.name in STRUCTURAL:
        n = n.inputs[0]
    return n.eqn is None and n.scalar is None and n.body is None


def is_largest(n: Node) -> bool:
    """Tell whether `n` is a maximum, or a logsumexp: infinite only with all that it is of."""
    n = resolved(n)
    while n.name in STRUCTURAL or n.name == "select_n":
        n = resolved(n.inputs[-1])
    return n.name in ("max", "reduce_max") or (n.name == "add" and any(map(is_largest, n.inputs)))


def _uncancelled(n: Node) -> jax.Array:
    """Return `n`; of a root r = sqrt(a^2 + c) and a, as c / (r + a) where r - a has lost 8 bits."""
    x, y = n.inputs
    s = n.value
    for a, root, sign in ((x, y, -1.0 if n.name == "sub" else 1.0), (y, x, 1.0)):
        r = resolved(root)
        if r.name != "sqrt":
            continue
        offset, slope, base = affine(resolved(r.inputs[0]))
        pair = factors(resolved(base))
        if a.scalar and abs(offset - a.scalar**2) <= 2.0**-23 * offset:
            rest = slope * base.value
        elif offset > 0 and slope == 1 and pair and same(resolved(pair[0]), resolved(a)):
            rest = offset if same(*pair) else None
        else:
            rest = None
        if rest is not None:
            toward = -a.value if n.name == "sub" else a.value
            other = sign * rest / (root.value - toward)
            return jnp.where((toward < 0) & (abs(s) < abs(a.value) / 256), other, s)
    return s


def _add(rep, n):
    (x, y), s = n.inputs, _uncancelled(n)
    if (quotient := gamma_quotient(n)) is not None:
        s = jnp.where(quotient[1], quotient[0].astype(s.dtype), s)
    if fits(n):
        return s
    return saturate(s, jnp.isfinite(x.value) & jnp.isfinite(y.value))


def _sub(rep, n):
    (x, y), s = n.inputs, _add(rep, n)
    a, b = x.value, y.value
    if (not finite(x.bounds) and not finite(y.bounds)) or (is_input(x) and is_largest(y)):
        # log(0 / 0): what is masked stays masked; an infinite maximum is 0 from itself.
        s = jnp.where((a == b) & jnp.isinf(a), jnp.minimum(a, 0), s)
    if (spread := variance(n)) is not None:
        # E[x^2] - E[x]^2 has lost as many bits as the quotient is small.
        found, sound = spread
        s = jnp.where(sound & (abs(s) < abs(a) / 256), found.astype(s.dtype), s)
    return s


def _pow(rep, n):
    x, y = n.inputs
    if y.scalar in (0.5, -0.5):
        return _sqrt(rep, n)
    if fits(n) and x.bounds[0] > 0:
        return n.value
    q, r = unless_finite(n.value, safe_pow(x.value, y.value)), rep.log(x)
    if r is None:
        return q
    sound = in_range(x.value) | (r.value < LOG_ZERO / 2)
    if r.negative is not None:
        sound |= r.negative
    return unless_sound(sound, q, from_log(Log(widen(y.value) * r.value), q.dtype))


def _sqrt(rep, n):
    x, y = n.inputs[0], n.value
    inverse = n.name == "rsqrt" or (n.name == "pow" and n.inputs[1].scalar < 0)
    eps = float(jnp.finfo(y.dtype).eps)
    # Not of a variance, whose operand is scaled: each layer norm would be formed twice.
    squared = not inverse and powerful(x) and affine(x).slope == 1
    if fits(x, smallest(y.dtype) / eps) and not squared:
        return y
    y = unless_finite(y, (safe_rsqrt if inverse else safe_sqrt)(x.value))
    better, root = accurate(rep, x), rep.root(x)
    if better is not None:
        y = (safe_rsqrt if inverse else safe_sqrt)(better)
    if root is None:
        return y
    if inverse:
        root = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), widen(y))
    return unless_sound(in_range(x.value, 1 / eps), y, settled(root, y.dtype))


def _atanh(rep, n):
    x, y = n.inputs[0], n.value
    # atanh(x) = (log(1 + x) - log(1 - x)) / 2
    more, less = rep.log_beside_one(x, 1), rep.log_beside_one(x, -1)
    if more is None or less is None:
        return unless_finite(y, safe_arctanh(x.value))
    alternative = (more.value - less.value) / 2
    sound = jnp.isfinite(y)
    if not (more.floored or less.floored):
        error = abs(widen(y) - alternative)
        sound &= error <= precision(y.dtype) * jnp.maximum(1, abs(alternative))
    return jnp.where(sound, y, settled(alternative, y.dtype))


def _integer_pow(rep, n):
    x, y = n.inputs[0].value, n.value
    power = n.eqn.params.get("y", 2)
    if power > 0 and power % 2 == 0 and (root := resolved(n.inputs[0])).name == "sqrt":
        # At 0 the derivative of sqrt(s)^2 is that of s, which the infinite one of sqrt hides.
        s = root.inputs[0]
        if s.bounds[0] <= 0:
            y = jnp.where(s.value == 0, lax.integer_pow(s.value, power // 2), y)
    if fits(n):
        return y
    if power < 0:
        return unless_finite(y, safe_div(1.0, lax.integer_pow(x, -power)).astype(y.dtype))
    return saturate(y, jnp.isfinite(x))


def _elementwise(rep, n):
    """A function without a rule of its own: overflow saturates."""
    if fits(n):
        return n.value
    finite = functools.reduce(jnp.logical_and, (jnp.isfinite(i.value) for i in n.inputs))
    return saturate(n.value, finite)


def _select(rep, n):
    """where(count > 0, total / count, nan) is a quotient: 0 if the count is, as elsewhere.

    where(isinf(x), c, x) is what the program makes of an x that is not finite, repaired or not.
    """
    which = n.inputs[0]
    if any(reaches(case, x) for x in questioned(which) for case in n.inputs[1:]):
        plain = rep.plain(which)
        if plain is not which.value:
            return _jax.bind(n.eqn, plain, *(i.value for i in n.inputs[1:]))[0]
    for i, case in enumerate(n.inputs[1:]):
        other = resolved(n.inputs[2 - i]) if len(n.inputs) == 3 else n
        which = resolved(n.inputs[0])
        counts = which.name in ("gt", "ne") and not certain(which)
        if is_nan(case) and other.name == "div" and counts:
            count, zero = map(resolved, which.inputs)
            if zero.scalar == 0 and same(count, resolved(other.inputs[1])):
                return n.inputs[2 - i].value
    return n.value


def questioned(test: Node) -> list[Node]:
    """Return what `test` asks to be finite, NaN or infinite, element by element."""
    test = resolved(test)
    if test.name in ("not", "and", "or"):
        return [x for i in test.inputs for x in questioned(i)]
    if test.name == "is_finite":
        return [resolved(test.inputs[0])]
    if test.name not in ("eq", "ne"):
        return []
    x, y = map(resolved, test.inputs)
    if x.scalar is not None:
        x, y = y, x
    if not x.floating or not (same(x, y) or (y.scalar is not None and math.isinf(y.scalar))):
        return []
    x = resolved(x.inputs[0]) if x.name == "abs" else x
    return [] if is_largest(x) else [x]  # any shift will do in a logsumexp


def reaches(n: Node, x: Node, depth: int = 3) -> bool:
    """Tell whether `n` is computed from `x` in a few steps."""
    n = resolved(n)
    return same(n, x) or (depth > 0 and any(reaches(i, x, depth - 1) for i in n.inputs))


def is_nan(n: Node) -> bool:
    """Tell whether `n` is the constant NaN."""
    n = resolved(n)
    while n.name in STRUCTURAL:
        n = resolved(n.inputs[0])
    return n.scalar is not None and math.isnan(n.scalar)


DOMAINS = {"acos": (-1.0, 1.0), "asin": (-1.0, 1.0), "acosh": (1.0, math.inf)}


def _by_op(rep, n):
    """A function of the catalogue."""
    low, high = DOMAINS.get(n.name, (-math.inf, math.inf))
    if n.name in ("acos", "acosh") and (c := rep.complement(n.inputs[0])) is not None:
        return _beside_one(n, c)
    if fits(n) and low <= n.inputs[0].bounds[0] and n.inputs[0].bounds[1] <= high:
        return n.value
    return unless_finite(n.value, TOTAL[n.name](*(i.value for i in n.inputs)))


def _beside_one(n, c):
    """acos(1 - c) = 2 asin(sqrt(c / 2)) and acosh(1 - c) = 2 asinh(sqrt(-c / 2)) for a small c."""
    half, invert = (c / 2, lax.asin) if n.name == "acos" else (-c / 2, lax.asinh)
    near = (half >= 0) & (half < 2.0**-9)
    angle = 2 * invert(jnp.sqrt(jnp.where(near, half, 1)))
    other = unless_finite(n.value, TOTAL[n.name](n.inputs[0].value))
    return jnp.where(near, angle.astype(n.value.dtype), other)


def _reduce_sum(rep, n):
    x = n.inputs[0]
    if fits(n) or not n.eqn.params["axes"]:
        return n.value
    v = widen(lax.stop_gradient(x.value))
    scale = 2.0 ** -math.ceil(math.log2(max(2, v.size)))
    sum_of = functools.partial(jnp.sum, axis=n.eqn.params["axes"])
    rescued = sum_of(v * scale)
    big = largest(v.dtype)
    rescued = settled(jnp.clip(rescued, -big * scale, big * scale) / scale, n.value.dtype)
    finite = jnp.isfinite(sum_of(v * scale))
    return unless_finite(n.value, jnp.where(finite, rescued, n.value))


def _reduction(rep, n):
    """Overflow of a reduction saturates where its operand is finite throughout."""
    if fits(n):
        return n.value
    finite = functools.reduce(
        jnp.logical_and, (jnp.all(jnp.isfinite(i.value)) for i in n.inputs if i.floating)
    )
    return saturate(n.value, finite)


def _dot(rep, n):
    """A product of matrices is formed again, scaled down, only if an element of it overflowed."""
    y, (a, b) = n.value, n.inputs
    if n.name == "dot_general" and (is_absorbing(a, b) or is_absorbing(b, a)):
        z = unless_finite_throughout(y, functools.partial(_absorbed, n), a.value, b.value)
        y = instead(y, z)
    if fits(n):
        return y
    z = unless_finite_throughout(y, functools.partial(_scaled, n), a.value, b.value)
    return instead(jnp.where(abs(z) < largest(z.dtype), y, 0), z)


def _scaled(n, y, *operands):
    """The product of operands that are scaled down, where `y` is not finite."""
    scale = 2.0 ** -(jnp.finfo(widen(y).dtype).maxexp // 2 + 1)
    wide = [widen(v) * scale for v in operands]
    params = dict(n.eqn.params, preferred_element_type=wide[0].dtype)
    z = n.eqn.primitive.bind(*wide, **params)
    big = largest(y.dtype)
    for _ in operands:
        z = jnp.where(jnp.isfinite(z), jnp.clip(z / scale, -big, big), z)
    return unless_finite(y, z.astype(y.dtype))


def is_absorbing(w: Node, x: Node) -> bool:
    """Tell whether `w` may have zeros, which are to take out what is not finite in `x`."""
    weights = is_weighted(w, x) and resolved(w).name != "logistic"
    return is_mask(w) or not finite(w.bounds) or weights


def _absorbed(n, y, a, b):
    """The product in which 0 absorbs what is not finite, where all of that meets a 0."""
    product = lambda u, v: n.eqn.primitive.bind(u, v, **n.eqn.params)
    flags = lambda where: where.astype(y.dtype)
    met = product(flags(~jnp.isfinite(a)), flags(b != 0))
    met += product(flags(a != 0), flags(~jnp.isfinite(b)))
    return jnp.where(met > 0, y, product(unless_finite(a, 0), unless_finite(b, 0)))


def _convert(rep, n):
    x = n.inputs[0]
    if x.floating and largest(x.aval.dtype) < largest(n.aval.dtype) / 2:
        return _widened(rep.resolved(x), n.value)
    meant = x.scalar is not None and not math.isfinite(x.scalar)
    if fits(n) or not x.floating or meant:
        return n.value
    return saturate(n.value, jnp.isfinite(x.value))


def _widened(x, y):
    """Return `y`, the wider cast of `x`; of a power or product that overflowed, formed wide."""
    if fits(x) or not (pair := factors(x)):
        return y
    a, b = (i.value.astype(y.dtype) for i in pair)
    return jnp.where(jnp.isfinite(x.raw), y, a * b)


RULES = {
    "exp": _exp,
    "div": _div,
    "mul": _mul,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "sqrt": _sqrt,
    "rsqrt": _sqrt,
    "atanh": _atanh,
    "integer_pow": _integer_pow,
    "square": _integer_pow,
    "pow": _pow,
    "reduce_sum": _reduce_sum,
    "convert_element_type": _convert,
    "select_n": _select,
}
RULES |= dict.fromkeys(LOGARITHMS, _log)
RULES |= dict.fromkeys(("acos", "asin", "acosh", "expm1"), _by_op)
RULES |= dict.fromkeys(("exp2", "sinh", "cosh", "tan", "lgamma", "erf_inv"), _elementwise)
RULES |= dict.fromkeys(("dot_general", "conv_general_dilated"), _dot)
RULES |= dict.fromkeys(("cumsum", "cumprod", "reduce_prod", "scatter-add"), _reduction)


# `where` stands in many jitted functions that need no repair.
HAZARDS = RULES.keys() - {"select_n"}


def note_bounds(n: Node) -> None:
    """Narrow the bounds of `n` to those after repair: what comes of finite operands is finite."""
    if n.name in RULES and n.floating and all(finite(i.bounds) for i in n.inputs):
        n.bounds = clipped(n.bounds, n.aval.dtype)


def repaired(rep: Representations, n: Node) -> jax.Array:
    """Return the value that `n` has in the values mode."""
    rule = RULES.get(n.name)
    if not n.floating:
        return compared(rep, n) if n.name in _jax.NEGATED else n.value
    value = n.value if rule is None else rule(rep, n)
    if n.name in UNDEFINED and (tends := limit(rep, n)) is not None:
        at = UNDEFINED[n.name](rep, *n.inputs)
        value = jnp.where(at & jnp.isfinite(tends), tends, value)
    return healed(rep, n, value) if n.name in HEALING else value


def at_pole(rep, n):
    """Tell where `n` is infinite, or 0 / 0, which sin(x) / x^2 makes of its pole."""
    pole = rep.extended(n)
    at = jnp.zeros(n.aval.shape, bool) if pole is None else jnp.isinf(pole)
    n = rep.resolved(n)
    return at | jnp.isnan(n.raw) & (n.inputs[1].value == 0) if n.name == "div" else at


# Where an operation has no value, but may have a limit.
UNDEFINED = {
    "div": lambda rep, x, y: (x.value == 0) & (y.value == 0),
    "mul": lambda rep, x, y: (
        ((x.value == 0) & at_pole(rep, y)) | ((y.value == 0) & at_pole(rep, x))
    ),
    "pow": lambda rep, x, y: (x.value == 1) & at_pole(rep, y),
    **dict.fromkeys(("add", "add_any", "sub"), lambda rep, x, y: at_pole(rep, x) & at_pole(rep, y)),
}


def compared(rep, n):
    """Return a comparison of poles as the infinities that they are: not 0 < 1 of 1 / 0 < 1."""
    poles = [rep.extended(i) for i in n.inputs]
    if all(p is None for p in poles):
        return n.value
    operands = [i.value if p is None else p for p, i in zip(poles, n.inputs, strict=True)]
    return _jax.bind(n.eqn, *operands)[0]


# What makes a finite number of an infinity.
HEALING = frozenset("div exp exp2 expm1 max min clamp tanh logistic atan erf erfc rsqrt".split())


def healed(rep, n, value):
    """Return `value`, and what it is of a true pole where that is finite: 1 / (1 + 1 / 0) is 0."""
    poles = [rep.extended(i) for i in n.inputs]
    if all(p is None for p in poles) or (n.name == "exp" and rep.product(n.inputs[0]) is not None):
        return value
    at = functools.reduce(jnp.logical_or, (jnp.isinf(p) for p in poles if p is not None))
    operands = [i.value if p is None else p for p, i in zip(poles, n.inputs, strict=True)]
    (result,) = _jax.bind(n.eqn, *operands)
    return jnp.where(at & jnp.isfinite(result), result, value)
