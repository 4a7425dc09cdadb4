"""The contract C1 to C7 for every registered op and dtype, and for ops that break it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustops as ro
from robustops import _contract, ops
from robustops.testing import OPS, Op, check_contract

inf = math.inf
each_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


def test_every_public_op_is_registered_and_exported():
    public = {n for n in vars(ops) if not n.startswith("_")}
    # A tree is no array: global_norm has tests of its own.
    assert public == set(OPS) | ({"global_norm"} & public)
    assert all(getattr(ro, name) is op.fn for name, op in OPS.items())


def slow(dtype):
    return pytest.param(dtype, marks=pytest.mark.slow)


@each_op
@pytest.mark.parametrize("dtype", [slow(d) for d in ("float16", "bfloat16", "float64")])
def test_contract_in_other_dtypes(op, dtype):
    check_contract(op, dtypes=[dtype])


SOME = ["safe_log", "safe_div", "sigmoid", "softmax", "safe_norm", "safe_mean"]


@pytest.mark.parametrize("name", SOME)
def test_contract_in_float16(name):
    check_contract(OPS[name], dtypes=["float16"])


@each_op
def test_contract(op):
    check_contract(op, dtypes=["float32"])


@each_op
def test_complex_is_refused_by_name(op):
    match = rf"{op.name}: complex input is not supported, got complex64"
    with pytest.raises(TypeError, match=match):
        op.fn(*[jnp.ones(2, jnp.complex64)] * len(op.domain))


@each_op
def test_random_key_is_refused_by_name(op):
    with pytest.raises(TypeError, match=rf"{op.name}: .* real numbers, got a random key"):
        op.fn(*[jax.random.split(jax.random.key(0))] * len(op.domain))


@each_op
def test_jaxpr_shows_the_name(op):
    jaxpr = jax.make_jaxpr(op.fn)(*[jnp.ones((2, 3))] * len(op.domain))
    names = [e.params.get("name") for e in jaxpr.jaxpr.eqns if e.primitive.name in ("jit", "pjit")]
    assert names, jaxpr


def log_amplitude(x):
    return ro.safe_log(x) / 2


def strong(x):
    x = jnp.asarray(x)
    return x.astype(
        x.dtype if jnp.isdtype(x.dtype, ("real floating", "complex floating")) else float
    )


def record(fn, **facts):
    facts = {"domain": [(0, inf)], "edges": [((1.0,), 0.0, 0.5)], **facts}
    reference = lambda mp, x: mp.log(x) / 2
    return Op(fn, naive=lambda x: jnp.log(x) / 2, reference=reference, ulps=(4, 8), **facts)


def test_your_own_op():
    check_contract(record(log_amplitude), dtypes=[jnp.bfloat16, np.float32, "float64"])


@pytest.mark.parametrize(
    ("fn", "facts", "message", "clause"),
    [
        (lambda x: jnp.log(x) / 2, {}, "the value is not finite at", "C1"),
        (lambda x: log_amplitude(x) * (1 + 1e-5), {}, "the claimed 4 ulp of the value", "C2"),
        (lambda x: half_slope(log_amplitude(x)), {}, "the claimed 8 ulp of the derivative", "C2"),
        (log_amplitude, {"edges": [((1.0,), 0.1, None)]}, "the value at the edge", "C2"),
        (log_amplitude, {"edges": [((1.0,), 0.0, 4.0)]}, r"the derivative \(forward mode\)", "C2"),
        (lambda x: log_amplitude(jnp.nan_to_num(x)), {"edges": []}, "NaN is hidden", "C3"),
        (lambda x: log_amplitude(x) + 0 * jnp.sin(x), {}, "a zero tangent gives", "C4"),
        (lambda x: log_amplitude(strong(x)), {}, "is not weak", "C6"),
        (lambda x: log_amplitude(jnp.asarray(x).real), {}, "complex input is not refused", "C6"),
    ],
)  # fmt: skip
def test_a_broken_op_is_named(fn, facts, message, clause):
    with pytest.raises(AssertionError, match=message) as failure:
        check_contract(record(fn, **facts), dtypes=[jnp.float32])
    assert f"in float32 breaks {clause}" in failure.value.__notes__[-1]


@jax.custom_jvp
def half_slope(y):
    return y


half_slope.defjvp(lambda y, t: (y[0], 0.5 * t[0]))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: ro.safe_log(x, extend="linear", floor=0.5), "not constant beyond 0"),
        (lambda x: half_slope(ro.safe_log(x)), "finite differences"),
    ],
)
def test_a_broken_extension_is_named(fn, message, x64):
    with pytest.raises(AssertionError, match=message):
        _contract._extends_consistently(record(fn), fn, np.dtype("float64"))
