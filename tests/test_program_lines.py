"""`certify` names the line of the function that it is given."""

import functools
import inspect

import jax.numpy as jnp
import pytest
from jax.scipy import special

import robustops as ro


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
