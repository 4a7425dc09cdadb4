"""Other libraries' functions for our ops and losses, by their names there."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustops._accuracy import evaluate
from robustops.testing import OPS

from ._command import choose
from ._losses import OF

Arrays = Sequence[np.ndarray]
Outputs = tuple[np.ndarray, list[np.ndarray]]
Thunks = tuple[Callable[[], Any], Callable[[], Any] | None]


def compiled(fn: Callable, arrays: Arrays) -> Thunks:
    """The value, and the value and gradient, of the sum of a function that jax can trace."""
    inputs = tuple(jnp.asarray(a) for a in arrays)
    total = lambda *xs: jnp.sum(fn(*xs))
    both = jax.value_and_grad(total, argnums=tuple(range(len(inputs))))
    run = lambda f: lambda: jax.block_until_ready(f(*inputs))
    return run(jax.jit(fn)), run(jax.jit(both))


@dataclass(frozen=True)
class Peer:
    """A library: its functions by the names of ours, with our arguments."""

    name: str
    functions: dict[str, Callable]
    evaluate: Callable[[Callable, Arrays], Outputs] = evaluate
    """Values and Jacobians of a function of one element or slice, at every row."""
    thunks: Callable[[Callable, Arrays], Thunks] = compiled
    """Calls without arguments for one function and its arrays: the value, and the value and the
    gradient of its sum; None where the library has no gradient. Each returns when it is done."""
    host: bool = False
    """Whether it computes on the CPU, whatever device jax computes on."""


def load(names: Sequence[str] | None = None) -> tuple[list[Peer], list[str]]:
    """The peers that are installed, and a line for each that is not.

    Raises:
      ValueError: an unknown name.
    """
    found, missing = [], []
    for name in choose("peer", names, PEERS):
        try:
            found.append(PEERS[name]())
        except ImportError as error:
            missing.append(
                f"{name} is left out: {error}; run `pip install -e '.[peers]'` in the checkout"
            )
    return found, missing


def _search(modules: Sequence[ModuleType], other: dict[str, str]) -> dict[str, Callable]:
    """For each op the function of that name, without `safe_`, in the first module that has it."""
    found = {}
    for name in OPS:
        theirs = other.get(name, name.removeprefix("safe_"))
        for module in modules:
            if hasattr(module, theirs):
                found[name] = getattr(module, theirs)
                break
    return found


def _jax() -> Peer:
    functions = _search([jnp, jax.nn, jax.scipy.special, jax.lax], {"safe_div": "divide"})
    functions["safe_norm"] = jnp.linalg.norm
    # Positive axes only.
    functions["logcumsumexp"] = lambda x, axis: jax.lax.cumlogsumexp(x, axis % x.ndim)
    return Peer("jax", functions)


def _optax() -> Peer:
    import optax

    functions: dict[str, Callable] = {
        name: of(optax.losses) for name, of in OF.items() if hasattr(optax.losses, _base(name))
    }
    functions["safe_norm"] = lambda x, axis: optax.safe_norm(x, 0.0, axis=axis)
    for name in ("log_cosh", "cosine_similarity"):
        functions[name] = getattr(optax.losses, name)
    return Peer("optax", functions)


def _base(name: str) -> str:
    """The loss that a case is of."""
    return name.split("(")[0]


def _scipy() -> Peer:
    from scipy import special

    functions = _search(
        [special], {"sigmoid": "expit", "log_sigmoid": "log_expit", "softplus_inverse": ""}
    )

    def values(fn, arrays):
        return np.asarray(fn(*arrays)), []

    thunks = lambda fn, arrays: (lambda: fn(*arrays), None)
    return Peer("scipy", functions, values, thunks, host=True)


def _tfp() -> Peer:
    tfp = import_module("tensorflow_probability.substrates.jax")

    theirs = {
        "log1mexp": tfp.math.log1mexp,
        "logaddexp": tfp.math.log_add_exp,
        "logsubexp": tfp.math.log_sub_exp,
        "log_cosh": tfp.math.log_cosh,
        "logcumsumexp": tfp.math.log_cumsum_exp,
        "softplus_inverse": tfp.math.softplus_inverse,
    }
    return Peer("tfp", theirs)


def _keras() -> Peer:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = import_module("keras")

    functions = _search([keras.ops], {"safe_div": "divide", "softplus_inverse": ""})
    one = lambda x: jnp.ones_like(x)[..., None]
    k = keras.losses
    functions |= {
        "sigmoid_binary_cross_entropy": lambda x: k.binary_crossentropy(
            one(x), x[..., None], from_logits=True
        ),
        "softmax_cross_entropy_with_integer_labels": lambda x, axis: (
            k.sparse_categorical_crossentropy(jnp.zeros(x.shape[:-1]), x, from_logits=True)
        ),
        "binary_cross_entropy(label=1)": lambda p: k.binary_crossentropy(one(p), p[..., None]),
        "binary_cross_entropy(label=0)": lambda p: k.binary_crossentropy(0 * one(p), p[..., None]),
        "huber_loss": lambda e: k.huber(0 * one(e), e[..., None]),
        "log_cosh": lambda e: k.log_cosh(0 * one(e), e[..., None]),
    }
    return Peer("keras", functions)


def _torch() -> Peer:
    torch, functional = import_module("torch"), import_module("torch.nn.functional")

    # Its kl_div is a loss, and its pairwise_distance adds 1e-6.
    renamed = {"log_sigmoid": "logsigmoid", "kl_div": "", "pairwise_distance": ""}
    found = _search([torch.special, torch, functional], renamed)
    functions: dict[str, Callable] = {
        name: (lambda *xs, fn=fn, **axis: fn(*xs, **_dim(axis))) for name, fn in found.items()
    }
    t = torch
    functions |= {
        "pairwise_distance": lambda x, y, axis: t.linalg.vector_norm(x - y, dim=axis),
        "safe_norm": lambda x, axis: t.linalg.vector_norm(x, dim=axis),
        "safe_std": lambda x, axis: t.std(x, dim=axis, correction=0),
        "safe_var": lambda x, axis: t.var(x, dim=axis, correction=0),
        "sigmoid_binary_cross_entropy": lambda x: functional.binary_cross_entropy_with_logits(
            x, t.ones_like(x), reduction="none"
        ),
        "softmax_cross_entropy_with_integer_labels": lambda x, axis: functional.cross_entropy(
            x, t.zeros(x.shape[:-1], dtype=t.int64), reduction="none"
        ),
        "binary_cross_entropy(label=1)": lambda p: functional.binary_cross_entropy(
            p, t.ones_like(p), reduction="none"
        ),
        "binary_cross_entropy(label=0)": lambda p: functional.binary_cross_entropy(
            p, t.zeros_like(p), reduction="none"
        ),
        "huber_loss": lambda e: functional.huber_loss(e, t.zeros_like(e), reduction="none"),
    }

    def values_and_jacobians(fn, arrays):
        inputs = [_tensor(t, a) for a in arrays]
        every = tuple(range(len(inputs)))
        outs = t.func.vmap(fn)(*inputs), *t.func.vmap(t.func.jacrev(fn, every))(*inputs)
        values, *jacobians = [_array(t, out, arrays[0].dtype) for out in outs]
        return values, jacobians

    def thunks(fn, arrays):
        inputs = [_tensor(t, a) for a in arrays]
        leaves = [x.clone().requires_grad_() for x in inputs]
        return lambda: fn(*inputs), lambda: t.autograd.grad(fn(*leaves).sum(), leaves)

    return Peer("torch", functions, values_and_jacobians, thunks, host=True)


def _dim(axis: dict[str, Any]) -> dict[str, Any]:
    return {"dim": axis["axis"]} if axis else {}


def _tensor(torch: Any, a: np.ndarray) -> Any:
    # numpy has no bfloat16 that torch knows; float32 holds it exactly.
    short = a.dtype == jnp.bfloat16
    made = torch.from_numpy(a.astype(np.float32) if short else a)
    return made.bfloat16() if short else made


def _array(torch: Any, a: Any, dtype: Any) -> np.ndarray:
    a = a.detach()
    return (a.float() if a.dtype == torch.bfloat16 else a).numpy().astype(dtype)


PEERS: dict[str, Callable[[], Peer]] = {
    "jax": _jax,
    "optax": _optax,
    "scipy": _scipy,
    "tfp": _tfp,
    "torch": _torch,
    "keras": _keras,
}
"""jax and optax are always there; the others where they are installed."""
