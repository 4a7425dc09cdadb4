"""Argument checks shared by the transforms."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer


def check_inner(where: str, inner: Any) -> optax.GradientTransformationExtraArgs:
    """`inner` as a transformation that takes extra arguments."""
    if isinstance(inner, optax.MultiSteps):
        inner = inner.gradient_transformation()
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise TypeError(
            f"{where}: inner must be an optax GradientTransformation such as optax.adam(1e-3),"
            f" got {inner!r}"
        )
    return optax.with_extra_args_support(inner)


def check_number(
    where: str,
    name: str,
    value: Any,
    *,
    zero: bool = False,
    below: float | None = None,
    most: float | None = None,
    least: float | None = None,
) -> None:
    """Refuses what is not a number > 0 (>= 0 with `zero`) and in bounds; traced values pass."""
    if isinstance(value, Tracer):
        return
    bound = ">= 0" if zero else "> 0" if least is None else f">= {least}"
    bound += f" and < {below}" if below is not None else ""
    bound += f" and <= {most}" if most is not None else ""
    number = hasattr(value, "__float__") and jnp.ndim(value) == 0
    if isinstance(value, (str, bytes)) or not number or jnp.result_type(value) == jnp.bool_:
        raise TypeError(f"{where}: {name} must be a number {bound}, got {value!r}")
    inside = value >= (least or 0) if zero or least is not None else value > 0
    if below is not None:
        inside = inside and value < below
    if most is not None:
        inside = inside and value <= most
    if not inside:
        raise ValueError(f"{where}: {name} must be {bound}, got {value}")


def check_order(where: str, **values: Any) -> None:
    """Refuses numbers that are not in ascending order; traced values pass."""
    if any(isinstance(v, Tracer) for v in values.values()):
        return
    for (low, a), (high, b) in itertools.pairwise(values.items()):
        if a > b:
            raise ValueError(f"{where}: {low} must be <= {high}, got {low}={a} and {high}={b}")


def check_count(where: str, name: str, value: Any) -> None:
    """Refuses a value that is not an integer >= 1; traced values pass."""
    if isinstance(value, Tracer):
        return
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise ValueError(f"{where}: {name} must be an integer >= 1, got {value!r}")


def check_same_leaves(
    given: Any,
    params: Any,
    what: str = "the gradients have",
    advice: str = "pass the parameters that were differentiated, filtered alike (a None has no"
    " leaf)",
) -> None:
    """Refuses gradients, or `what` is given, that do not have one leaf for each parameter."""
    count, wanted = len(jax.tree.leaves(given)), len(jax.tree.leaves(params))
    if count != wanted:
        raise ValueError(f"update: {what} {count} leaves and the parameters {wanted}; {advice}")


def check_params(where: str, params: Any) -> None:
    """Refuses a call of `update` without the parameters that it needs."""
    if params is None:
        raise ValueError(
            f"{where}: needs the parameters; call update(grads, state, params) with all three"
        )
