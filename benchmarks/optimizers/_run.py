"""The suite as a function, and the checks that its rows stand for what was asked."""

from collections.abc import Callable, Sequence

from .._command import choose
from .._rows import Once, Row, failed, fresh
from . import _behaviour, _cost
from ._arms import ARMS, BARE, QUICK_TREE, STACK, TREES
from ._cost import COMPILES

LARGE = [tree for tree in TREES if tree != QUICK_TREE]
ROUNDS = 31
OURS = ("skip_nonfinite", "guard", "guard, AGC", "rollback")
"""The arms of this library that must withstand every fault."""


def run(
    trees: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    *,
    rounds: int = ROUNDS,
    compiles: int = COMPILES,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Measures the cost on each tree, and observes each arm under each fault.

    Args:
      trees: parameter trees of the cost; None for the two large ones.
      arms: arms of the table of behaviour; None for all.
      dtypes: dtypes of the table of behaviour.
      rounds: interleaved rounds of the cost.
      compiles: compilations of each arm, interleaved too.
      once: measures a unit, a tree or an arm in one dtype, unless its rows are kept.
      advance: called with what is done and how much of it.

    Returns:
      Rows of kind "cost" (one an arm, form, tree and donation) and "behaviour" (one an arm, fault
      and dtype).

    Raises:
      ValueError: an unknown name (the valid ones are listed), no round or no compilation.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    if compiles < 1:
        raise ValueError(f"compiles must be >= 1, got {compiles}")
    trees, arms, dtypes = chosen(trees, arms, dtypes)
    return [
        *_cost.measure(trees, rounds, once, advance, compiles),
        *_behaviour.observe(arms, dtypes, once, advance),
    ]


def chosen(
    trees: Sequence[str] | None, arms: Sequence[str] | None, dtypes: Sequence[str] | None
) -> tuple[list[str], list[str], list[str]]:
    """The names, checked and in order."""
    return (
        choose("tree", LARGE if trees is None else trees, TREES),
        choose("arm", arms, ARMS),
        choose("dtype", dtypes, _behaviour.DTYPES),
    )


def planned(trees: Sequence[str], arms: Sequence[str], dtypes: Sequence[str]) -> int:
    """How much `run` advances."""
    return _cost.planned(trees) + len(arms) * len(dtypes)


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Cost ratios with donation on the first tree by arm and form, and shares of faults survived.

    A fault is survived if parameters stay finite and go on learning at the usual rate.
    """
    rows = [row for row in rows if row["error"] is None]
    cost = [row for row in rows if row["kind"] == "cost" and row["donated"]]
    found = {
        f"{row['arm']}, {row['form']}": row["ratio"]
        for row in cost
        if row["tree"] == cost[0]["tree"] and row["arm"] != BARE
    }
    for name, arms in (("robustops", OURS), ("optax", (STACK,))):
        faced = [r for r in rows if r["kind"] == "behaviour" and r["arm"] in arms]
        if faced:
            found[f"{name} survives"] = sum(r["finite"] and r["learning"] for r in faced) / len(
                faced
            )
    return found


def verify(
    rows: Sequence[Row],
    trees: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
) -> None:
    """Raises ValueError unless every cell is there once and our guards withstood every fault.

    The times are not judged: they are the machine's.
    """
    trees, arms, dtypes = chosen(trees, arms, dtypes)
    wrong = failed(rows, "robustops")
    if wrong:
        raise ValueError("\n".join(wrong))
    cost = [(r["arm"], r["form"], r["tree"], r["donated"]) for r in rows if r["kind"] == "cost"]
    seen = [(r["arm"], r["fault"], r["dtype"]) for r in rows if r["kind"] == "behaviour"]
    wanted = [(a, f, d) for a in arms for d in dtypes for f in _behaviour.FAULTS]
    if len(set(cost)) != len(cost) or len(cost) != _cost.planned(trees):
        raise ValueError(f"expected {_cost.planned(trees)} rows of cost, got {len(set(cost))}")
    if sorted(seen) != sorted(wanted):
        raise ValueError(f"expected {len(wanted)} rows of behaviour, got {len(set(seen))}")
    for row in rows:
        if row["kind"] == "cost" and not 0 < row["ratio"] < float("inf"):
            raise ValueError(f"no time: {row}")
        if row["kind"] == "behaviour" and row["arm"] in OURS and not row["finite"]:
            raise ValueError(f"{row['arm']} let {row['fault']} reach the parameters: {row}")
