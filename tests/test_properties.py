"""What is true of each function, whatever it is given: tables of facts, examples by hypothesis."""

import functools
import inspect
import math

import hypothesis
import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

from robustops._spec import OPS

inf = math.inf
LENGTH = 16  # one shape, so that each op is compiled once
BIG = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
EPS = float(np.finfo(np.float32).eps)

examples = hypothesis.settings(derandomize=True, max_examples=40, deadline=None, database=None)


def vectors(lo=-BIG, hi=BIG, shape=LENGTH):
    """Finite float32 arrays in an interval."""
    lo, hi = (float(np.clip(np.float32(v), -BIG, BIG)) for v in (lo, hi))
    numbers = st.floats(lo, hi, width=32, allow_subnormal=False)
    return npst.arrays(np.float32, shape, elements=numbers)


@functools.cache
def compiled(name):
    return jax.jit(OPS[name].fn)


@functools.cache
def slope(name):
    return jax.jit(jax.vmap(jax.grad(OPS[name].fn)))


@functools.cache
def along_rows(name, masked=False):
    """A reduction along the last axis of every argument."""
    fn = OPS[name].fn
    if masked:
        return jax.jit(lambda *args: fn(*args[:-1], axis=-1, where=args[-1]))
    return jax.jit(lambda *args: fn(*args, axis=-1))


def out(fn, *args):
    return np.asarray(fn(*args), np.float64)


def spacing(y):
    """The ulp of float32 numbers, not below that of the smallest normal one."""
    return np.ldexp(EPS, np.frexp(np.maximum(np.abs(y), TINY))[1] - 1)


def within(got, want, bound):
    off = np.abs(got - want) > bound
    assert not off.any(), (got[off], want[off])


# An approximation that is k ulp off may step back by 2 k ulp, and by no more.
INCREASING = """
    safe_log safe_log1p safe_log2 safe_log10 safe_exp safe_expm1 safe_sqrt safe_cbrt safe_arcsin
    safe_arctanh safe_arccosh sigmoid log_sigmoid softplus safe_logit softplus_inverse log1mexp
""".split()
DECREASING = ["safe_arccos"]
HALF_DECREASING = ["safe_rsqrt", "safe_reciprocal"]  # for positive arguments
MONOTONE = [
    *((name, 1, -BIG) for name in INCREASING),
    *((name, -1, -BIG) for name in DECREASING),
    *((name, -1, TINY) for name in HALF_DECREASING),
]


@pytest.mark.parametrize(("name", "sign", "lo"), MONOTONE, ids=lambda v: str(v))
@examples
@given(data=st.data())
def test_monotone_outside_the_domain_too(name, sign, lo, data):
    x = np.sort(data.draw(vectors(lo) | vectors(max(lo, -30), 30)))
    y = sign * out(compiled(name), x)
    slack = 2 * OPS[name].ulps[0] * np.maximum(spacing(y[1:]), spacing(y[:-1]))
    assert (np.diff(y) >= -slack).all(), (x, y)


ODD = ["safe_cbrt", "safe_arcsin", "safe_arctanh", "safe_reciprocal"]
EVEN = ["safe_square", "log_cosh"]


@pytest.mark.parametrize(
    ("name", "sign"), [*((n, -1) for n in ODD), *((n, 1) for n in EVEN)], ids=str
)
@examples
@given(x=vectors() | vectors(-3, 3))
def test_odd_and_even(name, sign, x):
    np.testing.assert_array_equal(out(compiled(name), -x), sign * out(compiled(name), x))


# Signs of the arguments, and by what the result is multiplied.
SYMMETRIES = [
    ("safe_div", (-1, 1), -1),
    ("safe_div", (-1, -1), 1),
    ("safe_arctan2", (-1, 1), -1),
    ("safe_hypot", (-1, 1), 1),
    ("safe_hypot", (1, -1), 1),
    ("xlogy", (-1, 1), -1),
    ("xlog1py", (-1, 1), -1),
]


