"""The models' benchmark: faults are planted and refused, counters add up, goals are judged."""

import numpy as np
import pytest

pytest.importorskip("rich", reason="benchmarks need the extra 'benchmarks'")

from benchmarks._rows import read_rows
from benchmarks.models import main, run, summary, verify
from benchmarks.models._report import sentence, table
from benchmarks.models._run import spoilt
from benchmarks.models._tasks import TASKS
from robustops import train

TASK = "breast_cancer"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One seed of the smallest task, as it is in the table."""
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    assert main(["--tasks", TASK, "--seeds", "1", "--json", str(path)]) == 0
    return read_rows(path)


def test_faults_are_planted_and_refused(rows):
    """15 steps an epoch, 60 epochs: a fault in each hundred, all refused, no other step."""
    clean, faulty = rows
    assert (clean["planted"], clean["skipped"], clean["nan_rows"]) == (0, 0, 0)
    assert faulty["planted"] == faulty["skipped"] == faulty["steps"] // 100 > 5
    assert faulty["nan_rows"] == 5
    assert faulty["outliers"] > 50
    assert min(clean["score"], faulty["score"]) > 0.9
    assert summary(rows)[0]["change"] == 0
    assert table(rows).row_count == 2
    assert "faults planted" in sentence(rows)


def test_spoilt_rows():
    """1% of the rows, rounded up, are NaN throughout; about 1% of the other cells are 1e6."""
    data = train.load_digits()
    found = spoilt(data.train, 0).inputs
    bad = np.isnan(found)
    assert bad.all(axis=1).sum() == bad.any(axis=1).sum() == 12
    assert 0.008 < np.mean(found[~bad.any(axis=1)] == 1e6) < 0.012
    assert np.isfinite(data.train.inputs).all()


def test_verify_refuses_rows_that_do_not_add_up(rows):
    verify(rows, [TASK], ["float32"], seeds=1)
    with pytest.raises(ValueError, match="expected 2 runs, got 1"):
        verify(rows[:1], [TASK], ["float32"], seeds=1)
    for change, message in (
        ({"recorded": 0}, "steps are missing"),
        ({"steps": 1}, "steps are missing"),
        ({"planted": 0}, "planted 0 faults"),
        ({"score": float("nan")}, "no score"),
    ):
        with pytest.raises(ValueError, match=message):
            verify([rows[0], {**rows[1], **change}], [TASK], ["float32"], seeds=1)


def test_goals_look_the_right_way():
    assert TASKS[TASK].reaches(0.97)
    assert not TASKS[TASK].reaches(0.95)
    assert TASKS["digits, 16-number code"].reaches(0.08)
    assert not TASKS["digits, 16-number code"].reaches(0.1)


def test_run_names_the_valid_choices():
    with pytest.raises(ValueError, match=r"unknown task 'mnist'; choose from: digits, MLP"):
        run(["mnist"])
    with pytest.raises(ValueError, match="seeds must be >= 1, got 0"):
        run(seeds=0)
