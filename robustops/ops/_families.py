"""Families of functions that contain their own derivatives, saturated at every order.

A partial such as 1/x is finite wherever x is normal, yet its derivative -1/x^2 overflows for
x < 5e-20 in float32. Written with one of these families, the derivatives of an op are finite to
every order: each member's derivative is another member.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._apart import apart
from .._numerics import flush, held, largest, smallest, widen
from .._spec import total
from .._zmul import zmul


@total(
    lambda out, x, y, *, c, k: ratio(jnp.ones_like(x), y, c=c, k=k),
    lambda out, x, y, *, c, k: ratio(x, y, c=-k * c, k=k + 1),
)
def _ratio(x, y, *, c, k):
    dtype = jnp.result_type(x, y)
    y = widen(y)
    zero = abs(y) < smallest(y.dtype)
    y = jnp.where(zero, 1, y)
    q = widen(x)
    for _ in range(k):
        # y^k overflows where x / y / y does not. The select keeps XLA from forming x / (y y); it is
        # on q too, as a condition on a constant y would be folded away.
        q = jnp.where(zero | (q == 0), 0, q / y)
    return held(c * q, dtype)


def ratio(x: jax.Array, y: jax.Array, *, c: float = 1.0, k: int = 1) -> jax.Array:
    """Return c x / y^k, saturated, and 0 where y is 0."""
    return _ratio(x, y, c=c, k=k)


def _next_reciprocal(out: jax.Array, y: jax.Array, c: float = 1.0, k: int = 1) -> jax.Array:
    return reciprocal(y, c=-c * k, k=k + 1)


@total(_next_reciprocal)
def reciprocal(y, c=1.0, k=1):
    """c / y^k, saturated, and 0 where y is 0."""
    z = widen(y)
    z = jnp.where(abs(z) < smallest(z.dtype), jnp.inf, z)
    if k == 1:
        q = c / z
        # Below 4 / y, which does not overflow for a normal number.
        return q if abs(c) < 4 and q.dtype == y.dtype else held(q, y.dtype)
    r = 1 / z
    q = c * r
    for _ in range(k - 1):
        q = q * r
    return held(q, y.dtype)


@total(lambda out, x, *, c, k, root: root_power(x, c=-c * k / root, k=k + root, root=root))
def _root_power(x, *, c, k, root):
    z = widen(x)
    tiny = smallest(z.dtype)
    nothing = (z if root == 2 else abs(z)) < tiny
    z = jnp.where(nothing, jnp.inf, z)
    # Not a power of 1 / root: that is lax.rsqrt to XLA, 2 ulp off, and overflows where c r^k fits.
    q = jnp.full_like(z, c)
    for _ in range(k // root):
        q = jnp.where(nothing, 0, q / z)  # the select: see _ratio
    if root == 2:
        r = jnp.sqrt(z)
    else:
        r = jnp.sign(z) * cube_root(jnp.minimum(abs(z), largest(z.dtype)))
        r = jnp.where(abs(z) == jnp.inf, z, r)
    return held(q / (r if k % root == 1 else r * r), x.dtype)


def cube_root(x: jax.Array, third: Any = 1 / 3, another: Any = 1 / 3) -> jax.Array:
    """The cube root of a positive normal number, to 1 ulp; XLA's for CPU takes 10 times as long."""
    y = jnp.exp(jnp.log(x) * third)
    return y + (x / (y * y) - y) * another


def root_power(x: jax.Array, *, c: float = 1.0, k: int = 1, root: int = 2) -> jax.Array:
    """Return c x^(-k/2), saturated, and 0 for x <= 0; with `root=3` c x^(-k/3), and 0 for x = 0."""
    return _root_power(x, c=c, k=k, root=root)


Polynomial = tuple[tuple[int, int, float], ...]  # terms (i, j, c) of c y^i log(x)^j
_ONE: Polynomial = ((0, 0, 1.0),)


