"""Faults in one operation each, where such ones stand: loops, rules, libraries, narrow dtypes.

And programs that only look faulty. See `planted_programs` for how they are marked.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tests.planted_programs import faulty, slow, sound


def f32(values) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


@faulty("forward", "div", f32(1.0), f32([1.0, 2.0, 3.0]), iteration=2)
def while_index(w, x):
    def body(s):
        i, acc = s
        return i + 1, acc + w / (x[i] - 3.0)  # BUG

    return lax.fori_loop(0, 3, lambda i, a: body((i, a))[1], 0.0)


@faulty("forward", "log", {"w": f32([1.0, 2.0])}, f32([3.0, 0.5, 1.0]), iteration=1)
def scan_of_cond(p, xs):
    def step(c, x):
        def low(x):
            return jnp.log(x - 0.5)  # BUG

        def high(x):
            return x * 2

        return c + lax.cond(x < 1.0, low, high, x) * p["w"].sum(), None

    return lax.scan(step, 0.0, xs)[0]


@faulty("backward", "sqrt", {"w": f32([[1.0, 2.0], [0.0, 0.0]])}, f32([1.0, 1.0]))
def vmap_of_scan(p, x):
    def one(w):
        def step(c, v):
            return c + v * v, None

        s, _ = lax.scan(step, 0.0, w * x)
        return jnp.sqrt(s)  # BUG

    return jnp.sum(jax.vmap(one)(p["w"]))


@faulty("forward", "reduce_sum", {"w": jnp.full(4, 2e38)}, 1.0)
def sum_overflow(p, x):
    return jnp.sum(p["w"]) * 0 + x  # BUG


@slow
@faulty("forward", "cumsum", {"w": jnp.full(4, 2e38)}, jnp.ones(4))
def cumsum_overflow(p, x):
    c = jnp.cumsum(p["w"])  # BUG
    return jnp.tanh(c[-1] * 1e-38) * x[0]


@faulty("forward", "integer_pow", {"w": f32([1e20, 1.0])}, 1.0)
def power_overflow(p, x):
    h = p["w"] ** 3  # BUG
    return jnp.sum(h / (1 + h)) * x


@faulty(
    "forward",
    "add",
    {"w": jnp.asarray([60000.0], jnp.float16)},
    jnp.asarray([30000.0], jnp.float16),
)
def half_residual(p, x):
    return jnp.sum((p["w"] + x).astype(jnp.float32))  # BUG


@faulty(
    "forward", "div", {"w": jnp.asarray([1.0], jnp.bfloat16)}, jnp.asarray([256.0], jnp.bfloat16)
)
def bfloat_absorbed(p, x):
    d = (x + p["w"]) - x
    return jnp.sum((p["w"] / d).astype(jnp.float32))  # BUG


@slow
@faulty("forward", "cholesky", {"l": f32(0.0)}, f32([[1.0, 2.0], [2.0, 1.0]]))
def mvn_logpdf(p, cov):
    x = jnp.ones(2)
    y = jax.scipy.stats.multivariate_normal.logpdf(x, 0 * x, cov * jnp.exp(p["l"]))  # BUG
    return -jnp.asarray(y)


@slow
@faulty("forward", "triangular_solve", {"b": f32([1.0, 2.0])}, f32([[1.0, 0.0], [3.0, 0.0]]))
def triangular(p, L):
    return jnp.sum(jax.scipy.linalg.solve_triangular(L, p["b"], lower=True))  # BUG


@slow
@faulty(
    "backward", "eigh", {"a": jnp.eye(3)}, f32([[1.0, 2.0, 0.0], [2.0, 3.0, 1.0], [0.0, 1.0, 5.0]])
)
def eigenvectors(p, C):
    w, v = jnp.linalg.eigh(p["a"])  # BUG
    return jnp.sum(C * (v * jnp.exp(w)) @ v.T)


@slow
@faulty("backward", "svd", {"a": jnp.eye(3)}, 1.0)
def singular_vectors(p, x):
    u, _, vt = jnp.linalg.svd(p["a"])  # BUG
    return jnp.sum(u @ vt) * x


@slow
@faulty("forward", "triangular_solve", {"a": jnp.zeros((2, 2))}, jnp.ones(2))
def singular_solve(p, b):
    return jnp.sum(jnp.linalg.solve(p["a"], b))  # BUG


@slow
@faulty("forward", "log", {"a": f32([[1.0, 2.0], [2.0, 4.0]])}, 1.0)
def log_det(p, x):
    return jnp.linalg.slogdet(p["a"])[1] * x  # BUG


@faulty("forward", "log", {"p": f32([0.0, 1.0])}, f32([1.0, 1.0]))
def xlogy_library(p, y):
    return -jnp.sum(jax.scipy.special.xlogy(y, p["p"]))  # BUG


@slow
@faulty("backward", "sqrt", {"w": jnp.zeros((2, 3))}, jnp.ones((4, 2)))
def linalg_norm_axis(p, x):
    h = x @ p["w"]
    return jnp.sum(jnp.linalg.norm(h, axis=-1, keepdims=True) * 3.0)  # BUG


@faulty("forward", "div", {"w": f32([1.0, 2.0])}, jnp.zeros(2, bool))
def mean_of_none(p, m):
    return jnp.mean(p["w"], where=m)  # BUG


@faulty("forward", "div", {"w": f32([1.0, 2.0, 3.0])}, jnp.array([0, 0, 2]))
def segment_mean(p, seg):
    total = jax.ops.segment_sum(p["w"], seg, 3)
    count = jax.ops.segment_sum(jnp.ones(3), seg, 3)
    return jnp.sum(total / count)  # BUG


@faulty("forward", "mul", {"w": f32([1.0, 2.0, 3.0])}, jnp.array([0, 0, 2]))
def segment_max_masked(p, seg):
    top = jax.ops.segment_max(p["w"], seg, 3)
    return jnp.sum(top * jnp.array([1.0, 0.0, 1.0]))  # BUG


@faulty("forward", "gather", {"w": f32([1.0, 2.0, 3.0])}, jnp.array([0, 7]))
def index_out_of_bounds(p, i):
    return jnp.sum(jnp.take(p["w"], i, mode="fill"))  # BUG


@faulty("forward", "log", {"w": f32([3.0, 1.0, 2.0])}, 2)
def sorted_gaps(p, k):
    s = jnp.sort(jnp.concatenate([p["w"], p["w"][:1]]))
    gaps = jnp.diff(s)
    return jnp.sum(jnp.log(gaps)) * k  # BUG


@faulty("backward", "sqrt", {"w": jnp.ones(8)}, 1.0)
def spectrum(p, x):
    z = jnp.fft.rfft(p["w"])
    return jnp.sum(jnp.sqrt(z.real**2 + z.imag**2)) * x  # BUG


@slow
@faulty("forward", "log", {"w": jnp.ones(8)}, 1.0)
def log_spectrum(p, x):
    z = jnp.fft.rfft(p["w"])
    return jnp.sum(jnp.log(jnp.abs(z))) * x  # BUG


@slow
@faulty("forward", "rsqrt", {"k": jnp.zeros((3, 3, 1, 2))}, jnp.ones((1, 5, 5, 1)))
def conv_norm(p, x):
    y = lax.conv_general_dilated(
        x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    m = y.mean((0, 1, 2))
    return jnp.sum((y - m) * lax.rsqrt(jnp.mean((y - m) ** 2, (0, 1, 2))))  # BUG


@slow
@faulty(
    "forward", "conv_general_dilated", {"k": jnp.full((3, 3, 1, 2), 2e38)}, jnp.ones((1, 5, 5, 1))
)
def conv_overflow(p, x):
    y = lax.conv_general_dilated(  # BUG
        x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jnp.tanh(y * 1e-38))


@faulty("forward", "div", {"w": f32([1.0, 2.0, 3.0, 4.0])}, jnp.int32(1))
def dynamic_slice_ratio(p, i):
    a = lax.dynamic_slice(p["w"], (i,), (2,))
    b = lax.dynamic_slice(p["w"] - 2.0, (i,), (2,))
    return jnp.sum(a / b)  # BUG


@faulty("forward", "log", {"w": f32([2.0, 5.0, 5.0])}, 1.0)
def argmax_branch(p, x):
    i = jnp.argmax(p["w"])
    margin = p["w"][i] - p["w"][(i + 1) % 3]
    return jnp.where(margin >= 0, jnp.log(margin), 0.0) * x  # BUG


@faulty("forward", "div", {"w": f32([1.0, 2.0])}, jnp.array([0, 3]))
def integer_counts(p, n):
    return jnp.sum(p["w"] / n)  # BUG


@slow
@faulty("backward", "pow", {"w": f32([0.0, 2.0])}, f32([0.5, 0.5]))
def learned_power(p, e):
    return jnp.sum(p["w"] ** e)  # BUG


@slow
@faulty("backward", "atan2", {"w": f32([0.0, 1.0])}, f32([0.0, 1.0]))
def heading(p, x):
    return jnp.sum(jnp.arctan2(p["w"], x))  # BUG


@faulty("backward", "log", {"w": f32([0.0, 2.0])}, 1.0)
def where_guarded_log(p, x):
    return jnp.sum(jnp.where(p["w"] > 0, jnp.log(p["w"]), 0.0)) * x  # BUG


@slow
@faulty("backward", "sqrt", {"w": f32([0.0, 2.0])}, jnp.array([False, True]))
def sum_where_of_sqrt(p, m):
    return jnp.sum(jnp.sqrt(p["w"]), where=m)  # BUG


@faulty("backward", "div", {"w": f32([0.0, 1.0])}, 1.0)
def own_vjp_in_jit(p, x):
    @jax.custom_vjp
    def f(v):
        return jnp.abs(v)

    f.defvjp(lambda v: (jnp.abs(v), v), lambda v, g: (g * v / jnp.abs(v),))  # BUG
    return jnp.sum(jax.jit(f)(p["w"])) * x


@faulty("forward", "div", f32(8.0), f32(0.5), iteration=1)
def implicit_value(w, x):
    def solve(f, x):
        return lax.fori_loop(0, 3, lambda i, x: x - f(x) / (3.0 * x * (i - 1.0)), x)  # BUG

    return lax.custom_root(lambda v: v**3 - w, x, solve, lambda g, y: y / g(jnp.ones_like(y)))


@faulty("backward", "div", f32(0.0), f32(2.0))
def implicit_gradient(w, x):
    def linear(g, y):
        return y / g(jnp.ones_like(y))  # BUG

    return x * lax.custom_root(lambda v: v**3 - w, x, lambda f, v: jnp.cbrt(w), linear)


@faulty("forward", "rsqrt", {"w": f32([0.0, 1.0])}, 1.0)
def scope_named_as_a_transformation(p, x):
    with jax.named_scope("transpose(block)"):
        return jnp.sum(lax.rsqrt(p["w"])) * x  # BUG


@faulty("backward", "rsqrt", {"w": f32([0.0, 1.0])}, 1.0)
def own_jvp_vmapped(p, x):
    @jax.custom_jvp
    def f(v):
        return jnp.sqrt(v)

    @f.defjvp
    def rule(pr, t):
        (v,), (dv,) = pr, t
        return f(v), 0.5 * dv * lax.rsqrt(v)  # BUG

    return jnp.sum(jax.vmap(f)(p["w"])) * x


@faulty("forward", "exp", {"w": f32([100.0, 1.0])}, 1.0)
def nested_jit(p, x):
    @jax.jit
    def inner(w):
        e = jnp.exp(w)  # BUG
        return e / e.sum()

    @jax.jit
    def outer(w):
        return inner(w) * 2

    return jnp.sum(outer(p["w"]) * jnp.arange(2.0)) * x


@slow
@faulty("forward", "log", {"w": f32([1.0, 1.0])}, 1.0)
def with_debug_print(p, x):
    d = p["w"][0] - p["w"][1]
    jax.debug.callback(lambda v: None, d)
    return jnp.log(d) * x  # BUG


@faulty("forward", "mul", {"w": f32([3.0, 1.0])}, 1.0, iteration=3)
def growth(p, x):
    def step(h, _):
        h = h * h * p["w"]  # BUG
        return h, h

    return jnp.sum(lax.scan(step, f32([1e2, 0.5]), None, length=8)[1][-1]) * x


@faulty("forward", "exp", {"w": f32([1.0, 2.0])}, 1.0, iteration=(1, 2))
def nested_scan(p, x):
    def outer(c, i):
        def inner(c, j):
            return c + jnp.exp(p["w"][0] * i * j * 60), None  # BUG

        return lax.scan(inner, c, jnp.arange(3.0))[0], None

    return lax.scan(outer, 0.0, jnp.arange(2.0))[0] * x


@slow
@faulty("forward", "reduce_prod", {"w": jnp.full(50, 1e5)}, 1.0)
def product_overflow(p, x):
    return jnp.log(jnp.prod(p["w"])) * x  # BUG


@slow
@faulty("forward", "lgamma", {"a": f32([0.0, 1.0])}, 1.0)
def gamma_at_pole(p, x):
    return jnp.sum(jax.scipy.special.gammaln(p["a"])) * x  # BUG


@slow
@faulty("forward", "erf_inv", {"u": f32([0.0, 0.5])}, 1.0)
def quantile(p, x):
    return jnp.sum(jax.scipy.special.erfinv(2 * p["u"] - 1)) * x  # BUG


# --------------------------------------------------------------------------------- sound ones


@sound({"w": f32([1.0, jnp.nan])}, 1.0)
def nan_to_numed(p, x):
    return jnp.sum(jnp.nan_to_num(p["w"])) * x


@sound({"w": f32([1.0, 2.0])}, f32([1.0, jnp.nan, 3.0]))
def nanmean_data(p, d):
    return jnp.nanmean(d) * p["w"].sum()


@sound({"w": f32([1.0, 5.0, 2.0])}, jnp.array([True, False, True]))
def where_argument(p, m):
    return jax.nn.softmax(p["w"], where=m)[0] + jnp.max(p["w"], where=m, initial=-jnp.inf)


@sound({"w": f32([[1.0, 5.0], [2.0, 3.0]])}, f32([[0.0, -jnp.inf], [0.0, 0.0]]))
def additive_mask(p, bias):
    return jnp.sum(jax.nn.softmax(p["w"] + bias, -1) @ jnp.arange(2.0))


@sound({"w": f32([0.0, 4.0])}, 1.0)
def isfinite_guard(p, x):
    l = jnp.log(lax.stop_gradient(p["w"]))
    return jnp.sum(jnp.where(jnp.isfinite(l), l, 0.0) * p["w"]) * x


@sound({"w": f32([1.0, 4.0])}, f32([jnp.inf, 2.0]))
def optional_upper_bound(p, hi):
    return jnp.sum(jnp.minimum(p["w"], hi))


@sound({"w": f32([1.0, 4.0])}, 1.0)
def best_so_far_loop(p, x):
    def body(i, best):
        return jnp.minimum(best, (p["w"] - i).sum() ** 2)

    return lax.fori_loop(0, 4, body, jnp.inf) * x


@sound({"w": f32([1.0, 4.0, 3.0])}, jnp.array([0, 0, 2]))
def segment_max_guarded(p, seg):
    t = jax.ops.segment_max(p["w"], seg, 3)
    return jnp.sum(jnp.where(jnp.isfinite(t), t, 0.0))


@sound({"w": f32([1.0, 4.0, 3.0])}, 2)
def top_k_mask(p, k):
    t = lax.top_k(p["w"], 2)[0][-1]
    return jax.nn.log_softmax(jnp.where(p["w"] < t, -jnp.inf, p["w"]))[1]


@slow
@sound({"w": f32([0.0, 4.0])}, 1.0)
def overflow_of_exp_saturating(p, x):
    return jnp.sum(1 - jnp.exp(-jnp.exp(p["w"]) * 100)) * x


@slow
@sound({"a": f32([[2.0, 0.0], [0.0, 3.0]])}, 1.0)
def linalg_ok(p, x):
    return (jnp.linalg.slogdet(p["a"])[1] + jnp.sum(jnp.linalg.inv(p["a"]))) * x


@slow
@sound({"w": f32([1.0, 2.0])}, jax.random.key(0))
def random_ok(p, k):
    return jnp.sum(jax.random.normal(k, (2,)) * p["w"]) + jnp.sum(
        jax.random.gumbel(k, (2,)) * p["w"]
    )


@sound({"w": f32([[1.0, 2.0], [3.0, 4.0]])}, jnp.array([2, 1]))
def ctc_like_alpha(p, n):
    def step(a, x):
        return jnp.logaddexp(a, jnp.concatenate([jnp.full(1, -jnp.inf), a[:-1]])) + x, None

    return lax.scan(step, f32([0.0, -jnp.inf]), p["w"])[0][1]
