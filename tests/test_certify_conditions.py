"""`certify` knows in a branch what chose it, and no more than that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustops as ro
from robustops import Range

WIDE = Range(-5.0, 5.0)
ROW = Range(-5.0, 5.0, (4,))
zero = lambda *operands: 0.0 * operands[0]
guarded = lambda test, f: lambda *x: lax.cond(test(*x), f, zero, *x)
doubled_log = lambda x: jnp.log(2 * x)


def clipped(g):
    norm = jnp.sqrt(jnp.sum(g * g) + 1e-12)
    return jnp.sum(lax.cond(norm > 1, lambda g, n: g / n, lambda g, n: g, g, norm))


def over(xs):
    def step(total, x):
        return lax.cond(x > 1, lambda t, x: jnp.tanh(t + jnp.log(x)), zero, total, x), None

    return lax.scan(step, 0.0, xs)[0]


PROVED = {
    "greater": (guarded(lambda x: x > 1, jnp.log), WIDE),
    "greater on the right": (guarded(lambda x: 1 < x, jnp.log), WIDE),
    "otherwise": (lambda x: lax.cond(x <= 1, zero, jnp.log, x), WIDE),
    "computed within": (guarded(lambda x: x > 1, doubled_log), WIDE),
    "computed before": (lambda x: guarded(lambda y: y > 1, jnp.log)(x + 1), WIDE),
    "fact of what it is made of": (
        lambda x: lax.cond(x > 0, lambda y: jnp.log(y), zero, x + 1),
        WIDE,
    ),
    "and": (guarded(lambda x: (x > 1) & (x < 2), lambda x: 1 / x + 1 / (3 - x)), WIDE),
    "or": (lambda x: lax.cond((x < 1) | (x > 2), zero, lambda x: jnp.log(x / (3 - x)), x), WIDE),
    "not": (guarded(lambda x: ~(x <= 1), jnp.log), WIDE),
    "not or": (guarded(lambda x: ~((x < 1) | (x > 2)), jnp.log), WIDE),
    "two operands": (
        guarded(lambda x, y: (x > 1) & (y < -1), lambda x, y: jnp.log(x) / y),
        WIDE,
        WIDE,
    ),
    "one above the other": (
        guarded(lambda x, y: x > y + 1, lambda x, y: jnp.log(x)),
        WIDE,
        Range(0.0, 5.0),
    ),
    "finite": (lambda x: guarded(jnp.isfinite, lambda y: y)(100 * x), WIDE),
    "all": (lambda x: jnp.sum(guarded(lambda x: jnp.all(x > 1), jnp.log)(x)), ROW),
    "not any": (lambda x: jnp.sum(guarded(lambda x: ~jnp.any(x <= 1), jnp.log)(x)), ROW),
    "nested": (
        guarded(
            lambda x: x > 1, lambda x: lax.cond(x < 2, lambda x: jnp.log(x / (3 - x)), zero, x)
        ),
        WIDE,
    ),
    "where within": (
        guarded(lambda x: x > 1, lambda x: jnp.where(x < 2, jnp.log(x), jnp.sqrt(x))),
        WIDE,
    ),
    "jit": (jax.jit(guarded(lambda x: x > 1, jax.jit(jnp.log))), WIDE),
    "remat": (jax.checkpoint(guarded(lambda x: x > 1, doubled_log)), WIDE),
    "norm": (clipped, ROW),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", PROVED)
def test_proved(name, grad):
    fn, *ranges = PROVED[name]
    certificate = ro.certify(fn, ranges, grad=grad)
    assert certificate.ok, certificate


VALUES_PROVED = {
    # Of the gradient jax 0.12 makes a scan of its own, which is given the predicate as numbers.
    "scan": (over, ROW),
    "integer": (guarded(lambda n: n > 0, lambda n: 1 / n), Range(0, 9, (), jnp.int32)),
    # Both branches are computed, and the derivatives of both meet.
    "vmap": (lambda x: jnp.sum(jax.vmap(guarded(lambda x: x > 1, lambda x: 1 / x))(x)), ROW),
}


@pytest.mark.parametrize("name", VALUES_PROVED)
def test_values_proved(name):
    fn, *ranges = VALUES_PROVED[name]
    assert ro.certify(fn, ranges, grad=False).ok


NOT_PROVED = {
    "below": (guarded(lambda x: x > -1, jnp.log), WIDE),
    "edge": (guarded(lambda x: x >= 0, jnp.log), WIDE),
    "the other branch": (lambda x: lax.cond(x > 1, zero, jnp.log, x), WIDE),
    "another operand": (guarded(lambda x, y: x > 1, lambda x, y: jnp.log(y)), WIDE, WIDE),
    "or": (guarded(lambda x, y: (x > 1) | (y > 1), lambda x, y: jnp.log(x)), WIDE, WIDE),
    "not and": (guarded(lambda x, y: ~((x <= 1) & (y > 1)), lambda x, y: jnp.log(x)), WIDE, WIDE),
    "exclusive or": (guarded(lambda x, y: (x > 1) ^ (y > 1), lambda x, y: jnp.log(x)), WIDE, WIDE),
    "neither of nan": (lambda x: lax.cond(jnp.sqrt(x) <= 1, zero, jnp.sqrt, x), WIDE),
    "nan is not equal": (
        lambda x: guarded(lambda r: r != 1, lambda r: r)(jnp.sqrt(x)),
        WIDE,
    ),
    "any": (lambda x: jnp.sum(guarded(lambda x: jnp.any(x > 1), jnp.log)(x)), ROW),
    "not all": (lambda x: jnp.sum(guarded(lambda x: ~jnp.all(x <= 1), jnp.log)(x)), ROW),
    "an earlier number": (
        lambda x: lax.fori_loop(0, 3, lambda i, c: guarded(lambda x: x > 1, jnp.log)(c) - 1 / c, x),
        WIDE,
    ),
}


@pytest.mark.parametrize("name", NOT_PROVED)
def test_not_proved(name):
    fn, *ranges = NOT_PROVED[name]
    assert not ro.certify(fn, ranges, grad=False).ok


def random_test(rng, depth):
    """A random predicate of two numbers."""
    if depth == 0:
        k, c = int(rng.integers(2)), float(rng.choice([-2, -1, 0, 0.5, 1, 3]))
        compare = rng.choice([jnp.greater, jnp.less, jnp.greater_equal, jnp.less_equal, jnp.equal])
        if rng.random() < 0.2:
            return lambda *v: compare(v[k], v[1 - k])
        return lambda *v: compare(v[k], c)
    a, b = random_test(rng, depth - 1), random_test(rng, depth - 1)
    kind = int(rng.integers(3))
    return lambda *v: (a(*v) & b(*v), a(*v) | b(*v), ~a(*v))[kind]


BRANCHES = (
    lambda x, y: jnp.log(x),
    lambda x, y: 1 / x,
    lambda x, y: jnp.sqrt(y) * x,
    lambda x, y: jnp.log(y + 2) / (x - 4),
    lambda x, y: jnp.exp(x) * y,
    lambda x, y: 1 / (x - y),
    lambda x, y: x**3,
)


def check(seed):
    """Compare the bounds of a random program with its values at many points."""
    rng = np.random.default_rng(seed)
    test = random_test(rng, int(rng.integers(3)))
    one, other = (BRANCHES[i] for i in rng.integers(len(BRANCHES), size=2))
    fn = lambda x, y: lax.cond(test(x, y), one, other, x, y)
    ends = [sorted(rng.choice([-4.0, -1.0, 0.0, 1e-30, 0.5, 1.0, 3.0], 2)) for _ in range(2)]
    certificate = ro.certify(fn, [Range(*e) for e in ends], argnums=(0, 1))
    special = [-2, -1, -1e-40, 0, 1e-40, 0.5, 1, 3]
    xs, ys = (
        np.concatenate([np.clip(special, *e), e, rng.uniform(e[0], e[1], 6)]).astype(np.float32)
        for e in ends
    )
    grid = [g.ravel() for g in np.meshgrid(xs, ys)]
    run = jax.jit(lambda *g: lax.map(lambda v: jax.value_and_grad(fn, (0, 1))(*v), g))
    value, gradients = run(*grid)
    finite = True
    for bound, found in zip(certificate.bounds, [value, *gradients], strict=True):
        found = np.asarray(found, np.float64)
        finite &= bool(np.isfinite(found).all())
        assert bound.nan or not np.isnan(found).any(), (seed, bound)
        found = found[~np.isnan(found)]
        assert (found >= bound.low).all(), (seed, bound)
        assert (found <= bound.high).all(), (seed, bound)
    assert finite or not certificate.ok, seed
    return certificate.ok


def test_random_conditions_stay_in_their_bounds():
    assert {check(seed) for seed in range(8)} == {True, False}


@pytest.mark.slow
def test_many_random_conditions_stay_in_their_bounds():
    assert sum(check(seed) for seed in range(1000, 1200)) > 40