@pytest.mark.parametrize(("name", "signs", "sign"), SYMMETRIES, ids=str)
@examples
@given(x=vectors() | vectors(-3, 3), y=vectors() | vectors(-3, 3))
def test_symmetry_of_two_arguments(name, signs, sign, x, y):
    # A result of 0 has the sign that it has.
    got = out(compiled(name), signs[0] * x, signs[1] * y)
    np.testing.assert_array_equal(got, sign * out(compiled(name), x, y))


@pytest.mark.parametrize("name", ["safe_hypot", "logaddexp", "logsubexp"])
@examples
@given(x=vectors() | vectors(-30, 30), y=vectors() | vectors(-30, 30))
def test_commutes(name, x, y):
    # XLA may fuse a product with a sum on one side.
    want = out(compiled(name), x, y)
    within(out(compiled(name), y, x), want, OPS[name].ulps[0] * spacing(want))


# Least and largest value over all arguments.
BOUNDS = {
    "safe_exp": (0, BIG),
    "safe_sqrt": (0, BIG),
    "safe_square": (0, BIG),
    "safe_expm1": (-1, BIG),
    "safe_arcsin": (-math.pi / 2, math.pi / 2),
    "safe_arccos": (0, math.pi),
    "safe_arccosh": (0, BIG),
    "safe_arctan2": (-math.pi, math.pi),
    "safe_hypot": (0, BIG),
    "safe_pow": (-BIG, BIG),
    "sigmoid": (0, 1),
    "log_sigmoid": (-BIG, 0),
    "softplus": (0, BIG),
    "log_cosh": (0, BIG),
    "log1mexp": (-BIG, 0),
    "entr": (-BIG, math.exp(-1)),
    "rel_entr": (-BIG, BIG),
    "kl_div": (0, BIG),
}


@pytest.mark.parametrize("name", BOUNDS)
@examples
@given(data=st.data())
def test_bounded(name, data):
    count = len(OPS[name].domain)
    args = [data.draw(vectors() | vectors(-3, 3)) for _ in range(count)]
    y = out(compiled(name), *args)
    lo, hi = BOUNDS[name]
    slack = OPS[name].ulps[0] * spacing(np.asarray([lo, hi]))
    assert (y >= lo - (lo != 0) * slack[0]).all(), (args, y)
    assert (y <= hi + (hi not in (0, BIG)) * slack[1]).all(), (args, y)


# outer(inner(x)) = x on an interval of x.
INVERSES = [
    ("safe_log", "safe_exp", -80, 80),
    ("safe_exp", "safe_log", 1e-37, BIG / 2),
    ("safe_log1p", "safe_expm1", -10, 80),
    ("safe_expm1", "safe_log1p", -0.99, BIG / 2),
    ("safe_sqrt", "safe_square", 1e-18, 1e18),
    ("safe_square", "safe_sqrt", TINY, BIG / 2),
    ("safe_reciprocal", "safe_reciprocal", 1e-37, 1e37),
    ("sigmoid", "safe_logit", 1e-30, 0.999),
    ("safe_logit", "sigmoid", -80, 10),
    ("softplus", "softplus_inverse", 1e-30, 1e30),
    ("softplus_inverse", "softplus", -80, 1e30),
]


@pytest.mark.parametrize(("outer", "inner", "lo", "hi"), INVERSES, ids=str)
@examples
@given(data=st.data())
def test_inverse_pairs(outer, inner, lo, hi, data):
    x = data.draw(vectors(lo, hi) | vectors(max(lo, -4), min(hi, 4)))
    y = compiled(inner)(x)
    # The rounding of the inner result, through the slope of the outer function.
    carried = abs(out(slope(outer), y)) * (OPS[inner].ulps[0] + 1) * spacing(np.asarray(y))
    within(out(compiled(outer), y), x, (OPS[outer].ulps[0] + 1) * spacing(x) + 1.1 * carried)


