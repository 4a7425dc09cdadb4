"""What a call costs beside its arithmetic: eager dispatch, tracing, compiling."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustops.testing import Op

from .._rows import Row, said

CALLS = 200
"""Eager calls of one timing; a call takes microseconds."""
REPEATS = 5
SMALL = 8
"""Elements of a row in an eager call: next to no arithmetic."""


def overhead(op: Op, arrays: Sequence[np.ndarray]) -> list[Row]:
    """Rows of modes "eager", "trace" and "compile", ours and the naive form's.

    Each is a ratio to the same of a copy, x + 1: a call from Python on 8 elements, and tracing and
    compiling the value and gradient of the sum on the arrays, for the first time.
    """
    shape = (1, SMALL) if op.reduces else (SMALL,)
    few = [jnp.asarray(a.ravel()[:SMALL].reshape(shape)) for a in arrays]
    whole = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    rows = []
    base = {"eager": _eager(lambda x: x + 1, few[:1]), **_compiling(lambda x: x + 1, whole[:1])}
    for library, fn in (("robustops", op.fn), ("naive", op.naive)):
        fn = (lambda *xs, fn=fn: fn(*xs, axis=-1)) if op.reduces else fn
        try:
            found = {"eager": _eager(fn, few), **_compiling(fn, whole)}
        except Exception as error:
            found, problem = dict.fromkeys(base, None), said(error)
        else:
            problem = None
        for mode, seconds in found.items():
            row: Row = {"library": library, "mode": mode, "error": problem}
            if seconds is not None:
                low, middle, high = np.quantile(np.divide(seconds, np.median(base[mode])), _MIDDLE)
                row |= {"ratio": float(middle), "ratio_low": float(low), "ratio_high": float(high)}
                row["seconds"] = float(np.median(seconds))
            rows.append(row)
    return rows


_MIDDLE = (0.25, 0.5, 0.75)


def _eager(fn: Callable, arrays: Sequence[jax.Array]) -> list[float]:
    fn(*arrays)
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready([fn(*arrays) for _ in range(CALLS)])
        found.append((time.perf_counter() - begin) / CALLS)
    return found


def _compiling(fn: Callable, structs: Sequence[jax.ShapeDtypeStruct]) -> dict[str, list[float]]:
    total = lambda *xs: jnp.sum(fn(*xs))
    both = jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(structs)))))
    begin = time.perf_counter()
    lowered = both.lower(*structs)
    middle = time.perf_counter()
    lowered.compile()
    return {"trace": [middle - begin], "compile": [time.perf_counter() - middle]}