def _collect(terms: list[tuple[int, int, float]]) -> Polynomial:
    """Add up the coefficients of equal powers (i of y, j of log x), dropping zeros."""
    sums: dict[tuple[int, int], float] = {}
    for i, j, c in terms:
        sums[i, j] = sums.get((i, j), 0.0) + c
    return tuple((i, j, c) for (i, j), c in sorted(sums.items()) if c)


def _power_dx(out, x, y, *, p, k):
    # d/dx [P(y, L) x^(y-k)] = [P_L + (y - k) P] x^(y-k-1), with L = log x
    terms = [(i, j - 1, c * j) for i, j, c in p if j]
    terms += [(i + 1, j, c) for i, j, c in p] + [(i, j, -k * c) for i, j, c in p]
    return _power(x, y, p=_collect(terms), k=k + 1)


def _power_dy(out, x, y, *, p, k):
    # d/dy [P(y, L) x^(y-k)] = [P_y + L P] x^(y-k); below 0 only integer y exist: 0
    terms = [(i - 1, j, c * i) for i, j, c in p if i] + [(i, j + 1, c) for i, j, c in p]
    return jnp.where(x < 0, 0, _power(x, y, p=_collect(terms), k=k))


@total(_power_dx, _power_dy)
def _power(x, y, *, p, k):
    dtype = x.dtype
    # The copy keeps XLA for CPU from writing the base to memory beside its power.
    positive = jnp.maximum(abs(widen(apart(x) + jnp.zeros_like(y))), smallest(widen(x).dtype))
    x, y = (flush(widen(a)) for a in (x + jnp.zeros_like(y), y + jnp.zeros_like(x)))
    zero = x == 0
    base = jnp.where(zero, 1, abs(x))

    # Two roots, with the factor between them: x^(y-k) may underflow where P x^(y-k) does not.
    # y - k is exact from k / 2 to 2^23; elsewhere x^y cannot underflow before the divisions by x.
    # For k = 0 the root is that of k = 1, so that the two first derivatives have it in common.
    def choose(exact, other):
        end = 2.0 ** jnp.finfo(y.dtype).nmant
        return jnp.where(y >= max(k, 1) / 2, jnp.where(y < end, exact, other), other)

    root = jnp.power(positive, choose(y - max(k, 1), y) / 2)
    left, rest = root, choose(base, 1)
    for _ in range(k):
        left = choose(left, jnp.where(left == 0, 0, left / base))  # the select: see _ratio
    log = jnp.log(base)
    q = jnp.zeros_like(root)
    for i, j, c in p:
        # Saturate term by term, so that opposite overflows cannot make a NaN.
        factor = flush(held(c * jax.lax.integer_pow(y, i), y.dtype))
        if j:
            factor = held(zmul(factor, jax.lax.integer_pow(log, j)), y.dtype)
        term = zmul(held(zmul(left, factor), y.dtype), root)
        term = term if k else term * rest
        q = held(q + held(term, y.dtype), y.dtype)
    integer = jnp.floor(y) == y
    odd = integer & (jnp.remainder(y - k, 2) == 1)
    q = jnp.where(x < 0, jnp.where(odd, -q, jnp.where(integer, q, 0)), q)
    return held(jnp.where(zero, _at_zero(y, p, k), q), dtype)


def _at_zero(y, p, k):
    """The value at x = 0: the limit where it is finite, 0 (a boundary's constant) elsewhere."""
    free = sum((c * jax.lax.integer_pow(y, i) for i, j, c in p if j == 0), jnp.zeros_like(y))
    return jnp.where(y == k, held(free, y.dtype), 0)


def power_dx(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return y x^(y-1), saturated, and 0 where it is no number."""
    return _power_dx(None, x, y, p=_ONE, k=0)


def power_dy(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return x^y log(x), saturated, and 0 for x <= 0."""
    return _power_dy(None, x, y, p=_ONE, k=0)
