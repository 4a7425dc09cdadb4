"""The optimizer benchmark: every cell is there, peers fail where they do, and ours withstand."""

import chex
import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("rich", reason="benchmarks need the extra 'benchmarks'")

from benchmarks._rows import read_rows
from benchmarks.optimizers import _cost, main, run, summary, verify
from benchmarks.optimizers._arms import QUICK_TREE, TREES, adam, gradients, two_calls
from benchmarks.optimizers._floor import FLOORS, by_hand
from benchmarks.optimizers._report import behaviour_table, cost_table, sentence
from benchmarks.report import page

ARMS = ["apply_if_finite", "skip_nonfinite", "guard"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    # Fewer arms: compilation is what takes time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cost, "COST", ("adam", "apply_if_finite", "skip_nonfinite"))
        patch.setattr(_cost, "FLOORS", ())
        assert main(["--quick", "--rounds", "2", "--arms", *ARMS, "--json", str(path)]) == 0
        found = read_rows(path)
        verify(found, [QUICK_TREE], ARMS)
        with pytest.raises(ValueError, match="expected 8 rows of cost, got 7"):
            verify(found[1:], [QUICK_TREE], ARMS)
    return found


def test_peers_fail_and_ours_withstand(rows):
    cells = {(r["arm"], r["fault"]): r for r in rows if r["kind"] == "behaviour"}
    assert not cells["apply_if_finite", "51 nan"]["finite"]
    assert not cells["apply_if_finite", "1e30"]["learning"]
    assert all(cells["skip_nonfinite", f]["unchanged"] for f in ("nan", "1e30", "51 nan"))
    assert all(r["learning"] for (arm, _), r in cells.items() if arm in ("skip_nonfinite", "guard"))


def test_report_has_every_arm_and_the_counts(rows):
    cost, behaviour = cost_table(rows), behaviour_table(rows)
    assert cost.row_count == 4
    assert behaviour.row_count == len(ARMS)
    assert summary(rows)["robustops survives"] == 1
    assert "robustops survives 100% of the faults" in sentence(rows)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_is_adam_or_nothing(name, together):
    params = TREES[QUICK_TREE]()
    grads, state = jax.tree.map(lambda g: g * 1e-4, gradients(params)), adam().init(params)
    step = jax.jit(by_hand(name, together))
    # The gradient is small enough for no unit to be clipped.
    chex.assert_trees_all_close(
        step(params, state, grads), two_calls(adam())(params, state, grads), rtol=1e-6
    )
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads)
    chex.assert_trees_all_equal(step(params, state, bad), (params, state))


def test_every_compilation_is_one():
    seen = []
    listen = lambda event, duration_secs, **kwargs: seen.append(event)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cost, "COST", ("adam",))
        patch.setattr(_cost, "FLOORS", ())
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            _cost._together(QUICK_TREE, True, 1, 1, lambda what, count: None)
            seen.clear()
            _cost._together(QUICK_TREE, True, 1, 3, lambda what, count: None)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert seen.count("/jax/core/compile/backend_compile_duration") == 3


def test_run_names_the_valid_choices():
    with pytest.raises(ValueError, match=r"unknown arm 'adma'; choose from: adam, zero_nans"):
        run(arms=["adma"])
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        run(rounds=0)
    with pytest.raises(ValueError, match="compiles must be >= 1, got 0"):
        run(compiles=0)


def test_verify_refuses_a_guard_that_let_something_pass(rows):
    bad = [dict(r, finite=r.get("arm") != "guard") if r["kind"] == "behaviour" else r for r in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cost, "COST", ("adam", "apply_if_finite", "skip_nonfinite"))
        patch.setattr(_cost, "FLOORS", ())
        with pytest.raises(ValueError, match="guard let nan reach the parameters"):
            verify(bad, [QUICK_TREE], ARMS)


def test_rows_carry_the_stamp_and_become_a_page(rows):
    for row in rows:
        assert {"suite", "device", "machine", "versions", "error"} <= set(row)
    assert page(rows, "").count("<section") == 2
