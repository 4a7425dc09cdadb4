"""The survival benchmark, end to end with few steps, and its command line."""

import copy
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks import __main__ as command
from benchmarks._rows import read_rows
from benchmarks.report import page
from benchmarks.survival import ARMS, SCENARIOS, _cli, run, summary, verify
from benchmarks.survival._arms import no_scaling, recipe, robust_scaling, standard_scaling
from benchmarks.survival._data import Split, moments
from benchmarks.survival._picture import overview
from benchmarks.survival._report import sentence
from benchmarks.survival._runner import GRID, RATES, compiled, planned, tune
from benchmarks.survival._scenario import skill

ROW = {"scenario", "stress", "arm", "seed", "survived", "learned", "fair", "metric", "seconds"}
STEPS = 40


@pytest.fixture(scope="module")
def rows():
    every = run(["clip-bce"], levels=[0, 2], steps=STEPS)
    return every + run(["log-square"], ["naive", "optax"], levels=[0, 2], steps=STEPS)


def test_rows_complete(rows):
    assert len(rows) == 2 * len(ARMS) + 2 * 2
    for row in rows:
        assert ROW <= set(row)
        assert isinstance(row["survived"], bool)
        assert isinstance(row["learned"], bool)
        assert row["survived"] or not row["learned"]
        assert row["metric"] is None or math.isfinite(row["metric"])
        assert row["seconds"] > 0
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_naive_dies_where_the_clip_is_none(rows):
    dead = [r for r in rows if not r["survived"]]
    assert {(r["scenario"], r["arm"], r["stress"]) for r in dead} == {("clip-bce", "naive", "100")}
    assert dead[0]["metric"] is None


def test_log_square_never_dies(rows):
    assert all(r["survived"] for r in rows if r["scenario"] == "log-square")


def test_summary_counts_rows(rows):
    for arm, count in summary(rows).items():
        mine = [r for r in rows if r["arm"] == arm and r["fair"]]
        assert count["runs"] == len(mine)
        assert count["survived"] == sum(r["survived"] for r in mine)
        assert count["learned"] == sum(r["learned"] for r in mine)


def test_unfair_rows_do_not_count(rows):
    unfair = [row | {"fair": False} for row in rows if row["arm"] == "naive"]
    others = [row for row in rows if row["arm"] != "naive"]
    assert summary(unfair + others) == summary(others)


def test_sentence_has_the_counts_of_every_arm(rows):
    said = sentence(rows)
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        found = re.search(
            rf"(?<!\+){re.escape(arm)} survived (\d+) and learned (\d+) of (\d+)", said
        )
        assert found is not None
        counted = sum(r["survived"] for r in mine), sum(r["learned"] for r in mine), len(mine)
        assert tuple(map(int, found.groups())) == counted


@pytest.mark.parametrize("arm", ARMS)
def test_run_repeats_exactly(arm):
    train = compiled("clip-bce", "adam", arm)
    first, second = (train(3, SCENARIOS["clip-bce"].levels[0], 0.01, STEPS) for _ in range(2))
    assert first[:2] == second[:2]
    assert first.survived


def test_verify_accepts_whole_and_refuses_partial_rows(rows):
    asked = {"only": ["clip-bce"], "levels": [0, 2]}
    good = [row | {"control": 1.0} for row in rows if row["scenario"] == "clip-bce"]
    verify(good, **asked)
    with pytest.raises(AssertionError, match="rows missing"):
        verify(good[1:], **asked)
    with pytest.raises(AssertionError, match="rows missing, repeated"):
        verify([*good, good[0]], **asked)
    for change, message in [
        ({"control": 0.01}, "control not healthy"),
        ({"control": None}, "control not healthy"),
        ({"survived": False, "learned": True}, "did not survive"),
        ({"survived": True, "metric": None}, "not finite"),
    ]:
        bad = copy.deepcopy(good)
        bad[-1] |= change
        with pytest.raises(AssertionError, match=message):
            verify(bad, **asked)


