"""What is compiled: each op and loss in two modes, and the guards around Adam."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustops.testing import Op

from .._losses import LOSSES, cases
from .._peers import load
from ..optimizers._arms import ARMS, BARE, one_call, two_calls

ELEMENTS = 2**26
"""Fewer would stay in a TPU's on-chip memory, and not be counted."""
WIDTH = 128
OURS = "robustops"
GUARDS = ("skip_nonfinite", "guard", "guard, AGC")


class Program(NamedTuple):
    """A function to compile, with the shapes of its arguments."""

    fn: Callable
    arguments: tuple[Any, ...]
    donated: tuple[int, ...] = ()


def names() -> list[str]:
    """All cases: ops, losses and guards."""
    return [*cases(), *GUARDS]


def programs(case: str) -> dict[tuple[str, str], Program]:
    """The programs of a case by (mode, library), the one that ours is compared with among them."""
    if case in GUARDS:
        return _guards(case)
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

    def program(arm: str, form: Callable) -> Program:
        tx = ARMS[arm]()
        state = jax.eval_shape(tx.init, params)
        return Program(form(tx), (params, state, params), (1, 2))

    bare = program(BARE, two_calls)
    return {
        ("update", OURS): program(case, two_calls),
        ("update", BARE): bare,
        ("guarded_apply", OURS): program(case, one_call),
        ("guarded_apply", BARE): bare,
    }
