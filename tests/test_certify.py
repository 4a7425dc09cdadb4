"""`certify`: never proves what fails, and proves what ordinary models do."""

import importlib
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import robustops as ro
from robustops import Range, losses

N = 5
MATRIX = np.random.default_rng(7).normal(size=(N, N)).astype(np.float32)
MASK = np.array([0, 2, 2, 1, 4])


def vector(low, high, *shape):
    return Range(float(low), float(high), shape or (N,), jnp.float32)


def here(function, text):
    """The line of this file on which a function has `text`."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


# --- soundness ---

UNARY = {
    "exp": jnp.exp,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "expm1": jnp.expm1,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "abs": jnp.abs,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "inverse square": lambda x: x**-2,
    "reciprocal": lambda x: 1 / x,
    "sin": jnp.sin,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "arcsin": jnp.arcsin,
    "arctanh": jnp.arctanh,
    "cosh": jnp.cosh,
    "cbrt": jnp.cbrt,
    "floor": lambda x: jnp.maximum(x, 1e-6),
    "clip": lambda x: jnp.clip(x, -0.99, 0.99),
    "1 - x": lambda x: 1 - x,
    "scale": lambda x: x * 1e3,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: x - jax.nn.logsumexp(x),
    "shift": lambda x: jnp.exp(x - x.max()),
    "from min": lambda x: jnp.log(x - x.min() + 1),
    "norm": lambda x: x / jnp.sqrt(jnp.sum(x * x) + 1e-6),
    "linalg.norm": lambda x: x / jnp.linalg.norm(x),
    "std": lambda x: x / (x.std() + 1e-3),
    "layer norm": lambda x: (x - x.mean()) * lax.rsqrt(x.var() + 1e-5),
    "share": lambda x: x / x.sum(),
    "cumsum": jnp.cumsum,
    "sort": jnp.sort,
    "matrix": lambda x: MATRIX @ x,
    "gather": lambda x: x[MASK],
    "scatter": lambda x: jnp.zeros(N).at[MASK].add(x),
    "float16": lambda x: x.astype(jnp.float16).astype(jnp.float32),
    "bfloat16": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "scan": lambda x: lax.scan(lambda c, v: (jnp.tanh(c + v), c * v), x[0], x)[1],
    "growth": lambda x: lax.scan(lambda c, _: (c * 1.5 + 0.1, c), x, None, length=80)[0],
    "fori": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + c, x),
    "cond": lambda x: lax.cond(x[0] > 0, lambda x: x * 2, lambda x: jnp.exp(-jnp.abs(x)), x),
    "guarded log": lambda x: jnp.where(x > 1e-6, jnp.log(jnp.where(x > 1e-6, x, 1)), -13.0),
    "selected sqrt": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.maximum(x, 0)), 0.0),
    "mask": lambda x: jax.nn.softmax(jnp.where(x > 0, x, -1e9)),
    "safe_log": ro.safe_log,
    "safe_sqrt": ro.safe_sqrt,
    "safe_norm": lambda x: x * ro.safe_norm(x),
    "safe softmax": ro.softmax,
    "safe log_softmax": ro.log_softmax,
}
BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "div twice": lambda a, b: a / b / b,
    "max": jnp.maximum,
    "pow": lambda a, b: jnp.power(jnp.abs(a) + 0.1, b),
    "logaddexp": jnp.logaddexp,
    "where": lambda a, b: jnp.where(a < b, b - a, a * b),
    "arctan2": jnp.arctan2,
    "safe_div": ro.safe_div,
    "dot": lambda a, b: jnp.dot(a, b) * a,
    "hinge": lambda a, b: jnp.maximum(0, 1 - a * b),
    "cross-entropy": lambda a, b: jnp.maximum(a, 0) - a * b + jnp.log1p(jnp.exp(-jnp.abs(a))),
}
INTERVALS = [
    (-1, 1), (0, 1), (1e-3, 1), (-50, 50), (-1e4, 1e4), (1e-10, 1e10), (0, 1e-30), (-1e20, 1e20),
    (0.1, 0.9), (-90, 90), (1e-40, 1), (1, 1), (0, 0),
]  # fmt: skip


def random_program(rng):
    """A random function of two vectors, and what it is."""

    def tree(depth):
        if depth == 0:
            k = int(rng.integers(2))
            return lambda x, y: (x, y)[k], "xy"[k]
        if rng.random() < 0.65:
            name = str(rng.choice(list(UNARY)))
            (inner, text), f = tree(depth - 1), UNARY[name]
            return lambda x, y: f(inner(x, y)), f"{name}({text})"
        name = str(rng.choice(list(BINARY)))
        (a, left), (b, right), f = tree(depth - 1), tree(depth - 1), BINARY[name]
        return lambda x, y: f(a(x, y), b(x, y)), f"{name}({left}, {right})"

    return tree(int(rng.integers(1, 4)))


def points(rng, low, high, count):
    """Vectors between two numbers: the ends, 0, the subnormal and the tiny among them."""
    special = np.clip([low, high, 0, 1, -1, (low + high) / 2, 1e-40, 1e-20], low, high)
    rows = [np.full(N, v) for v in special[:3]]
    top = np.log10(max(abs(low), abs(high), 1e-45))
    while len(rows) < count:
        sign = np.sign(rng.normal(size=N))
        rows += [
            rng.uniform(low, high, N),
            rng.choice(special, N),
            np.clip(sign * 10.0 ** rng.uniform(-45, top, N), low, high),
            np.full(N, rng.uniform(low, high)),
        ]
    return np.clip(np.stack(rows[:count]).astype(np.float32), np.float32(low), np.float32(high))


def check_random_program(seed):
    """Every value and gradient lies in the certified bounds; return what was proved, and held."""
    rng = np.random.default_rng(seed)
    inner, text = random_program(rng)
    (a, b), (c, d) = (INTERVALS[i] for i in rng.integers(len(INTERVALS), size=2))
    fn = lambda x, y: jnp.sum(inner(x, y))
    certificate = ro.certify(fn, (vector(a, b), vector(c, d)), argnums=(0, 1))
    both = jax.value_and_grad(fn, (0, 1))
    xs, ys = points(rng, a, b, 60), points(rng, c, d, 60)
    run = jax.jit(jax.vmap(both) if seed % 2 else lambda *v: lax.map(lambda row: both(*row), v))
    value, gradients = run(xs, ys)
    finite = True
    for bound, found in zip(certificate.bounds, [value, *gradients], strict=True):
        found = np.asarray(found, np.float64)
        message = f"{seed}: {bound} of {text} for x in {a, b}, y in {c, d}"
        finite &= bool(np.isfinite(found).all())
        assert bound.nan or not np.isnan(found).any(), message
        found = found[~np.isnan(found)]
        assert (found >= bound.low).all(), message
        assert (found <= bound.high).all(), message
    assert finite or not certificate.ok
    return certificate.ok, finite


def test_random_programs_stay_in_their_bounds():
    results = [check_random_program(seed) for seed in range(5)]
    assert {ok for ok, _ in results} == {True, False}


@pytest.mark.slow
def test_many_random_programs_stay_in_their_bounds():
    results = [check_random_program(seed) for seed in range(1000, 1400)]
    held = [ok for ok, finite in results if finite]
    assert sum(held) >= 0.8 * len(held)


def _range(spec):
    shape, low, high, *kind = spec
    if kind == ["int"]:
        return Range(low, high, shape, jnp.int32)
    return vector(low, high, *shape) if shape else Range(float(low), float(high), (), jnp.float32)


def test_failing_programs_are_not_proved_and_near_misses_are(program_cases):
    """No program that fails somewhere in its ranges is proved; its line is named."""
    proved = {}
    for case in program_cases.CASES.values():
        ranges = {g: {k: _range(s) for k, s in d.items()} for g, d in case.spec.items()}
        certificate = ro.certify(case.fn, (ranges["params"], ranges["batch"]))
        proved[case.id] = certificate.ok
        if case.kind != "safe":
            assert not certificate.ok, case.id
            assert {u.line for u in certificate.unproved} & set(case.bug_lines), case.id
    safe = [case.id for case in program_cases.CASES.values() if case.kind == "safe"]
    assert [name for name in safe if not proved[name]] == []


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: lax.linalg.cholesky(jnp.outer(x, x) + jnp.eye(N)).sum(),
        lambda x: jax.scipy.special.gammainc(2.0, x).sum(),
        lambda x: jnp.abs(jnp.fft.fft(x)).sum(),
        lambda x: jnp.linalg.inv(jnp.outer(x, x) + jnp.eye(N)).sum(),
    ],
    ids=["cholesky", "igamma", "fft", "inverse"],
)
def test_what_is_not_known_is_not_proved(fn):
    certificate = ro.certify(fn, (vector(1, 2),), grad=False)
    assert not certificate.ok
    assert any("knows no bounds" in u.reason for u in certificate.unproved)


# --- what ordinary models need ---


def multilayer(params, x, labels):
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    h = jnp.tanh(h @ params["w2"])
    logits = h @ params["w3"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def layer_norm(x, scale):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    return jnp.sum((x - mean) * lax.rsqrt(variance + 1e-5) * scale)


def attention(q, k, v):
    scores = q @ k.T / jnp.sqrt(8.0)
    scores = jnp.where(jnp.tri(4, dtype=bool), scores, jnp.finfo(jnp.float32).min)
    return jnp.sum(jax.nn.softmax(scores) @ v)


def recurrent(w, xs):
    step = lambda h, x: (jnp.tanh(w @ h + x), None)
    return jnp.sum(lax.scan(step, jnp.zeros(4), xs)[0])


def convolution(kernel, image):
    h = lax.conv_general_dilated(image, kernel, (1, 1), "SAME")
    h = lax.reduce_window(jax.nn.gelu(h), -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return jax.nn.logsumexp(h)


W = {"w1": vector(-1, 1, 16, 32), "b1": vector(-1, 1, 32), "w2": vector(-1, 1, 32, 32)}
W["w3"] = vector(-1, 1, 32, 4)
LABELS = Range(0, 3, (8,), jnp.int32)
LOGITS = vector(-1e4, 1e4, 8, 4)
PROVED = {
    "safe binary cross-entropy": (
        lambda z, y: losses.sigmoid_binary_cross_entropy(z, y).mean(),
        (LOGITS, vector(0, 1, 8, 4)),
    ),
    "optax binary cross-entropy": (
        lambda z, y: optax.losses.sigmoid_binary_cross_entropy(z, y).mean(),
        (LOGITS, vector(0, 1, 8, 4)),
    ),
    "safe cross-entropy": (
        lambda z, y: losses.softmax_cross_entropy_with_integer_labels(z, y).mean(),
        (LOGITS, LABELS),
    ),
    "log_softmax": (lambda z: jax.nn.log_softmax(z).mean(), (LOGITS,)),
    "logsumexp": (lambda z: jax.nn.logsumexp(z), (LOGITS,)),
    "softplus": (lambda z: jax.nn.softplus(z).mean(), (LOGITS,)),
    "MLP": (multilayer, (W, vector(-3, 3, 8, 16), LABELS)),
    "layer norm": (layer_norm, (vector(-50, 50, 4, 16), vector(-10, 10, 16))),
    "attention": (attention, (vector(-10, 10, 4, 8),) * 3),
    "recurrent": (recurrent, (vector(-1, 1, 4, 4), vector(-1, 1, 20, 4))),
    "convolution": (convolution, (vector(-1, 1, 3, 2, 3, 3), vector(0, 1, 1, 2, 8, 8))),
    "division": (lambda x: jnp.sum(1 / x), (vector(1e-3, 1),)),
    "where": (
        lambda x: jnp.sum(jnp.where(x > 1e-20, jnp.log(jnp.where(x > 1e-20, x, 1)), 0)),
        (vector(-1, 1),),
    ),
    "robustify": (ro.robustify(lambda x: jnp.sum(jnp.sqrt(x))), (vector(0, 1),)),
}


@pytest.mark.parametrize("name", PROVED)
def test_proved(name):
    fn, ranges = PROVED[name]
    certificate = ro.certify(fn, ranges)
    assert certificate.ok, certificate
    assert certificate.unproved == ()
    assert np.isfinite([[b.low, b.high] for b in certificate.bounds]).all()


def test_a_flax_model_with_its_own_weights():
    nnx = pytest.importorskip("flax.nnx")
    models = importlib.import_module("robustops.models")
    model = models.Classifier(8, (16,), 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    wide = jax.tree.map(lambda w: Range(w - 1, w + 1), state)
    loss = lambda state, x, y: (
        -jnp.mean(jnp.take_along_axis(ro.log_softmax(nnx.merge(graph, state)(x)), y[:, None], -1))
    )
    ranges = vector(-3, 3, 4, 8), Range(0, 2, (4,), jnp.int32)
    near, far = (ro.certify(loss, (s, *ranges)) for s in (state, wide))
    assert near.ok, near
    assert far.ok, far
    assert near.bounds[0].high < far.bounds[0].high


def test_log_of_softmax_is_not_proved():
    def loss(z):
        p = jax.nn.softmax(z)
        return -jnp.mean(jnp.log(p))

    certificate = ro.certify(loss, (LOGITS,))
    first = certificate.unproved[0]
    assert (first.primitive, first.phase) == ("log", "forward")
    assert first.line == here(loss, "jnp.log(p)")
    assert first.operands[0].low == 0
    assert "log_softmax" in first.remedy


def test_a_derivative_is_told_from_a_value():
    root = lambda x: jnp.sum(jnp.sqrt(x))
    assert ro.certify(root, (vector(0, 1),), grad=False).ok
    (entry,) = ro.certify(root, (vector(0, 1),)).unproved
    assert (entry.primitive, entry.phase) == ("sqrt", "backward")
    assert ro.certify(root, (vector(1e-6, 1),)).ok


def test_only_the_gradient_asked_for_counts():
    fn = lambda x, y: jnp.sum(x * jnp.sqrt(y))
    ranges = vector(-1, 1), vector(0, 1)
    assert ro.certify(fn, ranges).ok
    assert not ro.certify(fn, ranges, argnums=1).ok
    assert [b.name for b in ro.certify(fn, ranges).bounds] == ["output", "gradient of x"]


def test_what_does_not_arrive_is_no_fault():
    masked = lambda x: jnp.sum(jnp.exp(jnp.where(x > 0, x, -jnp.inf)))
    assert ro.certify(masked, (vector(-1, 1),)).ok
    selected = lambda x: jnp.sum(jnp.where(x > 1e-20, jnp.log(x), 0))
    assert ro.certify(selected, (vector(-1, 1),), grad=False).ok
    assert not ro.certify(selected, (vector(-1, 1),)).ok


def test_a_written_infinity_that_arrives():
    fn = lambda x: jnp.where(x > 0, x, jnp.inf)
    (entry,) = ro.certify(fn, (vector(-1, 1),), grad=False).unproved
    assert "constant" in entry.reason


def test_subnormal_operands_may_be_flushed():
    log = lambda x: jnp.sum(jnp.log(x))
    assert not ro.certify(log, (vector(1e-45, 1),), grad=False).ok
    assert ro.certify(log, (vector(2e-38, 1),), grad=False).ok


def test_quotients_that_xla_regroups():
    fn = lambda x, y: jnp.sum(x / y / y)
    assert not ro.certify(fn, (vector(0, 1e-30), vector(1e-20, 1e-20)), grad=False).ok
    assert ro.certify(fn, (vector(0, 1), vector(1e-3, 1)), grad=False).ok


def test_a_long_loop_is_bounded_without_running_it():
    decay = lambda x: lax.scan(lambda c, _: (c * 0.5, None), x, None, length=10**6)[0].sum()
    assert ro.certify(decay, (vector(-1, 1),), grad=False).ok
    growth = lambda x: lax.scan(lambda c, _: (c * 1.5, None), x, None, length=10**6)[0].sum()
    (entry,) = ro.certify(growth, (vector(-1, 1),), grad=False).unproved
    assert entry.primitive == "mul"
    search = lambda x: lax.while_loop(lambda c: c[0] > 1e-3, lambda c: (c[0] / 2, c[1] + 1), (x, 0))
    assert ro.certify(search, (Range(0.0, 1.0),), grad=False).ok


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_overflow_is_that_of_the_dtype(dtype, x64):
    top = float(np.log(np.float64(jnp.finfo(dtype).max)))
    fn = lambda x: jnp.exp(x)
    assert ro.certify(fn, (Range(0, 0.95 * top, (2,), dtype),)).ok
    assert not ro.certify(fn, (Range(0, 1.05 * top, (2,), dtype),)).ok


# --- ranges, results, errors ---


def test_arrays_stand_for_themselves():
    fn = lambda w, x: jnp.sum(jnp.log(w @ x))
    w = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32)
    assert ro.certify(fn, (w, vector(0.1, 1, 2))).ok
    assert not ro.certify(fn, (-w, vector(0.1, 1, 2))).ok


def test_range_of_arrays_and_of_other_types():
    x = Range(np.array([0, 1], np.float16), np.array([1, 2], np.float16))
    assert (x.shape, x.dtype) == ((2,), np.float16)
    assert Range(0, 3).dtype == np.float32
    assert Range(0, 3, dtype=jnp.int32).dtype == np.int32
    assert ro.certify(lambda x: 1 / (x + 1), (x,)).ok


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0), "swap them"),
        ((0.0, np.inf), "must be finite"),
        ((0.0, 1e6, (), jnp.float16), "does not fit"),
        ((np.zeros(3), np.ones(3), (2,)), "do not broadcast"),
        ((0.0, 1.0, (), jnp.complex64), "must be real"),
    ],
)
def test_range_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Range(*arguments)


def test_certify_says_what_is_wrong():
    x = vector(0, 1)
    with pytest.raises(TypeError, match=r"low must be a number or an array, got \(3,\)"):
        Range((3,), 0.0, 1.0)
    with pytest.raises(TypeError, match=r"write \(range,\)"):
        ro.certify(jnp.sum, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError) as error:
        ro.certify(jnp.sqrt, ((0.0, 1.0),))
    assert any("an interval is Range(low, high, shape)" in note for note in error.value.__notes__)
    with pytest.raises(ValueError, match="argnums=1 for 1 arguments"):
        ro.certify(jnp.sum, (x,), argnums=1)
    with pytest.raises(TypeError, match="no floating array"):
        ro.certify(jnp.sum, (Range(0, 1, (3,), jnp.int32),))


def test_the_certificate_as_text_and_data():
    def ratio(x):
        return jnp.mean(1 / x)

    certificate = ro.certify(ratio, (vector(-1, 1),))
    text = str(certificate)
    assert f"test_certify.py:{here(ratio, '1 / x')}, in " in text
    for part in ("not proved", "divisor may be 0", "-1 to 1", "robustops.safe_div"):
        assert part in text
    data = json.loads(json.dumps(certificate.to_dict()))
    assert data["ok"] is False
    assert data["unproved"][0]["primitive"] == "div"
    proved = ro.certify(ratio, (vector(1, 2),))
    assert str(proved).startswith("certify: proved finite")
    assert "gradient of x" in str(proved)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.log(1 - jnp.clip(x, 0, 1 - 1e-8)),  # 1 - 1e-8 is 1 in float32
        lambda x: jnp.log(1.00000000001 - x),
        lambda x: jnp.sqrt(0.1 - jnp.minimum(x, 0.1)),
    ],
)
def test_numbers_of_the_program_are_rounded(fn):
    assert not ro.certify(lambda x: jnp.sum(fn(x)), (vector(0, 1),)).ok
    assert ro.certify(lambda x: jnp.log(1 - jnp.clip(x, 0, 1 - 2e-7)), (Range(0.0, 1.0),)).ok


def test_conjugate_gradients_are_read():
    solve = lambda b: jax.scipy.sparse.linalg.cg(lambda v: 2 * v, b)[0]
    assert not ro.certify(solve, (vector(0, 1),), grad=False).ok
