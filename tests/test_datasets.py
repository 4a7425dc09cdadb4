"""Real data: disjoint parts, scaled by the training rows alone; and what check_batch finds."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from robustops import train
from robustops.train import RobustScaler, StandardScaler, check_batch

LOADERS: dict[str, Any] = {
    "digits": (train.load_digits, (64,), 1797, 10),
    "digit_sequences": (train.load_digit_sequences, (64, 1), 1797, 10),
    "breast_cancer": (train.load_breast_cancer, (30,), 569, 2),
    "wine": (train.load_wine, (13,), 178, 3),
    "diabetes": (train.load_diabetes, (10,), 442, 0),
    "image_patches": (train.load_image_patches, (64,), 2400, 0),
}


@pytest.mark.parametrize("name", LOADERS)
def test_parts_share_the_rows_out(name):
    """All rows, in three parts of the asked sizes, the same for a seed; types that fit takes."""
    load, shape, rows, classes = LOADERS[name]
    data, again, other = load(), load(), load(seed=1)
    parts = (data.train, data.validation, data.test)
    assert [len(part.inputs) for part in parts[1:]] == [round(0.15 * rows), round(0.2 * rows)]
    assert sum(len(part.inputs) for part in parts) == rows
    for part in parts:
        assert part.inputs.shape[1:] == shape
        assert part.inputs.dtype == np.float32
        assert part.targets.dtype == (np.int32 if classes else np.float32)
        assert len(part.targets) == len(part.inputs)
    np.testing.assert_array_equal(data.train.inputs, again.train.inputs)
    assert not np.array_equal(data.train.inputs, other.train.inputs)
    assert len(data.classes) == classes
    if classes:
        assert set(np.unique(data.train.targets)) == set(range(classes))
    if data.features:
        assert len(data.features) == shape[0]


def test_parts_are_disjoint():
    """No row of digits (all differ) is in two parts; patches have no pixel in common."""
    for data in (train.load_digits(), train.load_image_patches(size=16, count=500)):
        whole = np.concatenate([part.inputs for part in (data.train, data.validation, data.test)])
        assert len(np.unique(whole, axis=0)) > 0.98 * len(whole)
    nothing_held_out = train.load_wine(validation=0, test=0)
    assert len(nothing_held_out.train.inputs) == 178


def test_images_are_the_digits():
    flat, image = train.load_digits(), train.load_digits(image=True)
    assert image.train.inputs.shape[1:] == (8, 8, 1)
    np.testing.assert_array_equal(image.test.inputs.reshape(-1, 64), flat.test.inputs)
    sequences = train.load_digit_sequences()
    np.testing.assert_array_equal(sequences.test.inputs[..., 0], flat.test.inputs)


def test_scaled_learns_from_the_training_rows_alone():
    """Other held-out rows change no statistic; the fitted scaler is kept."""
    raw = train.load_breast_cancer()
    data = raw.scaled(StandardScaler())
    np.testing.assert_allclose(data.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.inputs.std(0), 1, atol=1e-4)
    assert np.abs(data.test.inputs.mean(0)).max() > 0.01
    spoilt = raw.__class__(raw.train, raw.test, raw.validation, raw.classes, raw.features)
    np.testing.assert_array_equal(spoilt.scaled(StandardScaler()).scaler.scale, data.scaler.scale)
    np.testing.assert_allclose(
        data.scaler.inverse(data.test.inputs), raw.test.inputs, rtol=1e-5, atol=1e-4
    )


def test_scaled_shared_and_targets():
    """One scale for all pixels keeps their proportions; numbers as targets have their own."""
    data = train.load_digits().scaled(StandardScaler(), shared=True)
    assert data.scaler.scale.shape == (1,)
    assert abs(float(data.train.inputs.std()) - 1) < 1e-4
    patches = train.load_image_patches(count=400).scaled(StandardScaler(), shared=True)
    assert patches.train.targets is patches.train.inputs
    diabetes = train.load_diabetes().scaled(StandardScaler(), targets=StandardScaler())
    np.testing.assert_allclose(diabetes.train.targets.std(), 1, rtol=1e-4)
    assert diabetes.target_scaler is not None


def test_dataset_errors(monkeypatch):
    data = train.load_wine().scaled(RobustScaler())
    with pytest.raises(ValueError, match="scaled already; load the data again"):
        data.scaled(RobustScaler())
    with pytest.raises(ValueError, match="the targets are classes"):
        train.load_wine().scaled(RobustScaler(), targets=RobustScaler())
    with pytest.raises(ValueError, match=r"got validation=0\.5, test=0\.5"):
        train.load_wine(validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="the photographs have 520 patches of 32 x 32"):
        train.load_image_patches(size=32, count=1000)
    with pytest.raises(ValueError, match="size and count must be >= 1, got 0, 2400"):
        train.load_image_patches(size=0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"load_digits needs scikit-learn: .*robustops\[data\]"):
        train.load_digits()


CLEAN = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
LABELS = np.arange(50) % 3


def kinds(report):
    return [finding.kind for finding in report.findings]


def test_clean_data_has_no_findings():
    for x in (CLEAN, CLEAN.reshape(50, 2, 2), jnp.asarray(CLEAN), jnp.asarray(CLEAN, jnp.bfloat16)):
        report = check_batch(x, LABELS, classes=3)
        assert report.ok, report
    assert not report.bad_rows.any()
    assert str(report) == "50 rows, nothing found"
    report.raise_if_bad()


def test_each_fault_is_found_where_it_is():
    """One of each kind: kind, rows, columns and count, the gravest first."""
    x = CLEAN.astype(np.float64)
    x[3, 1] = np.nan
    x[7] = np.inf
    x[9, 0] = 1e39
    x[11, 3] = -1e6
    x[:, 2] = 5
    y = LABELS.copy()
    y[20] = 3
    y[21] = -1
    report = check_batch(x, y, classes=3)
    found = {f.kind: f for f in report.findings}
    assert kinds(report) == ["nan", "inf", "range", "constant", "outlier", "label"]
    places = {k: (f.count, f.rows.tolist(), f.columns.tolist()) for k, f in found.items()}
    assert places["nan"] == (1, [3], [1])
    assert places["range"] == (1, [9], [0])
    assert places["constant"] == (1, [], [2])
    assert places["outlier"] == (1, [11], [3])
    assert places["label"] == (2, [20, 21], [0])
    assert np.flatnonzero(report.bad_rows).tolist() == [3, 7, 9, 20, 21]
    with pytest.raises(ValueError, match=r"nan: 1 cells of inputs are NaN \(rows 3; columns 1\)"):
        report.raise_if_bad()
    assert "rows 20, 21" in found["label"].text


def test_dtypes_and_lengths():
    assert kinds(check_batch(np.array([["a"], ["b"]]))) == ["dtype"]
    assert kinds(check_batch(CLEAN + 1j)) == ["dtype"]
    assert kinds(check_batch(CLEAN, LABELS.astype(float), classes=3)) == ["dtype"]
    assert kinds(check_batch(CLEAN, LABELS + 0.5, classes=3)) == ["dtype", "label"]
    assert kinds(check_batch(CLEAN, LABELS[:-1], classes=3)) == ["rows"]
    assert kinds(check_batch(CLEAN, np.where(LABELS > 1, np.nan, 0.0))) == ["nan"]
    # An integer image is no fault.
    assert check_batch(np.random.default_rng(0).integers(0, 255, (50, 4), np.uint8)).ok


def test_columns_that_rounding_makes_constant():
    """Ten seconds of time stamps are one number in float32; scaled before the cast they are not."""
    x = CLEAN.astype(np.float64)
    x[:, 1] = 1_700_000_000 + np.arange(50) / 5
    report = check_batch(x)
    assert kinds(report) == ["rounding"]
    assert report.findings[0].columns.tolist() == [1]
    assert "1 columns of inputs are constant in float32 (columns 1): take off" in str(report)
    assert check_batch(RobustScaler().fit(x).transform(x)).ok


def test_places_are_few():
    """A long list of rows ends in a count."""
    x = CLEAN.copy()
    x[:, 1] = np.nan
    text = str(check_batch(x))
    assert "rows 0, 1, 2, 3, 4 and 45 more; columns 1" in text


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((0, 3)), {}, r"inputs must have rows, got shape \(0, 3\)"),
        (np.float32(3), {}, "inputs must have rows"),
        (CLEAN, {"max_sigmas": 0}, "max_sigmas must be > 0, got 0"),
        (CLEAN, {"classes": 0}, "classes must be >= 1, got 0"),
    ],
)
def test_bad_calls(x, options, message):
    with pytest.raises(ValueError, match=message):
        check_batch(x, **options)
