"""Time and compile time of a training step's optimizer part, over those of bare Adam."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._rows import Once, Row
from ._arms import ARMS, BARE, COST, GUARDS, TREES, adam, gradients, one_call, two_calls
from ._floor import FLOORS, by_hand


def measure(
    trees: Sequence[str],
    rounds: int,
    once: Once,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Rows for each tree, donated or not: all arms in turn, round after round."""
    rows = []
    for tree in trees:
        for donated in (True, False):
            unit = {"suite": "optimizers", "kind": "cost", "tree": tree, "donated": donated}
            rows += once(
                unit | {"rounds": rounds},
                lambda args=(tree, donated, rounds, advance): _together(*args),
            )
    return rows


def planned(trees: Sequence[str]) -> int:
    """How often `measure` calls `advance`."""
    return 2 * len(trees) * len(_forms())


def _forms() -> list[tuple[str, str]]:
    joined = [*(arm for arm in COST if arm in GUARDS), *FLOORS]
    return [(arm, "update") for arm in (*COST, *FLOORS)] + [(a, "guarded_apply") for a in joined]


def _together(
    tree: str, donated: bool, rounds: int, advance: Callable[[str, int], None]
) -> list[Row]:
    params = TREES[tree]()
    grads = gradients(params)
    runs, carries, compiling = {}, {}, {}
    for arm, form in _forms():
        if arm in FLOORS:
            tx, step = adam(), by_hand(arm, together=form != "update")
        else:
            tx = ARMS[arm]()
            step = two_calls(tx) if form == "update" else one_call(tx)
        carry = jax.tree.map(jnp.array, params), tx.init(params)
        lowered = jax.jit(step, donate_argnums=(0, 1) if donated else ()).lower(*carry, grads)
        begin = time.perf_counter()
        runs[arm, form] = lowered.compile()
        compiling[arm, form] = time.perf_counter() - begin
        carries[arm, form] = carry
        advance(f"{tree}: {arm}", 1)
    seconds = {key: np.empty(rounds) for key in runs}
    order = list(runs)
    for i in range(-2, rounds):  # two to warm up
        order.append(order.pop(0))  # none is always first, after whatever came between
        for key in order:
            step = runs[key]
            begin = time.perf_counter()
            carries[key] = jax.block_until_ready(step(*carries[key], grads))
            if i >= 0:
                seconds[key][i] = time.perf_counter() - begin
    bare = BARE, "update"
    rows = []
    for (arm, form), spent in seconds.items():
        ratios = spent / seconds[bare]
        rows.append(
            {
                "arm": arm,
                "form": form,
                "ratio": float(np.median(ratios)),
                "ratio_low": float(np.quantile(ratios, 0.25)),
                "ratio_high": float(np.quantile(ratios, 0.75)),
                "seconds": float(np.median(spent)),
                "compile_seconds": compiling[arm, form],
                "compile_ratio": compiling[arm, form] / compiling[bare],
            }
        )
    return rows