def test_overview_is_one_svg_with_every_arm(rows):
    root = ElementTree.fromstring(overview(rows))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {"".join(element.itertext()).strip() for element in root.iter()}
    assert set(ARMS) <= words


def test_overview_of_several_seeds_and_one_arm():
    few = run(["clip-bce"], ["naive"], seeds=[0, 7], levels=[1], steps=STEPS)
    assert [row["seed"] for row in few] == [0, 7]
    assert overview(few).count("<svg") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"only": ["nonsense"]}, "unknown scenario 'nonsense'; choose from: autoencoder-mse, "),
        ({"only": []}, "no scenario; choose from: "),
        ({"arms": ["torch"]}, "unknown arm 'torch'; choose from: naive, remedy, optax"),
        ({"only": ["rnn"], "levels": [9]}, "'rnn' has no level 9; choose from: 0 "),
        ({"only": ["rnn"], "levels": []}, "'rnn' needs a level; choose from: 0 "),
        ({"only": ["rnn"], "levels": "some"}, "levels must be 'quick', 'all' or indices"),
        ({"only": ["rnn"], "seeds": 0}, "seeds must be a number >= 1"),
        ({"only": ["rnn"], "seeds": [-1]}, "seeds must be a number >= 1 or a list of seeds >= 0"),
    ],
)
def test_run_names_the_valid_choices(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(**call)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "nonsense"], "unknown scenario 'nonsense'; choose from: autoencoder-mse"),
        (["--arms", "naive,torch"], "unknown arm 'torch'; choose from: naive, remedy"),
        (["--levels", "0,77"], "has no level 77; choose from: 0 (adam 1)"),
        (["--levels", "high"], "--levels must be quick, all or indices such as 0,2"),
        (["--seeds", "0"], "seeds must be a number >= 1"),
        (["--steps", "3"], "unrecognized arguments"),
    ],
)
def test_command_refuses_bad_input(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["survival", *argv])
    assert message in capsys.readouterr().err


def test_command_refuses_unknown_suite(capsys):
    assert command.main(["speeed"]) == 2
    told = capsys.readouterr().err
    assert "unknown suite 'speeed'; choose from: survival, accuracy, speed, optimizers, acc" in told


def test_command_lists_every_scenario(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SCENARIOS)


def test_command_writes_json_page_and_picture(tmp_path, capsys):
    files = {name: tmp_path / "new" / name for name in ("rows.json", "page", "picture.svg")}
    options = zip(("--json", "--report", "--picture"), map(str, files.values()), strict=True)
    argv = ["--only", "clip-bce", "--arms", "naive,robustops", "--levels", "0,1"]
    assert command.main([*argv, *(word for pair in options for word in pair)]) == 0
    rows = read_rows(files["rows.json"])
    printed = " ".join(capsys.readouterr().out.split())
    assert sentence(rows) in printed
    assert {row["arm"]: row["learned"] for row in rows if row["level"] == 1} == {
        "naive": False,
        "robustops": True,
    }
    assert 'id="clip-bce"' in (files["page"] / "index.html").read_text()
    ElementTree.parse(files["picture.svg"])


def test_scenarios_are_told_and_tuned():
    assert [s.number for s in SCENARIOS.values()] == list(range(1, 25))
    rates = json.loads(RATES.read_text())
    for scenario in SCENARIOS.values():
        assert scenario.title
        assert "Measured:" in scenario.story
        assert len(scenario.quick) == 3
        assert all(level.fair or level.note for level in scenario.levels)
        # Stress 0 is fair, and no level of an optimizer has the label of another.
        assert len({level.label for level in scenario.levels}) == len(scenario.levels)
        for optimizer in scenario.optimizers:
            assert scenario.healthy(optimizer).fair
            tuned = rates[f"{scenario.name}/{optimizer}"]
            assert set(tuned) == {"control", *ARMS}
            assert all(found["rate"] in GRID for found in tuned.values())
            assert tuned["control"]["skill"] > 0.3
    assert set(rates) == {f"{s.name}/{o}" for s in SCENARIOS.values() for o in s.optimizers}