# Each says that two expressions are one: names used, the two sides, interval, and the largest
# term that either is formed from.
IDENTITIES = {
    "log sigmoid(x) is -softplus(-x)": (
        lambda f, x: (f("log_sigmoid", x), -f("softplus", -x), 0),
        ("log_sigmoid", "softplus"),
        (-BIG, BIG),
    ),
    "sigmoid(x) + sigmoid(-x) is 1": (
        lambda f, x: (f("sigmoid", x) + f("sigmoid", -x), 1, 1),
        ("sigmoid",),
        (-BIG, BIG),
    ),
    "softplus(x) - softplus(-x) is x": (
        lambda f, x: (f("softplus", x) - f("softplus", -x), x, f("softplus", abs(x))),
        ("softplus",),
        (-BIG, BIG),
    ),
    "arcsin + arccos is pi / 2": (
        lambda f, x: (f("safe_arcsin", x) + f("safe_arccos", x), math.pi / 2, math.pi),
        ("safe_arcsin", "safe_arccos"),
        (-1, 1),
    ),
    "log2 is log / log 2": (
        lambda f, x: (f("safe_log2", x) * math.log(2), f("safe_log", x), 0),
        ("safe_log2", "safe_log"),
        (TINY, BIG),
    ),
    "log10 is log / log 10": (
        lambda f, x: (f("safe_log10", x) * math.log(10), f("safe_log", x), 0),
        ("safe_log10", "safe_log"),
        (TINY, BIG),
    ),
    "rsqrt is 1 / sqrt": (
        lambda f, x: (f("safe_rsqrt", x) * f("safe_sqrt", x), 1, 1),
        ("safe_rsqrt", "safe_sqrt"),
        (TINY, BIG),
    ),
    "cbrt cubed": (
        lambda f, x: (f("safe_cbrt", x) ** 3, x, 4 * abs(x)),
        ("safe_cbrt",),
        (-BIG, BIG),
    ),
    "log1mexp(x) is log(1 - e^-x)": (
        lambda f, x: (f("log1mexp", x), np.log(-np.expm1(-x)), 0),
        ("log1mexp",),
        (TINY, 8),
    ),
    "entr is x times -log x": (
        lambda f, x: (f("entr", x), -x * f("safe_log", x), 0),
        ("entr", "safe_log"),
        (1e-30, 1e30),
    ),
    "arctanh is log1p(2x / (1 - x)) / 2": (
        lambda f, x: (f("safe_arctanh", x), np.log1p(2 * x / (1 - x)) / 2, 0),
        ("safe_arctanh",),
        (-0.9, 0.99),
    ),
    "arccosh: cosh of it": (
        lambda f, x: (np.cosh(f("safe_arccosh", x)), x, (1 + f("safe_arccosh", x)) * x),
        ("safe_arccosh",),
        (1, BIG),
    ),
}


@pytest.mark.parametrize("identity", IDENTITIES)
@examples
@given(data=st.data())
def test_identities(identity, data):
    sides, names, (lo, hi) = IDENTITIES[identity]
    x = data.draw(vectors(lo, hi) | vectors(max(lo, -4), min(hi, 4)))
    left, right, largest = sides(
        lambda name, v: out(compiled(name), np.asarray(v, np.float32)), x.astype(np.float64)
    )
    ulps = 1 + sum(OPS[name].ulps[0] for name in names)
    within(left, right + 0 * x, ulps * spacing(np.maximum(largest, abs(right + 0 * x))))


# Of two arguments: the right side, with what it is formed from.
PAIRS = {
    "safe_div": (lambda x, y: x / np.where(y == 0, 1, y) * (y != 0), (-1e18, 1e18), (1e-18, 1e18)),
    "safe_hypot": (np.hypot, (-1e38, 1e38), (-1e38, 1e38)),
    "safe_arctan2": (np.arctan2, (-1e18, 1e18), (1e-18, 1e18)),
    "safe_pow": (np.power, (0.1, 10), (-30, 30)),
    "xlogy": (lambda x, y: x * np.log(y), (-1e30, 1e30), (1e-30, 1e30)),
    "xlog1py": (lambda x, y: x * np.log1p(y), (-1e30, 1e30), (-0.9, 1e30)),
    "rel_entr": (lambda x, y: x * np.log(x / y), (0.25, 8), (0.25, 8)),
}


