"""An op of one's own, held to the contract by `robustops.testing`.

Run: pip install 'robustops[testing]' && python own_op.py
"""

import math

import jax.numpy as jnp

import robustops as ro
from robustops.testing import Op, check_contract, check_total, edge_cases


def naive(x):
    """The loss of a Student-t likelihood, as it is usually written."""
    return jnp.log(1 + x**2)


try:
    check_total(naive, edge_cases(jnp.float32))
except AssertionError as error:
    print(error)
else:
    raise SystemExit("the naive form is expected to fail")


def log1p_square(x):
    """log(1 + x^2), finite with finite derivatives for every finite x."""
    x = jnp.asarray(x) * 1.0  # integers become floats
    # From here on the 1 is below half an ulp, and x^2 has not overflowed yet, in every dtype.
    end = 2 / math.sqrt(jnp.finfo(x.dtype).eps)
    is_far = abs(x) > end  # False for NaN, which so passes through, value and derivative
    near = ro.safe_log1p(ro.safe_square(jnp.where(is_far, end, x)))
    far = 2 * ro.safe_log(jnp.where(is_far, abs(x), end))
    return jnp.where(is_far, far, near)


record = Op(
    log1p_square,
    naive=naive,
    reference=lambda mp, x: mp.log1p(x * x),
    domain=[(-math.inf, math.inf)],
    edges=[  # argument, value, derivative
        ((0.0,), 0.0, 0.0),
        ((1.0,), math.log(2), 1.0),
        ((math.inf,), math.inf, 0.0),
        ((math.nan,), math.nan, math.nan),
    ],
    ulps=(4, 8),
)
check_contract(record, dtypes=["float16"])  # every number; without dtypes= all four dtypes
print("log1p_square keeps the contract in float16")
