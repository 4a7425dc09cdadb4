"""Time and compile time of a training step's optimizer part, over those of bare Adam."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._rows import Once, Row
from ._arms import ARMS, BARE, COST, GUARDS, TREES, adam, gradients, one_call, two_calls
from ._floor import FLOORS, by_hand

COMPILES = 3
"""Compilations of each arm, in turn as the steps are."""


def measure(
    trees: Sequence[str],
    rounds: int,
    once: Once,
    advance: Callable[[str, int], None] = lambda what, count: None,
    compiles: int = COMPILES,
) -> list[Row]:
    """Rows for each tree, donated or not: all arms in turn, round after round."""
    rows = []
    for tree in trees:
        for donated in (True, False):
            unit = {"suite": "optimizers", "kind": "cost", "tree": tree, "donated": donated}
            rows += once(
                unit | {"rounds": rounds, "compiles": compiles},
                lambda args=(tree, donated, rounds, compiles, advance): _together(*args),
            )
    return rows


def planned(trees: Sequence[str]) -> int:
    """How often `measure` calls `advance`."""
    return 2 * len(trees) * len(_forms())


def _forms() -> list[tuple[str, str]]:
    joined = [*(arm for arm in COST if arm in GUARDS), *FLOORS]
    return [(arm, "update") for arm in (*COST, *FLOORS)] + [(a, "guarded_apply") for a in joined]


def _prepared(arm: str, form: str, params: Any) -> tuple[Callable[..., Any], Any]:
    """A new step, of which nothing is traced or compiled yet, and what it carries."""
    if arm in FLOORS:
        tx, step = adam(), by_hand(arm, together=form != "update")
    else:
        tx = ARMS[arm]()
        step = two_calls(tx) if form == "update" else one_call(tx)
    return step, (jax.tree.map(jnp.array, params), tx.init(params))


def _together(
    tree: str, donated: bool, rounds: int, compiles: int, advance: Callable[[str, int], None]
) -> list[Row]:
    params = TREES[tree]()
    grads = gradients(params)
    bare, forms = (BARE, "update"), _forms()
    runs, carries = {}, {}
    compiling, busy = ({key: np.empty(compiles) for key in forms} for _ in range(2))
    for i in range(compiles):
        for key in _turned(forms, i):
            step, carries[key] = _prepared(*key, params)
            lowered = jax.jit(step, donate_argnums=(0, 1) if donated else ()).lower(
                *carries[key], grads
            )
            begin, worked = time.perf_counter(), time.process_time()
            runs[key] = lowered.compile()
            compiling[key][i] = time.perf_counter() - begin
            busy[key][i] = time.process_time() - worked
            if i == 0:
                advance(f"{tree}: {key[0]}", 1)
    seconds = {key: np.empty(rounds) for key in forms}
    for i in range(-2, rounds):  # two to warm up
        for key in _turned(forms, i):
            step = runs[key]
            begin = time.perf_counter()
            carries[key] = jax.block_until_ready(step(*carries[key], grads))
            if i >= 0:
                seconds[key][i] = time.perf_counter() - begin
    rows = []
    for key in forms:
        ratios = seconds[key] / seconds[bare]
        rows.append(
            {
                "arm": key[0],
                "form": key[1],
                "ratio": float(np.median(ratios)),
                "ratio_low": float(np.quantile(ratios, 0.25)),
                "ratio_high": float(np.quantile(ratios, 0.75)),
                "seconds": float(np.median(seconds[key])),
                "compile_seconds": float(np.median(compiling[key])),
                "compile_ratio": float(np.median(compiling[key] / compiling[bare])),
                "compile_cpu_ratio": float(np.median(busy[key] / busy[bare])),
            }
        )
    return rows


def _turned(forms: Sequence[tuple[str, str]], i: int) -> list[tuple[str, str]]:
    """None is always first, after whatever came between."""
    i %= len(forms)
    return [*forms[i:], *forms[:i]]
