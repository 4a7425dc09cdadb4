"""What each arm does about each fault: are parameters finite, unchanged, and learning after it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._rows import Once, Row
from ._arms import ARMS, two_calls

FAULTS: dict[str, tuple[float, int]] = {
    "nan": (np.nan, 1),
    "inf": (np.inf, 1),
    "-inf": (-np.inf, 1),
    "1e30": (1e30, 1),
    "3e38": (3e38, 1),
    "51 nan": (np.nan, 51),
}
"""What is planted in one element of the gradient, and how many steps in a row."""
DTYPES = {jnp.dtype(d).name: d for d in (jnp.float32, jnp.bfloat16, jnp.float16)}
AFTER = 200
"""Good steps after the fault."""


def observe(
    arms: Sequence[str],
    dtypes: Sequence[str],
    once: Once,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """One row for each arm, fault and dtype."""
    rows = []
    for arm in arms:
        for dtype in dtypes:
            unit = {"suite": "optimizers", "kind": "behaviour", "arm": arm, "dtype": dtype}
            rows += once(unit, lambda arm=arm, dtype=dtype: _under_faults(arm, dtype))
            advance(arm, 1)
    return rows


def _under_faults(arm: str, dtype: str) -> list[Row]:
    tx = ARMS[arm]()
    step = two_calls(tx)
    start = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3).astype(DTYPES[dtype])}
    good = {"w": jnp.full((4, 3), 0.1, DTYPES[dtype])}

    @jax.jit
    def walk(value: jax.Array, count: jax.Array) -> Any:
        def one(i: jax.Array, carry: Any) -> Any:
            params, state = carry
            bad = jnp.where((i > 0) & (i <= count), value, good["w"][0, 0])
            return step(params, state, {"w": good["w"].at[0, 0].set(bad.astype(DTYPES[dtype]))})

        first = step(start, tx.init(start), good)
        faulty = jax.lax.fori_loop(1, count + 1, one, first)
        almost = jax.lax.fori_loop(count + 1, count + AFTER, one, faulty)
        last = one(count + AFTER, almost)
        return [params["w"][0, 0] for params, _ in (first, faulty, almost, last)]

    rows = []
    for fault, (value, count) in FAULTS.items():
        first, faulty, almost, last = (float(x) for x in walk(jnp.float32(value), jnp.int32(count)))
        usual = abs(float(start["w"][0, 0]) - first)
        rows.append(
            {
                "fault": fault,
                "finite": bool(np.isfinite([faulty, last]).all()),
                "unchanged": first == faulty,
                "learning": bool(abs(last - almost) > 0.2 * usual),
            }
        )
    return rows
