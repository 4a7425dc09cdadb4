"""Twenty-two small models, each with one planted fault, and six that only look faulty.

`planted_operations` adds to them.

A fault stands on the line marked `# BUG`; the decorator says what `diagnose` has to find there.
Arguments are fixed, so that each program fails, or does not, the same way every time.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Program:
    """A loss, its arguments, and the fault in it; `primitive` is None for a sound program."""

    loss: Callable
    args: tuple[Any, ...]
    phase: str = ""
    primitive: str | None = None
    iteration: int | tuple[int, ...] | None = None

    @property
    def lines(self) -> list[int]:
        """Numbers of the marked lines."""
        source, start = inspect.getsourcelines(self.loss)
        return [start + i for i, text in enumerate(source) if "# BUG" in text]


PLANTED: dict[str, Program] = {}
SOUND: dict[str, Program] = {}


SLOW: set[str] = set()


def faulty(
    phase: str, primitive: str, *args: Any, iteration: int | tuple[int, ...] | None = None
) -> Callable:
    def enter(loss: Callable) -> Callable:
        PLANTED[loss.__name__] = Program(loss, args, phase, primitive, iteration)
        return loss

    return enter


def sound(*args: Any) -> Callable:
    def enter(loss: Callable) -> Callable:
        SOUND[loss.__name__] = Program(loss, args)
        return loss

    return enter


def slow(loss: Callable) -> Callable:
    SLOW.add(loss.__name__)
    return loss


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def dense(layer, x):
    return jnp.tanh(x @ layer["w"] + layer["b"])


def layer(seed: int, inputs: int, outputs: int):
    return {"w": normal(seed, inputs, outputs, scale=0.5), "b": jnp.zeros(outputs)}


# ------------------------------------------------------------------------------------ forward


@faulty(
    "forward",
    "sub",
    {"q": normal(0, 8, 8), "k": normal(1, 8, 8), "v": normal(2, 8, 8)},
    {"x": normal(3, 2, 5, 8), "length": jnp.array([5, 0])},
)
def attention_over_an_empty_sequence(params, batch):
    x = batch["x"]
    q, k, v = (x @ params[name] for name in "qkv")
    scores = jnp.einsum("bqd,bkd->bqk", q, k) / jnp.sqrt(8.0)
    valid = jnp.arange(5) < batch["length"][:, None]
    scores = jnp.where(valid[:, None, :], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)  # BUG: all keys of an empty sequence are masked
    mixed = jnp.einsum("bqk,bkd->bqd", weights, v)
    return jnp.mean(jnp.square(mixed - x))


@faulty(
    "forward",
    "exp",
    {"encode": layer(0, 6, 4), "scale": jnp.full((4, 4), 60.0), "decode": layer(1, 4, 6)},
    {"x": jnp.ones((3, 6)), "noise": normal(2, 3, 4)},
)
def variational_autoencoder(params, batch):
    hidden = dense(params["encode"], batch["x"]) ** 2 + 1
    mean, log_variance = hidden, hidden @ params["scale"]
    z = mean + jnp.exp(0.5 * jnp.clip(log_variance, -5, 5)) * batch["noise"]
    reconstruction = jnp.sum(jnp.square(dense(params["decode"], z) - batch["x"]), -1)
    spread = jnp.exp(log_variance)  # BUG: clipped above, not here
    kl = 0.5 * jnp.sum(spread + jnp.square(mean) - 1 - log_variance, -1)
    return jnp.mean(reconstruction + kl)


@faulty(
    "forward",
    "log",
    {"s": jnp.ones((4, 3)).at[2, 1].set(0.0), "t": normal(1, 4, 3)},
    normal(2, 5, 3),
    iteration=2,
)
def normalising_flow(params, x):
    def couple(carry, block):
        z, log_det = carry
        z = z * block["s"] + block["t"]
        log_det = log_det + jnp.sum(jnp.log(jnp.abs(block["s"])))  # BUG
        return (z, log_det), None

    (z, log_det), _ = lax.scan(couple, (x, 0.0), params)
    return jnp.mean(0.5 * jnp.sum(z**2, -1)) - log_det


@faulty(
    "forward",
    "exp",
    {"w": normal(0, 4, 2, scale=200.0)},
    {
        "state": normal(1, 6, 4),
        "action": jnp.array([0, 1, 0, 1, 1, 0]),
        "old": jnp.full(6, -300.0),
        "advantage": -jnp.ones(6),
    },
)
def proximal_policy(params, batch):
    log_probabilities = jax.nn.log_softmax(batch["state"] @ params["w"])
    chosen = jnp.take_along_axis(log_probabilities, batch["action"][:, None], 1)[:, 0]
    ratio = jnp.exp(chosen - batch["old"])  # BUG: unbounded
    clipped = jnp.clip(ratio, 0.8, 1.2)
    gain = jnp.minimum(ratio * batch["advantage"], clipped * batch["advantage"])
    return -jnp.mean(gain)


@faulty("forward", "sqrt", {"loss": jnp.float32(0.3)}, jnp.float32(1.0), iteration=4)
def bouncing_ball(params, energy):
    def bounce(energy, _):
        speed = jnp.sqrt(2 * energy)  # BUG: the energy is below 0 after the fourth bounce
        return energy - params["loss"], 2 * speed / 9.81

    _, times = lax.scan(bounce, energy, None, length=7)
    return jnp.sum(times)


@faulty(
    "forward",
    "cholesky",
    {"log_scale": jnp.float32(0.0)},
    {"x": jnp.array([[0.0], [1.0], [1.0]]), "y": jnp.array([0.0, 1.0, 1.0])},
)
def gaussian_process(params, batch):
    distance = jnp.sum((batch["x"][:, None] - batch["x"]) ** 2, -1)
    kernel = jnp.exp(-0.5 * distance / jnp.exp(params["log_scale"]))
    factor = jnp.linalg.cholesky(kernel)  # BUG: no jitter, and two points are the same
    alpha = jax.scipy.linalg.cho_solve((factor, True), batch["y"])
    return 0.5 * batch["y"] @ alpha + jnp.sum(jnp.log(jnp.diagonal(factor)))


@faulty(
    "forward",
    "log",
    {"weights": jnp.zeros(3), "means": jnp.array([0.0, 1.0, 2.0]), "log_width": jnp.full(3, -2.0)},
    jnp.array([0.1, 0.9, 30.0]),
)
def mixture_density(params, y):
    mixture = jax.nn.softmax(params["weights"])
    width = jnp.exp(params["log_width"])
    scaled = (y[:, None] - params["means"]) / width
    density = jnp.exp(-0.5 * scaled**2) / (width * jnp.sqrt(2 * jnp.pi))
    return -jnp.mean(jnp.log(jnp.sum(mixture * density, 1)))  # BUG: an outlier


@faulty(
    "forward",
    "sub",
    {"logits": normal(0, 6, 4)},
    jnp.array([1, 2, 1]),
    iteration=0,
)
def alignment(params, labels):
    log_probabilities = jax.nn.log_softmax(params["logits"])
    start = jnp.full(labels.shape[0], -jnp.inf).at[0].set(0.0)

    def advance(alpha, frame):
        move = jnp.concatenate([jnp.full(1, -jnp.inf), alpha[:-1]])
        top = jnp.maximum(alpha, move)
        both = jnp.exp(alpha - top) + jnp.exp(move - top)  # BUG: -inf - -inf
        return top + jnp.log(both) + frame[labels], None

    alpha, _ = lax.scan(advance, start, log_probabilities)
    return -alpha[-1]


@faulty(
    "forward",
    "div",
    {"matrix": jnp.array([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])},
    jnp.ones(3),
    iteration=3,
)
def power_iteration(params, start):
    matrix = lax.stop_gradient(params["matrix"])

    def improve(state):
        i, v = state
        return i + 1, matrix @ (v / jnp.sqrt(v @ v))  # BUG: the matrix is nilpotent

    _, v = lax.while_loop(lambda state: state[0] < 6, improve, (0, start))
    return jnp.sum(v * params["matrix"][0])


@faulty(
    "forward",
    "dot_general",
    {"w": jnp.full((64, 8), 40.0, jnp.float16)},
    jnp.full((4, 64), 40.0, jnp.float16),
)
def half_precision_layer(params, x):
    h = x @ params["w"]  # BUG: 64 * 40 * 40 is beyond float16
    return jnp.mean(jax.nn.relu(h).astype(jnp.float32))


@faulty(
    "forward",
    "div",
    {"cost": jnp.array([[0.0, 300.0], [300.0, 0.0]]), "shift": jnp.float32(250.0)},
    jnp.array([0.5, 0.5]),
    iteration=0,
)
def optimal_transport(params, weights):
    kernel = jnp.exp(-(params["cost"] + params["shift"]))

    def balance(_, uv):
        u, v = uv
        u = weights / (kernel @ v)  # BUG: the whole kernel underflows
        return u, weights / (kernel.T @ u)

    u, v = lax.fori_loop(0, 5, balance, (jnp.ones(2), jnp.ones(2)))
    return jnp.sum(u[:, None] * kernel * v * params["cost"])


@faulty("forward", "cumprod", {"w": jnp.full(3, 9.0)}, normal(0, 200, 3) ** 2 + 1)
def importance_weights(params, behaviour):
    log_ratio = jnp.sum(behaviour * params["w"], 1)
    weights = jnp.cumprod(log_ratio)  # BUG: two hundred factors above 1
    return jnp.mean(weights)


@faulty("forward", "div", {"w": normal(0, 4, 4)}, {"x": normal(1, 3, 4), "temperature": 0.0})
def sampled_logits(params, batch):
    logits = batch["x"] @ params["w"]

    def soft(logits):
        return logits / batch["temperature"]  # BUG

    def greedy(logits):
        return logits

    scaled = lax.cond(batch["temperature"] < 1.0, soft, greedy, logits)
    return -jnp.mean(jax.nn.log_softmax(scaled)[:, 0])


@faulty(
    "forward",
    "exp",
    {"gain": jnp.float32(3.0), "bias": jnp.float32(0.5)},
    jnp.ones(2),
    iteration=3,
)
def rematerialised_recurrence(params, h):
    @jax.checkpoint
    def cell(h, _):
        drive = params["gain"] * h + params["bias"]
        h = jnp.exp(drive) - 1  # BUG: grows without bound
        return jnp.minimum(h, 20.0 + h / 10), None

    h, _ = lax.scan(cell, h / 500, None, length=8)
    return jnp.mean(h)


# ------------------------------------------------------------------------------- backward only


@faulty("backward", "sqrt", {"layer": layer(0, 4, 4)}, jnp.zeros((2, 4)))
def rematerialised_block(params, x):
    @jax.checkpoint
    def block(h):
        h = h @ params["layer"]["w"]
        length = jnp.sqrt(jnp.sum(h * h, -1))  # BUG: of an empty row
        return length * jnp.tanh(jnp.sum(h, -1))

    return jnp.sum(block(x))


@faulty(
    "backward",
    "sqrt",
    {"encode": layer(0, 5, 3)},
    {"a": jnp.ones((4, 5)), "b": jnp.ones((4, 5)).at[1:].set(0.5)},
)
def contrastive(params, batch):
    a, b = (dense(params["encode"], batch[side]) for side in "ab")
    distance = jax.vmap(lambda u, v: jnp.linalg.norm(u - v))(a, b)  # BUG: the first pair is equal
    return jnp.mean(jnp.maximum(1.0 - distance, 0.0) ** 2)


@faulty(
    "backward",
    "acos",
    {"q": jnp.array([[2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])},
    jnp.array([0.1, 0.2]),
)
def quaternion_rotation(params, target):
    q = params["q"] / jnp.sqrt(jnp.sum(params["q"] ** 2, -1, keepdims=True))
    angle = 2.0 * jnp.arccos(q[:, 0])  # BUG: the first is the identity
    return jnp.sum((angle - target) ** 2)


@faulty("backward", "acosh", {"points": jnp.array([[0.1, 0.2], [0.1, 0.2], [0.3, 0.0]])}, 1.0)
def hyperbolic_embedding(params, scale):
    p = params["points"]
    squared = jnp.sum((p[:, None] - p) ** 2, -1)
    inside = 1 - jnp.sum(p**2, -1)
    distance = jnp.arccosh(1 + 2 * squared / (inside[:, None] * inside))  # BUG: d(p, p) = 0
    return scale * jnp.sum(distance)


@faulty("backward", "sqrt", {"w": normal(0, 4, 3).at[:, 1].set(0.0)}, normal(1, 6, 4))
def spread_of_features(params, x):
    features = x @ params["w"]
    spread = jnp.std(features, axis=0)  # BUG: one feature is constant
    return jnp.sum(jax.nn.relu(1.0 - spread))


@faulty("backward", "pow", {"gamma": jnp.float32(0.45), "gain": jnp.ones(4)}, jnp.arange(4.0))
def gamma_correction(params, image):
    def expose(level, pixel):
        level = level + (pixel * params["gain"][0]) ** params["gamma"]  # BUG: a black pixel
        return level, level

    return jnp.mean(lax.scan(expose, 0.0, image)[1])


PLANTED["gamma_correction"] = dataclasses.replace(PLANTED["gamma_correction"], iteration=0)


# ------------------------------------------------------------------------------- custom rules


@faulty("backward", "div", {"w": jnp.zeros((3, 2))}, normal(0, 4, 3))
def own_norm(params, x):
    @jax.custom_vjp
    def norm(v):
        return jnp.sqrt(jnp.sum(v * v))

    def forward(v):
        n = norm(v)
        return n, (v, n)

    def backward(residuals, g):
        v, n = residuals
        direction = v / n  # BUG
        return (g * direction,)

    norm.defvjp(forward, backward)
    return norm(x @ params["w"])


@faulty("backward", "log", {"p": jnp.array([0.0, 0.25, 0.75])}, jnp.ones(3))
def own_entropy(params, weights):
    @jax.custom_jvp
    def plogp(p):
        return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0)

    @plogp.defjvp
    def rule(primals, tangents):
        (p,), (t,) = primals, tangents
        slope = 1.0 + jnp.log(p)  # BUG: the value is guarded, the slope is not
        return plogp(p), slope * t

    return -jnp.sum(weights * jax.jit(plogp)(params["p"]))


# --------------------------------------------------------------------------------------- input


@faulty(
    "input",
    "",
    {"w": normal(0, 3, 2)},
    {"x": normal(1, 4, 3).at[2, 1].set(jnp.nan), "y": normal(2, 4, 2)},
)
def regression(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


# --------------------------------------------------------------------------------- sound ones


@sound(normal(0, 7, 4), normal(1, 7, 2))
def online_softmax(scores, values):
    def update(carry, item):
        top, total, mixed = carry
        score, value = item
        new = jnp.maximum(top, score)
        keep, weight = jnp.exp(top - new), jnp.exp(score - new)
        mixed = mixed * keep[:, None] + weight[:, None] * value
        return (new, total * keep + weight, mixed), None

    start = jnp.full(4, -jnp.inf), jnp.zeros(4), jnp.zeros((4, 2))
    (_, total, mixed), _ = lax.scan(update, start, (scores, values))
    return jnp.sum(mixed / total[:, None])


@sound(normal(0, 4), {"x": jnp.array([[1.0, jnp.nan, 2.0, 3.0], [jnp.inf, 1.0, 0.0, 1.0]])})
def cleaned_data(w, batch):
    known = jnp.isfinite(batch["x"])
    filled = jnp.where(known, batch["x"], 0.0)
    return jnp.sum((filled @ w) ** 2) / jnp.sum(known)


@sound(normal(0, 5, 5), jnp.tril(jnp.ones((5, 5), bool)))
def causal_attention(scores, mask):
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.sum(weights * scores)


@sound(jnp.array([0.0, 0.5, -1.0]))
def guarded_twice(x):
    positive = x > 0
    return jnp.sum(jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), x))


@sound(jnp.array([0.0, 2.0]), jnp.array([3.0, 4.0]))
def unused_infinity(x, y):
    information = lax.stop_gradient(-jnp.log(x))
    gate = jnp.where(information < 100.0, information, 0.0)
    return jnp.sum(gate * y)


@sound(jnp.array([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]]), jnp.array([2, 3]))
def masked_pooling(x, length):
    valid = jnp.arange(3) < length[:, None]
    highest = jnp.max(x, axis=1, where=valid, initial=-jnp.inf)
    lowest = jnp.min(jnp.where(valid, x, jnp.inf), axis=1)
    return jnp.sum(highest - lowest)