@pytest.mark.parametrize("name", PAIRS)
@examples
@given(data=st.data())
def test_two_arguments_as_in_numpy(name, data):
    fn, *bounds = PAIRS[name]
    x, y = (data.draw(vectors(lo, hi) | vectors(max(lo, -4), min(hi, 4))) for lo, hi in bounds)
    want = fn(x.astype(np.float64), y.astype(np.float64))
    reach = abs(want) >= 4 * TINY
    got = out(compiled(name), x, y)
    within(got[reach], want[reach], OPS[name].ulps[0] * spacing(want[reach]) + EPS * EPS * 8)


@examples
@given(x=vectors(-80, 80), y=vectors(-80, 80))
def test_logaddexp_undoes_logsubexp(x, y):
    a, b = np.maximum(x, y), np.minimum(x, y) - 1
    left = out(compiled("logaddexp"), compiled("logsubexp")(a, b), b)
    within(left, a, 16 * spacing(np.maximum(abs(a), abs(b))) + 1e-6)


@examples
@given(x=vectors(0, 1e30), y=vectors(1e-30, 1e30))
def test_kl_div_is_rel_entr_plus_the_difference(x, y):
    direct = out(compiled("rel_entr"), x, y) - x.astype(np.float64) + y
    largest = abs(out(compiled("rel_entr"), x, y)) + x.astype(np.float64) + y
    within(out(compiled("kl_div"), x, y), direct, 8 * spacing(largest))


REDUCTIONS = [name for name, op in OPS.items() if op.reduces]
WITH_WHERE = [n for n in REDUCTIONS if "where" in inspect.signature(OPS[n].fn).parameters]
ROW = 6
KEPT = 4


def rows(lo=-1e3, hi=1e3):
    return vectors(lo, hi, ROW)


def both(name, draw, strategy):
    return [draw(strategy) for _ in OPS[name].domain]


def conditioned(name, args):
    """The ulps claimed, in the units of the result or of the largest element."""
    top = max(float(np.max(abs(a))) for a in args) if OPS[name].conditioning else 0.0
    return lambda y: OPS[name].ulps[0] * spacing(np.maximum(abs(y), top))


@pytest.mark.parametrize("name", WITH_WHERE)
@examples
@given(data=st.data(), order=st.permutations(range(ROW)))
def test_where_drops_the_masked_elements(name, data, order):
    """Whatever stands there: NaN too, in value and gradient."""
    args = both(name, data.draw, rows())
    kept = np.sort(order[:KEPT])
    mask = np.isin(np.arange(ROW), kept)
    want = out(along_rows(name), *(a[kept] for a in args))
    spoilt = [np.where(mask, a, np.nan).astype(np.float32) for a in args]
    got = out(along_rows(name, masked=True), *spoilt, mask)
    got = got[kept] if got.ndim else got
    # XLA may add in another order over another length.
    within(got, want, 2 * conditioned(name, [a[kept] for a in args])(want))


@pytest.mark.parametrize("name", [n for n in REDUCTIONS if n != "logcumsumexp"])
@examples
@given(data=st.data(), order=st.permutations(range(ROW)))
def test_permutation(name, data, order):
    args = both(name, data.draw, rows())
    want = out(along_rows(name), *args)
    want = want[order] if want.ndim else want
    got = out(along_rows(name), *(a[order] for a in args))
    within(got, want, 2 * conditioned(name, args)(want))


