"""Whether a function is total: edge grids, and checks of values and derivatives on them.

`robustops.testing` makes the public part of this public.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def edge_cases(dtype: Any) -> np.ndarray:
    """Finite numbers at which ops break, ascending, both signs.

    0, the smallest subnormal and normal numbers, eps, 1 - eps/2, 1, 1 + eps, small integers, the
    square roots of the smallest and largest numbers, the arguments at which exp overflows and
    sigmoid saturates, and the largest number.
    """
    info = jnp.finfo(dtype)
    top = float(info.max)
    positive = [
        0.0, float(info.smallest_subnormal), float(info.tiny), 10 * float(info.tiny),
        math.sqrt(float(info.tiny)), float(info.eps), 0.1, 0.5, 1 - float(info.epsneg), 1.0,
        1 + float(info.eps), 1.5, 2.0, 2.5, 3.0, 10.0, 20.0, math.log(top), 2 * math.log(top),
        math.sqrt(top), top / 2, top,
    ]  # fmt: skip
    return np.unique(np.asarray([s * v for v in positive for s in (-1.0, 1.0)]).astype(dtype))


def all_values(dtype: Any) -> np.ndarray:
    """Every finite number of a 16-bit floating dtype, ascending by bit pattern."""
    if jnp.finfo(dtype).bits != 16:
        raise ValueError(f"all_values: dtype must have 16 bits, got {np.dtype(dtype).name}.")
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        return values[np.isfinite(values)]


@functools.partial(jax.jit, static_argnums=0)
def derivatives(
    fn: Callable, arrays: tuple, tangents: tuple, cotangent: Any, others: tuple
) -> tuple:
    """Forward and reverse mode, and both differentiated along `others`: one compilation for all.

    Returns:
      (value, derivative along the tangents, its derivative along `others`, pulled-back cotangent,
      its derivative along `others`).
    """
    forward = lambda *xs: jax.jvp(fn, xs, tangents)[1]
    reverse = lambda *xs: jax.vjp(fn, *xs)[1](cotangent)
    along, along_twice = jax.jvp(forward, arrays, others)
    pulled, pulled_along = jax.jvp(reverse, arrays, others)
    return fn(*arrays), along, along_twice, pulled, pulled_along


@functools.partial(jax.jit, static_argnums=0)
def first_derivatives(fn: Callable, arrays: tuple, tangents: tuple, cotangent: Any) -> tuple:
    """Forward and reverse mode: (derivative along the tangents, pulled-back cotangent)."""
    return jax.jvp(fn, arrays, tangents)[1], jax.vjp(fn, *arrays)[1](cotangent)


def unit_tangents(arrays: Sequence[np.ndarray], batch: int) -> Iterator[tuple]:
    """One-hot tangents along each element of each argument, the first `batch` axes apart."""
    for k, a in enumerate(arrays):
        for element in np.ndindex(a.shape[batch:]):
            tangents = [np.zeros_like(other) for other in arrays]
            tangents[k][(..., *element)] = 1
            yield tuple(tangents)


def unit_cotangents(out: Any, batch: int) -> list[np.ndarray]:
    """One-hot cotangents of each output, the first `batch` axes apart."""
    return [c[0] for c in unit_tangents([np.zeros(out.shape, out.dtype)], batch)]


def check_total(fn: Callable, *args: ArrayLike) -> None:
    """Assert that `fn` has finite values, first and second derivatives at finite arguments.

    Derivatives are taken in forward and in reverse mode, the second ones as forward over forward
    and forward over reverse, along each argument (and from each output) in turn.

    Args:
      fn: elementwise in arrays of one shape; its result may have one axis more, of several outputs.
        A reduction over n elements is checked as a function of n arrays.
      *args: finite floating arrays of equal shape.

    Raises:
      AssertionError: it names the function, the derivative, and the first bad input.
    """
    arrays = [np.asarray(jnp.asarray(a)) for a in args]
    check_total_of_rows(fn, arrays, arrays[0].ndim)


def check_total_of_rows(fn: Callable, arrays: Sequence[np.ndarray], batch: int) -> None:
    """`check_total` of a function of rows; `batch` is the number of axes before a row's."""
    arrays = tuple(arrays)
    units = list(unit_tangents(arrays, batch))
    out = jax.eval_shape(fn, *arrays)
    outputs = unit_cotangents(out, batch)
    name = getattr(fn, "__name__", fn)

    def finite(label, got):
        for leaf in jax.tree.leaves(got):
            bad = ~np.isfinite(np.asarray(leaf).astype(np.float64))
            if bad.any():
                row = np.argwhere(bad)[0]
                near = [a[tuple(row[:batch])] for a in arrays]
                raise AssertionError(
                    f"{name}: {label} is not finite at {int(bad.sum())} of {bad.size} points, "
                    f"first at index {tuple(map(int, row))}, input {near}."
                )

    for n in range(max(len(units), len(outputs))):
        # Beyond the shorter list its last member is repeated.
        i, o = min(n, len(units) - 1), min(n, len(outputs) - 1)
        for j, others in enumerate(units):
            value, along, along_twice, pulled, pulled_along = derivatives(
                fn, arrays, units[i], outputs[o], others
            )
            finite("the value", value)
            finite(f"the derivative by argument {i}", along)
            finite("the gradient (reverse mode)", pulled)
            finite(f"the second derivative by arguments {i}, {j}", along_twice)
            finite(f"the derivative of the gradient by argument {j}", pulled_along)


def check_zero_absorbs(fn: Callable, *args: ArrayLike) -> None:
    """Assert that a zero tangent or cotangent gives exactly zero, at NaN and inf too.

    Args:
      fn: function of the arrays.
      *args: floating arrays; finite or not.

    Raises:
      AssertionError: it names the mode and the first bad input.
    """
    arrays = tuple(np.asarray(jnp.asarray(a)) for a in args)
    zeros = tuple(np.zeros_like(a) for a in arrays)
    out = jax.eval_shape(fn, *arrays)
    _, forward, _, reverse, _ = derivatives(
        fn, arrays, zeros, np.zeros(out.shape, out.dtype), zeros
    )
    for label, got in (("forward", forward), ("reverse", reverse)):
        for leaf in jax.tree.leaves(got):
            bad = np.asarray(leaf) != 0  # NaN too
            if bad.any():
                raise AssertionError(
                    f"{getattr(fn, '__name__', fn)}: a zero tangent gives "
                    f"{np.asarray(leaf)[bad][0]} in {label} mode, first at index "
                    f"{tuple(map(int, np.argwhere(bad)[0]))}."
                )
