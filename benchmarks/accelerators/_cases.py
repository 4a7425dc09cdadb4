"""What is compiled: each op and loss, the guards around Adam, the models' train steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import robustops as ro
from robustops import losses, models, optim
from robustops.testing import Op

from .._losses import LOSSES, cases
from .._peers import load
from ..optimizers._arms import ARMS, BARE, GUARDS, adam, one_call, two_calls
from ..optimizers._floor import FLOORS, by_hand
from ._measure import FLOOR, OURS

ELEMENTS = 2**26
"""Fewer would stay in a TPU's on-chip memory, and not be counted."""
WIDTH = 128


class Program(NamedTuple):
    """A function to compile, with the shapes of its arguments."""

    fn: Callable
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


class Step(NamedTuple):
    """A reference model, a batch for it, and its loss, ours and optax's."""

    model: Callable[[nnx.Rngs], nnx.Module]
    x: tuple[int, ...]
    classes: bool
    """Whether the targets are classes; else they are the inputs."""


STEPS = {
    "train step, Classifier": Step(
        lambda rngs: models.Classifier(784, (2048, 2048), 10, rngs=rngs), (4096, 784), True
    ),
    "train step, Autoencoder": Step(
        lambda rngs: models.Autoencoder(784, (2048,), 64, rngs=rngs), (4096, 784), False
    ),
    "train step, SequenceClassifier": Step(
        lambda rngs: models.SequenceClassifier(64, 512, 10, cell="gru", rngs=rngs),
        (512, 32, 64),
        True,
    ),
}
BARE_STEP = "optax"


def names() -> list[str]:
    """All cases: ops, losses, guards, gates written by hand, and train steps."""
    return [*cases(), *GUARDS, *FLOORS, *STEPS]


def programs(case: str) -> dict[tuple[str, str], Program]:
    """The programs of a case by (mode, library), the one that ours is compared with among them."""
    if case in GUARDS or case in FLOORS:
        return _guards(case)
    if case in STEPS:
        return _steps(STEPS[case])
    op = cases()[case]
    theirs = load(["optax"])[0][0].functions if case in LOSSES else {}
    other = ("optax", theirs[case]) if case in theirs else ("naive", op.naive)
    return {
        (mode, library): program
        for library, fn in ((OURS, op.fn), other)
        for mode, program in _modes(op, fn).items()
    }


def _modes(op: Op, fn: Callable) -> dict[str, Program]:
    arity = len(op.domain)
    shape = (ELEMENTS // WIDTH, WIDTH) if op.reduces or "softmax" in op.name else (ELEMENTS,)
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32),) * arity
    value = (lambda *xs: fn(*xs, axis=-1)) if op.reduces else fn
    total = lambda *xs: jnp.sum(value(*xs))
    return {
        "value": Program(lambda *xs: value(*xs), arguments),
        "gradient": Program(jax.value_and_grad(total, tuple(range(arity))), arguments),
    }


def _guards(case: str) -> dict[tuple[str, str], Program]:
    params = [
        {"w": jax.ShapeDtypeStruct((2000, 2000), jnp.float32)}
        | {name: jax.ShapeDtypeStruct((2000,), jnp.float32) for name in "bs"}
        for _ in range(20)
    ]

    def program(tx: Any, step: Callable) -> Program:
        return Program(step, (params, jax.eval_shape(tx.init, params), params), (0, 1))

    bare = program(adam(), two_calls(adam()))
    if case in FLOORS:
        library, tx = FLOOR, adam()
        update, joined = (by_hand(case, together) for together in (False, True))
    else:
        library, tx = OURS, ARMS[case]()
        update, joined = two_calls(tx), one_call(tx)
    return {
        ("update", library): program(tx, update),
        ("update", BARE): bare,
        ("guarded_apply", library): program(tx, joined),
        ("guarded_apply", BARE): bare,
    }


def _steps(step: Step) -> dict[tuple[str, str], Program]:
    """One step of Adam on a batch: bare with optax's loss, guarded with ours."""
    graph, params = nnx.split(nnx.eval_shape(lambda: step.model(nnx.Rngs(0))))
    x = jax.ShapeDtypeStruct(step.x, jnp.float32)
    y = jax.ShapeDtypeStruct(step.x[:1], jnp.int32) if step.classes else x

    def program(
        tx: Any, loss: Callable[[Any, Any], Any], apply: Callable[..., Any] = two_calls
    ) -> Program:
        update = apply(tx)

        def one(params, state, x, y):
            grads = jax.grad(lambda p: loss(nnx.merge(graph, p)(x), y))(params)
            return update(params, state, grads)

        return Program(one, (params, jax.eval_shape(tx.init, params), x, y), (0, 1))

    cross_entropy = "softmax_cross_entropy_with_integer_labels"
    name = cross_entropy if step.classes else "squared_error"
    theirs = lambda out, y: jnp.mean(getattr(optax.losses, name)(out, y))
    ours = lambda out, y: ro.safe_mean(getattr(losses, name)(out, y))
    bare = program(optax.adam(1e-3), theirs)
    guarded = optim.guard(optax.adam(1e-3))
    return {
        ("update", OURS): program(guarded, ours),
        ("update", BARE_STEP): bare,
        ("guarded_apply", OURS): program(guarded, ours, one_call),
        ("guarded_apply", BARE_STEP): bare,
    }