@pytest.mark.slow
def test_tuning_repeats_the_frozen_rates():
    rates = json.loads(RATES.read_text())
    for key, found in tune(["log-square"]).items():
        assert {arm: each["rate"] for arm, each in found.items()} == {
            arm: each["rate"] for arm, each in rates[key].items()
        }


def test_quick_run_is_of_some_scenarios(monkeypatch):
    asked = {}
    run = lambda only, seeds, levels, **_: asked.update(only=only, seeds=seeds, levels=levels) or []
    for name, stub in (("run", run), ("conclude", lambda *_: 0), ("table", str), ("sentence", str)):
        monkeypatch.setattr(_cli, name, stub)
    _cli.main(["--quick"])
    assert set(asked["only"]) < set(SCENARIOS)
    assert (asked["levels"], asked["seeds"]) == ("quick", 1)
    _cli.main(["--quick", "--only", "rnn"])
    assert asked["only"] == ["rnn"]


def test_default_run_is_three_levels_of_one_seed():
    assert planned(None, None, 1, "quick") == len(SCENARIOS) * 3 * len(ARMS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_data_of_every_level_keep_shape_and_clean_held_out_rows(name):
    scenario = SCENARIOS[name]
    for level in scenario.levels:
        data = scenario.data(0, level.values)
        again = scenario.data(0, level.values)
        assert len(data.x) == len(data.y) > len(data.x_test) == len(data.y_test)
        np.testing.assert_array_equal(data.x, again.x)
        for held_out in (data.x_test, data.y_test):
            assert np.isfinite(held_out.astype(np.float32)).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("prepare", [no_scaling, standard_scaling, robust_scaling])
def test_predictions_come_back_in_original_units(prepare, scale):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (64, 5)), scale * rng.normal(-1, 4, (64, 2))
    prepared = prepare(Split(x, y, x, y))
    np.testing.assert_allclose(prepared.restore(prepared.y), y, rtol=1e-5, atol=1e-6 * scale)


def test_moments_leave_out_nan_but_not_inf():
    x = np.array([[1.0, 1.0, 5.0], [3.0, np.inf, 5.0], [np.nan, 2.0, 5.0]])
    center, scale = moments(x)
    assert center[0] == 2
    assert scale[0] == 1
    assert np.isnan(scale[1])
    assert (center[2], scale[2]) == (5, 1)


def test_dropping_bad_rows_uses_good_rows_only():
    scenario = SCENARIOS["division"]
    prepare = recipe(scenario, "remedy").prepare
    data = scenario.data(0, {"share": 0.5})
    prepared = prepare(data)
    assert np.isfinite(prepared.x[prepared.rows]).all()
    assert len(prepared.rows) == len(data.x) - round(0.5 * len(data.x))
    none = prepare(scenario.data(0, {"share": 1}))
    assert len(none.rows) == 0


@pytest.mark.parametrize(
    ("kind", "predictions", "targets", "expected"),
    [
        ("r2", [[1.0], [2.0], [3.0]], [[1.0], [2.0], [3.0]], 1),
        ("r2", [[2.0], [2.0], [2.0]], [[1.0], [2.0], [3.0]], 0),
        ("r2", [[2e30], [2e30], [3e30]], [[1e30], [2e30], [3e30]], 0.5),
        ("accuracy", [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [1, 1, 1, 0], 0),
        ("accuracy", [[-2.0], [3.0], [1.0], [4.0]], [0, 1, 1, 1], 1),
        ("r2", [[np.nan], [2.0], [2.0]], [[1.0], [2.0], [3.0]], np.nan),
    ],
)
def test_skill_above_trivial(kind, predictions, targets, expected):
    value = skill(kind, np.array(predictions), np.array(targets))
    assert value == pytest.approx(expected, nan_ok=True)


def test_rows_carry_the_stamp_and_become_a_page(rows):
    for row in rows:
        assert {"suite", "device", "machine", "versions", "error"} <= set(row)
    assert page(rows, "").count("<section") == 2
