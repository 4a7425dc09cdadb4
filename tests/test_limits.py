"""The values mode at 0 / 0 that has a limit, and at a product or quotient that is 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustops as ro

# Function, argument, value and derivative there.
REMOVABLE = {
    "sin(x) / x": (lambda x: jnp.sin(x) / x, 0.0, 1, 0),
    "x / sin(x)": (lambda x: x / jnp.sin(x), 0.0, 1, 0),
    "sin(pi x) / (pi x)": (lambda x: jnp.sin(np.pi * x) / (np.pi * x), 0.0, 1, 0),
    "expm1(x) / x": (lambda x: jnp.expm1(x) / x, 0.0, 1, 0.5),
    "(exp(x) - 1) / x": (lambda x: (jnp.exp(x) - 1) / x, 0.0, 1, 0.5),
    "x / (1 - exp(-x))": (lambda x: x / (1 - jnp.exp(-x)), 0.0, 1, 0.5),
    "log(x) / (x - 1)": (lambda x: jnp.log(x) / (x - 1), 1.0, 1, -0.5),
    "(1 - cos(x)) / x^2": (lambda x: (1 - jnp.cos(x)) / x**2, 0.0, 0.5, 0),
    "(x - sin(x)) / x^3": (lambda x: (x - jnp.sin(x)) / x**3, 0.0, 1 / 6, 0),
    "(3^x - 1) / x": (lambda x: (3.0**x - 1) / x, 0.0, np.log(3), np.log(3) ** 2 / 2),
    "sinh(3x) / sinh(x)": (lambda x: jnp.sinh(3 * x) / jnp.sinh(x), 0.0, 3, 0),
    "1 / tanh(x) - 1 / x": (lambda x: 1 / jnp.tanh(x) - 1 / x, 0.0, 0, 1 / 3),
    "right Jacobian": (
        lambda t: 1 / t**2 - (1 + jnp.cos(t)) / (2 * t * jnp.sin(t)),
        0.0,
        1 / 12,
        0,
    ),
    "sin(x) / x^2 - cos(x) / x": (
        lambda x: jnp.sin(x) / x**2 - jnp.cos(x) / x,
        0.0,
        0,
        1 / 3,
    ),
    "((1 + x)^1.5 - 1) / x": (lambda x: ((1 + x) ** 1.5 - 1) / x, 0.0, 1.5, 0.375),
    "((1 + x)^2 - 1) / x": (lambda x: ((1 + x) ** 2 - 1) / x, 0.0, 2, 1),
    "(1 - x / tan(x)) / x^2": (lambda x: (1 - x * jnp.cos(x) / jnp.sin(x)) / x**2, 0.0, 1 / 3, 0),
    "(1 + 1 / x) log(1 + 2 x)": (lambda x: (1 + 1 / x) * jnp.log1p(2 * x), 0.0, 2, 0),
    "(1 + 2 x)^(1 / x)": (lambda x: (1 + 2 * x) ** (1 / x), 0.0, np.exp(2), -2 * np.exp(2)),
    "1 / sin(x) + 1 / x": (lambda x: 1 / jnp.sin(x) + 1 / x, 0.0, 0, 0),
    "a pole": (lambda x: jnp.sin(x) / x**2, 0.0, 0, 0),
    "x / |x|": (lambda x: x / abs(x), 0.0, 0, 0),
    "a mask": (lambda m: 3 * m * jnp.exp(2.0) / m, 0.0, 0, 0),
}


@pytest.mark.parametrize("name", REMOVABLE)
def test_limits(name):
    fn, x, value, slope = REMOVABLE[name]
    robust = ro.robustify(fn, values=True)
    for apply in (lambda f: f, jax.jit):
        found = apply(jax.value_and_grad(robust))(x)
        np.testing.assert_allclose(found, (value, slope), rtol=1e-6, atol=1e-7)
    assert robust(x + 0.5) == fn(x + 0.5)


RADII, WAVES = jnp.array([0.0, 1, 2]), jnp.array([1.0, 3])
LENGTHENED = {
    "columns and rows": lambda r, k: jnp.sin(k[None] * r[:, None]) / r[:, None],
    "an outer product": lambda r, k: jnp.sin(jnp.outer(r, k)) / jnp.repeat(r[:, None], 2, 1),
    "an axis in front": lambda r, k: jnp.sin(r[None] * k[:, None]) / jnp.ones((2, 1)) / r,
    "another shape": lambda r, k: jnp.sin(r.reshape(3, 1) * k) / r.reshape(3, 1),
}


@pytest.mark.parametrize("name", LENGTHENED)
def test_limit_in_a_variable_of_another_shape(name):
    """Of sin(k r) / r it is k, with the derivatives 0 and 1, as often as each is used."""
    fn = ro.robustify(lambda r, k: jnp.sum(LENGTHENED[name](r, k)), values=True)
    for apply in (lambda f: f, jax.jit):
        value, (of_r, of_k) = apply(jax.value_and_grad(fn, (0, 1)))(RADII, WAVES)
        r, k = np.asarray(RADII, np.float64)[:, None], np.asarray(WAVES, np.float64)
        np.testing.assert_allclose(value, k.sum() + (np.sin(k * r)[1:] / r[1:]).sum(), rtol=1e-5)
        np.testing.assert_allclose(of_k, np.cos(k * r).sum(0), rtol=1e-5)
        slopes = (k * np.cos(k * r) * r - np.sin(k * r))[1:] / r[1:] ** 2
        np.testing.assert_allclose(of_r, [0, *slopes.sum(1)], rtol=1e-5, atol=1e-6)


def test_limit_of_vectors():
    """Of equal quaternions slerp is that one, and its derivative that of a weighted mean."""
    b = jnp.array([1.0, 0, 0, 0])

    def slerp(a, t=0.25):
        angle = jnp.arccos(a @ b)
        return (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.sin(angle)

    robust = ro.robustify(slerp, values=True)
    np.testing.assert_allclose(robust(b), b)
    np.testing.assert_allclose(jax.jacobian(robust)(b), 0.75 * np.eye(4))


MEANS = {
    "logarithmic": (lambda a, b: (a - b) / (jnp.log(a) - jnp.log(b)), 2.0, (0.5, 0.5)),
    "of a ratio": (lambda a, b: (a - b) / jnp.log(a / b), 2.0, (0.5, 0.5)),
    "of exponentials": (
        lambda a, b: (jnp.exp(a) - jnp.exp(b)) / (a - b),
        np.exp(2),
        (np.exp(2) / 2, np.exp(2) / 2),
    ),
    "third divided difference": (
        lambda a, b: (jnp.sin(a) - jnp.sin(b) - (a - b) * jnp.cos(b)) / (a - b) ** 2,
        -np.sin(2) / 2,
        (-np.cos(2) / 6, -np.cos(2) / 3),
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_limit_where_two_variables_are_equal(name):
    fn, value, slopes = MEANS[name]
    robust = jax.value_and_grad(ro.robustify(fn, values=True), (0, 1))
    found, slope = jax.jit(robust)(jnp.float32(2), jnp.float32(2))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, rtol=1e-5)


def test_what_comes_of_control_flow_is_no_input():
    """It may be a function of the variable that the limit is taken in."""

    def fn(x):
        y = jax.lax.while_loop(lambda c: c[1] < 1, lambda c: (c[0] * 1, c[1] + 1), (x, 0))[0]
        return (jnp.exp(x) - jnp.exp(y)) / (x - y)

    assert ro.robustify(fn, values=True)(jnp.float32(1)) == 0


def test_a_limit_in_a_variable_that_a_jit_made():
    """`jnp.linalg.norm` is jitted."""

    def fn(w):
        norm = jnp.linalg.norm(w)
        return jnp.sin(norm) / norm * w[0] + (1 - jnp.cos(norm)) / norm**2

    value, slope = jax.value_and_grad(ro.robustify(fn, values=True))(jnp.zeros(3))
    assert value == 0.5
    np.testing.assert_array_equal(slope, [1, 0, 0])


def test_a_chain_too_long_for_a_limit_takes_the_fill():
    def fn(x):
        y = x
        for _ in range(40):
            y = y * y
        return jnp.sin(y) / x

    assert ro.robustify(fn, values=True)(jnp.float32(0)) == 0


def softmax_mean(q):
    w = jnp.exp(jnp.array([1.0, 2, 0]))
    return jnp.sum(w * q) / jnp.sum(w)


ZERO = {
    "swish": (lambda x: jnp.sum(x / (1 + jnp.exp(-x))), np.zeros(2)),
    "tanh": (lambda x: jnp.sum((jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))), [0.0]),
    "shrunk": (lambda x: jnp.sum((jnp.exp(x) - 1) * jnp.exp(-x)), np.zeros(2)),
    "cosine": (lambda x: x[0] / (jnp.linalg.norm(x) * jnp.linalg.norm(x + 1)), [0.0, 1.0]),
    "slope": (lambda x: jnp.sum(x * jnp.arange(3.0)) / jnp.sum(jnp.arange(3.0) ** 2), np.zeros(3)),
    "weighted mean": (softmax_mean, np.zeros(3)),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_zero_keeps_its_derivative(name):
    fn, x = ZERO[name][0], jnp.asarray(ZERO[name][1], jnp.float32)
    expected = jax.grad(fn)(x)
    assert np.all(np.isfinite(expected))
    assert np.any(expected != 0)
    np.testing.assert_allclose(jax.grad(ro.robustify(fn, values=True))(x), expected, rtol=1e-6)


def test_an_underflow_is_still_rescued():
    fn = lambda x: jnp.exp(-x) / (jnp.exp(-x) + jnp.exp(-x - 1))
    value, slope = jax.value_and_grad(ro.robustify(fn, values=True))(200.0)
    np.testing.assert_allclose((value, slope), (1 / (1 + np.exp(-1)), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fn", [jnp.arccos, jnp.arcsin, jnp.arccosh, jnp.arctanh])
def test_outside_of_its_domain_a_function_is_as_at_the_end(fn):
    robust = ro.robustify(fn, values=True)
    for x in (1.5, 0.5, -1.5):
        assert np.isfinite(robust(jnp.float32(x)))
    assert np.isnan(robust(jnp.float32(np.nan)))


def test_a_long_chain_of_quotients_is_traced():
    """Each step asks of both operands what they are made of: 2^20 questions, if none is kept."""

    def root(x):
        for _ in range(20):
            x = x - (x**2 - 2) / (2 * x)
        return x

    np.testing.assert_allclose(ro.robustify(root, values=True)(jnp.float32(3)), 2**0.5, rtol=1e-6)