# f(2^k x) = 2^(k p) f(x) for the power p, but for the order of a sum: on CPU slices are brought to
# order 1 only where plain sums do not fit.
HOMOGENEOUS = {
    "safe_norm": 1,
    "safe_normalize": 0,
    "safe_mean": 1,
    "safe_var": 2,
    "safe_std": 1,
    "cosine_similarity": 0,
    "pairwise_distance": 1,
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
@examples
@given(data=st.data(), k=st.integers(-40, 40))
def test_scaling_by_a_power_of_two_scales_the_result(name, data, k):
    numbers = st.integers(-1000, 1000).map(lambda v: v / 8)
    strategy = npst.arrays(np.float32, ROW, elements=numbers)
    args = both(name, data.draw, strategy)
    want = out(along_rows(name), *args)
    scaled = [np.ldexp(a, k).astype(np.float32) for a in args]
    got = out(along_rows(name), *scaled)
    unscaled = got * 2.0 ** (-k * HOMOGENEOUS[name])
    within(unscaled, want, conditioned(name, args)(want) / 2)


# By what f changes when a number is added to every element.
SHIFTED = {
    "logsumexp": 1,
    "logmeanexp": 1,
    "logcumsumexp": 1,
    "softmax": 0,
    "log_softmax": 0,
    "safe_mean": 1,
    "safe_var": 0,
    "safe_std": 0,
}


@pytest.mark.parametrize("name", SHIFTED)
@examples
@given(data=st.data(), shift=st.integers(-100, 100))
def test_adding_a_number_to_every_element(name, data, shift):
    numbers = st.integers(-200, 200).map(lambda v: v / 8)  # the sum is exact
    (x,) = both(name, data.draw, npst.arrays(np.float32, ROW, elements=numbers))
    want = out(along_rows(name), x) + SHIFTED[name] * shift
    got = out(along_rows(name), x + np.float32(shift))
    top = spacing(np.abs(x).max() + abs(shift)) * (
        SHIFTED[name] or OPS[name].conditioning is not None
    )
    within(got, want, 2 * OPS[name].ulps[0] * np.maximum(spacing(want), top))


@examples
@given(x=rows(-BIG, BIG) | rows())
def test_softmax_is_a_distribution_and_its_logarithm_agrees(x):
    p, lp = out(along_rows("softmax"), x), out(along_rows("log_softmax"), x)
    assert ((p >= 0) & (p <= 1)).all()
    assert (lp <= 0).all()
    assert abs(p.sum() - 1) <= ROW * OPS["softmax"].ulps[0] * EPS
    within(np.exp(lp), p, (8 + 4 * abs(lp)) * spacing(p))


@examples
@given(x=rows(-1e30, 1e30) | rows())
def test_logsumexp_lies_between_the_largest_and_log_n_more(x):
    y = out(along_rows("logsumexp"), x)
    top = float(x.max())
    assert top - 4 * spacing(top) <= y <= top + math.log(ROW) + 4 * spacing(max(abs(top), 2))


@examples
@given(x=rows(-BIG, BIG) | rows())
def test_a_normalized_row_has_length_one_or_is_zero(x):
    u = out(along_rows("safe_normalize"), x)
    assert (abs(u) <= 1 + 2 * EPS).all()
    length = np.sqrt(np.sum(u * u))
    zero = np.all(abs(x) < TINY)
    assert length == 0 if zero else abs(length - 1) <= ROW * EPS


@examples
@given(x=rows(-1e30, 1e30) | rows())
def test_moments_lie_where_they_must(x):
    wide = x.astype(np.float64)
    mean, std = out(along_rows("safe_mean"), x), out(along_rows("safe_std"), x)
    slack = 4 * spacing(np.abs(wide).max())
    assert wide.min() - slack <= mean <= wide.max() + slack
    assert 0 <= std <= (wide.max() - wide.min()) / 2 * (1 + 8 * EPS) + slack
    within(std, np.std(wide), OPS["safe_std"].ulps[0] * spacing(np.maximum(std, 0)) + slack / 4)


def test_every_op_has_a_property():
    named = (
        {n for n, _, _ in MONOTONE} | set(ODD) | set(EVEN) | set(BOUNDS) | set(PAIRS)
        | {n for n, _, _ in SYMMETRIES} | {n for pair in INVERSES for n in pair[:2]}
        | {n for _, names, _ in IDENTITIES.values() for n in names}
        | set(HOMOGENEOUS) | set(SHIFTED) | set(REDUCTIONS) | {"logaddexp", "logsubexp"}
    )  # fmt: skip
    assert named >= set(OPS)
