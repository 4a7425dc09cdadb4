"""`report`, `diagnose` and `certify` name the line of the function that they are given."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.scipy import special

import robustops as ro
from robustops import _jax
from robustops.program._diagnose_sites import number

# A shape that no other test uses: what jax keeps of a jitted function is kept by shape.
X = jnp.linspace(0, 1, 13)


def here(function):
    """The line of this file on which a function has its comment CALL."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if "CALL" in line)


def pair(f, count):
    """Two functions that differ in nothing but where they call `f`."""

    def first(x):
        return jnp.sum(f(*[x] * count))  # CALL

    def second(x):
        return jnp.sum(f(*[x] * count))  # CALL

    return first, second


# Functions, and how many arguments they take.
LIBRARY = {
    "entr": (special.entr, 1),
    "logit": (special.logit, 1),
    "norm": (jnp.linalg.norm, 1),
    "rel_entr": (special.rel_entr, 2),
    "softmax": (jax.nn.softmax, 1),
    "std": (jnp.std, 1),
    "xlogy": (special.xlogy, 2),
}


REPORT = ro.robustify.report  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("name", LIBRARY)
def test_report_names_the_caller_and_no_earlier_one(name, values):
    for fn in pair(*LIBRARY[name]):
        assert {c.line for c in REPORT(fn, X, values=values)} == {here(fn)}


def test_no_line_of_another_program_is_taken():
    def other(x):
        return jnp.sum(jnp.log(x))

    REPORT(other, X, values=True)  # for which jax keeps a `safe_log` of this shape

    def loss(x):
        return jnp.sum(ro.safe_log(x))  # CALL

    assert {change.line for change in REPORT(loss, X)} == {here(loss)}
    _, sites = number(_jax.trace(loss, X).jaxpr)  # as `diagnose` and `certify` see it
    assert {frame.line for site in sites for frame in _jax.frames(site.eqn)} == {here(loss)}


def test_no_line_of_a_program_that_called_the_same_function_inside_of_it():
    """softmax selects as xlogy does: jax keeps its selection, whose stack leads through it."""

    def other(x):
        return jnp.sum(jax.nn.softmax(x))

    def loss(x):
        return jnp.sum(special.xlogy(x, x))  # CALL

    x = jnp.linspace(0, 1, 17)
    REPORT(other, x, values=True)
    assert {change.line for change in REPORT(loss, x, values=True)} == {here(loss)}


def test_lines_of_what_a_derivative_calls():
    def other(a):
        return lax.fori_loop(0, 3, lambda _, s: 0.5 * (s + a / s), a)

    jax.grad(ro.robustify(other, values=True))(4.0)  # for which jax keeps a division of scalars

    def loss(x):
        return jnp.sum(ro.rel_entr(jnp.inf, x))  # CALL

    unproved = ro.certify(loss, (ro.Range(-2.0, 2.0, (3,)),), grad=True).unproved
    assert {entry.line for entry in unproved} == {here(loss)}


def test_lines_of_a_function_given_to_a_library_stay():
    def loss(x):
        root = lambda v: jnp.sqrt(v)  # CALL
        other = lambda v: v * v
        return jnp.sum(jnp.piecewise(x, [x > 0.5], [root, other]))

    assert here(loss) in {change.line for change in REPORT(loss, X)}


CERTIFIED = {
    "entr": (special.entr, 1),
    "kl_div": (special.kl_div, 2),
    "logit": (special.logit, 1),
    "own rel_entr": (functools.partial(ro.rel_entr, jnp.inf), 1),
    "own xlogy": (functools.partial(ro.xlogy, jnp.inf), 1),
    "rel_entr": (special.rel_entr, 2),
    "xlog1py": (special.xlog1py, 2),
    "xlogy": (special.xlogy, 2),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", CERTIFIED)
def test_every_entry_of_a_certificate_has_a_line(name, grad):
    for fn in pair(*CERTIFIED[name]):
        unproved = ro.certify(fn, (ro.Range(-2.0, 2.0, (3,)),), grad=grad).unproved
        assert {entry.line for entry in unproved} == {here(fn)}


def test_the_value_of_a_function_with_a_rule_is_forward():
    loss = lambda x: jnp.sum(special.xlogy(x, x))
    certificate = ro.certify(loss, (ro.Range(-2.0, 2.0, (3,)),))
    found = [(entry.primitive, entry.phase) for entry in certificate.unproved]
    assert found == [("log", "forward"), ("div", "backward")]
