"""The scalers: right where sklearn is, and right where data is constant, huge, tiny or missing."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import preprocessing
from sklearn.datasets import load_breast_cancer

from robustops.train import MinMaxScaler, RobustScaler, StandardScaler

ALL = [StandardScaler(), MinMaxScaler(), RobustScaler()]
ids = [type(s).__name__ for s in ALL]
each = pytest.mark.parametrize("scaler", ALL, ids=ids)
UNKNOWN: Any = "drop"
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(500, 4)).astype(np.float32)
MAX = float(np.finfo(np.float32).max)


def roundtrip_ulps(scaler, x):
    """Largest error of inverse(transform(x)), in ulps of the larger of |x| and |center|."""
    back = np.asarray(scaler.inverse(scaler.transform(x)), np.float64)
    size = np.maximum(np.abs(x), np.abs(np.asarray(scaler.center))).astype(np.float64)
    ulp = 2.0 ** (np.floor(np.log2(np.maximum(size, 1e-37))) - 23)
    return np.max(np.abs(back - x) / ulp)


def test_standard_matches_sklearn():
    """On raw breast cancer data (features from 1e-3 to 4e3) z is sklearn's float64 result."""
    x = load_breast_cancer(return_X_y=True)[0]
    want: Any = preprocessing.StandardScaler().fit(x)
    got = StandardScaler().fit(x)
    np.testing.assert_allclose(got.center, want.mean_, rtol=1e-6)
    np.testing.assert_allclose(got.scale, want.scale_, rtol=2e-6)
    np.testing.assert_allclose(got.transform(x), want.transform(x), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (10.0, 250.0)])
def test_minmax_matches_sklearn(low, high):
    """Every feature fills [low, high] as sklearn's does, and both ends are met."""
    x = load_breast_cancer(return_X_y=True)[0]
    want = preprocessing.MinMaxScaler((low, high)).fit_transform(x)
    z = np.asarray(MinMaxScaler(low=low, high=high).fit(x).transform(x))
    np.testing.assert_allclose(z, want, atol=2e-6 * max(abs(low), abs(high)))
    np.testing.assert_array_equal(z.min(axis=0), low)
    np.testing.assert_allclose(z.max(axis=0), high, rtol=1e-6)


def test_robust_matches_scipy():
    """Centre is the median, scale 1.4826 MAD, as scipy computes them in float64."""
    x = load_breast_cancer(return_X_y=True)[0]
    got = RobustScaler().fit(x)
    np.testing.assert_allclose(got.center, np.median(x, axis=0), rtol=1e-6)
    want = stats.median_abs_deviation(x, axis=0) / stats.norm.ppf(0.75)
    np.testing.assert_allclose(got.scale, want, rtol=1e-5)
    # Of normal data it is the standard deviation.
    sample = RNG.normal(3, 2, size=x.shape)
    assert abs(float(RobustScaler().fit(sample).scale.mean()) - 2) < 0.05


@each
@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1.0, 1e10, 1e37])
def test_magnitude_does_not_matter(scaler, magnitude):
    """Data times any magnitude transforms to the same z, and comes back within 4 ulp."""
    x = (NORMAL * np.float32(magnitude)).astype(np.float32)
    fitted = scaler.fit(x)
    np.testing.assert_allclose(
        fitted.transform(x), scaler.fit(NORMAL).transform(NORMAL), rtol=1e-4, atol=2e-6
    )
    assert np.isfinite(fitted.scale).all()
    assert roundtrip_ulps(fitted, x) <= 4


@each
def test_magnitudes_side_by_side(scaler):
    """Features at 1e-30, 1, 1e20 and 1e37 in one array: each is scaled as if alone."""
    factors = np.array([1e-30, 1, 1e20, 1e37], np.float32)
    z = scaler.fit(NORMAL * factors).transform(NORMAL * factors)
    np.testing.assert_allclose(z, scaler.fit(NORMAL).transform(NORMAL), rtol=1e-4, atol=2e-6)


@each
def test_the_whole_range_of_float32(scaler):
    """A feature from -max to max has a finite scale and z, where max - min overflows."""
    x = np.linspace(-MAX, MAX, 101, dtype=np.float32)[:, None]
    fitted = scaler.fit(x)
    z = np.asarray(fitted.transform(x))
    np.testing.assert_allclose(z, scaler.fit(x / 2**20).transform(x / 2**20), rtol=1e-5, atol=1e-6)
    assert np.isfinite(fitted.inverse(z)).all()
    assert roundtrip_ulps(fitted, x) <= 4


@pytest.mark.parametrize("offset", [1e3, 1e6, -1e7])
def test_large_mean_costs_no_digits(offset):
    """Mean 1e6 with deviation 1: z equals float64's to 1e-5, though the mean itself is rounded by
    0.03 in float32, and its mean is 0."""
    x = (NORMAL + np.float32(offset)).astype(np.float32)
    exact = x.astype(np.float64)
    want = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    z = np.asarray(StandardScaler().fit(x).transform(x))
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
    assert np.abs(z.mean(axis=0, dtype=np.float64)).max() < 1e-6
    assert roundtrip_ulps(StandardScaler().fit(x), x) <= 4


@pytest.mark.parametrize("scaler", ALL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_columns_that_float32_rounds(scaler, dtype):
    """Time stamps a second apart, and numbers near 2^40: scaled as the same without the offset,
    inside of jit too; what float32 cannot hold counts as missing."""
    steps = np.random.default_rng(0).integers(0, 100, (50, 1)) * np.array([1, 3])
    x = (steps + np.array([1.7e9, 2.0**40])).astype(dtype)
    fitted, small = scaler.fit(x), scaler.fit(steps.astype(np.float32))
    want = np.asarray(small.transform(steps.astype(np.float32)))
    got = fitted.transform(x)
    assert got.dtype == fitted.scale.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda s: s.transform(x))(fitted), want, atol=1e-5)
    assert not fitted.missing(x).any()
    if dtype == np.float64:
        x[3, 0] = 1e300
        assert np.asarray(fitted.missing(x)).sum() == 1
        assert np.isfinite(scaler.fit(x).transform(x)).all()


@each
@pytest.mark.parametrize("value", [0.0, 0.1, -3e-30, 7e37, 1e6 + 1 / 3])
def test_constant_feature(scaler, value):
    """A constant feature has scale 1, transforms to 0 (MinMax: low), and comes back bit for bit."""
    x = np.full((77, 1), value, np.float32)
    fitted = scaler.fit(x)
    np.testing.assert_array_equal(fitted.scale, 1)
    np.testing.assert_array_equal(fitted.transform(x), 0)
    np.testing.assert_array_equal(fitted.inverse(fitted.transform(x)), x)


def test_constant_feature_measures_new_values_in_ones():
    """With scale 1 a new value of a constant feature is its distance from the constant."""
    for scaler in ALL:
        z = scaler.fit(np.full((10, 1), 5.0)).transform(np.array([[7.5]]))
        np.testing.assert_array_equal(z, 2.5)


@each
def test_missing_cells_take_no_part_in_the_fit(scaler):
    """With a third of the cells NaN, inf or -inf, the fit is that of the other cells."""
    x = NORMAL.copy()
    bad = RNG.permuted(np.arange(500)[:, None].repeat(4, axis=1) < 160, axis=0)
    x[bad] = RNG.choice([np.nan, np.inf, -np.inf], bad.sum())
    fitted = scaler.fit(x)
    for j in range(2):
        alone = scaler.fit(NORMAL[~bad[:, j], j : j + 1])
        np.testing.assert_allclose(fitted.center[j], alone.center[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(fitted.scale[j], alone.scale[0], rtol=1e-5)


@each
def test_missing_cells_are_imputed_and_counted(scaler):
    """transform gives missing cells the scaled centre, missing(x) marks exactly these, and the
    other cells are what they are without them."""
    fitted = scaler.fit(NORMAL)
    x = NORMAL.copy()
    x[3, 0], x[4, 1], x[5, 2] = np.nan, np.inf, -np.inf
    mask = np.asarray(fitted.missing(x))
    np.testing.assert_array_equal(mask, ~np.isfinite(x))
    z = np.asarray(fitted.transform(x))
    np.testing.assert_array_equal(z[mask], fitted.fill)
    np.testing.assert_array_equal(z[~mask], np.asarray(fitted.transform(NORMAL))[~mask])


@each
def test_missing_cells_can_be_kept(scaler):
    """missing="keep" leaves NaN as NaN and inf as inf, and inverse brings them back."""
    fitted = scaler.fit(NORMAL)
    x = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    z = np.asarray(fitted.transform(x, missing="keep"))
    np.testing.assert_array_equal(z[0, :3], [np.nan, np.inf, -np.inf])
    np.testing.assert_allclose(fitted.inverse(z), x, rtol=1e-5)


@each
def test_feature_without_a_finite_cell(scaler):
    """An all-NaN feature gets centre 0 and scale 1, and spoils no other feature."""
    x = NORMAL.copy()
    x[:, 1] = np.nan
    fitted = scaler.fit(x)
    assert (float(fitted.center[1]), float(fitted.scale[1])) == (0, 1)
    z = np.asarray(fitted.transform(x))
    np.testing.assert_array_equal(z[:, 1], fitted.fill)
    np.testing.assert_array_equal(
        z[:, [0, 2, 3]], scaler.fit(NORMAL).transform(NORMAL)[:, [0, 2, 3]]
    )


def test_outliers_do_not_move_the_robust_scaler():
    """40% of outliers at 1e37 in data at 1e-30 leave centre and scale near the clean ones'."""
    clean = (RNG.normal(size=(1000, 1)) * 1e-30).astype(np.float32)
    x = clean.copy()
    x[:400] = RNG.choice([-1e37, 1e37], (400, 1))
    dirty, ideal = RobustScaler().fit(x), RobustScaler().fit(clean)
    assert abs(float(dirty.center[0])) < 1e-30
    assert 0.5 < float(dirty.scale[0] / ideal.scale[0]) < 4
    z = np.asarray(dirty.transform(x))
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(np.abs(z[:400]), MAX)


def test_max_sigmas_counts_outliers_as_missing():
    """Cells beyond max_sigmas are marked and imputed; those within are not; "keep" scales all."""
    x = NORMAL.copy()
    x[0], x[1], x[2] = 1e6, -1e30, np.nan
    fitted = RobustScaler(max_sigmas=10.0).fit(x)
    mask = np.asarray(fitted.missing(x))
    assert mask[:3].all()
    assert not mask[3:].any()
    z = np.asarray(fitted.transform(x))
    np.testing.assert_array_equal(z[:3], 0)
    assert (np.asarray(fitted.transform(x, missing="keep"))[0] > 1e5).all()
    assert not np.asarray(RobustScaler().fit(x).missing(x))[:2].any()


def test_robust_scale_falls_back():
    """Where over half of the cells are equal the MAD is 0: then IQR, then the mean deviation."""
    x = np.zeros((100, 2), np.float32)
    x[:40, 0] = np.linspace(1, 2, 40)  # MAD 0, IQR > 0
    x[:10, 1] = 5.0  # MAD and IQR 0
    scale = np.asarray(RobustScaler().fit(x).scale)
    iqr = np.subtract(*np.quantile(x[:, 0], [0.75, 0.25]))
    np.testing.assert_allclose(scale, [iqr / 1.34898, 1.25331 * 0.5], rtol=1e-5)
    # Sparse, with a cell whose sum with others would overflow.
    x[:10, 1] = 3e38
    np.testing.assert_allclose(RobustScaler().fit(x).scale[1], 1.25331 * 3e37, rtol=1e-5)


@each
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_types_accumulate_in_float32(scaler, dtype):
    """500 float16 rows of order 1e4: their sum overflows float16, the fit is the float32 one."""
    x = jnp.asarray(NORMAL * 5e3 + 2e4, dtype)
    fitted, exact = scaler.fit(x), scaler.fit(x.astype(jnp.float32))
    np.testing.assert_array_equal(fitted.center, exact.center)
    np.testing.assert_array_equal(fitted.scale, exact.scale)
    assert fitted.scale.dtype == jnp.float32
    z = fitted.transform(x)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, exact.transform(x.astype(jnp.float32)).astype(dtype))
    assert fitted.inverse(z).dtype == dtype


def test_far_cell_saturates():
    """A finite cell whose z is beyond the type gives its largest number, not inf."""
    fitted = StandardScaler().fit(NORMAL * np.float32(1e-30))
    z = np.asarray(fitted.transform(np.full((1, 4), 1e37, np.float32)))
    np.testing.assert_array_equal(z, MAX)
    half = StandardScaler().fit(NORMAL * 1e-3).transform(jnp.full((1, 4), 6e4, jnp.float16))
    np.testing.assert_array_equal(half, np.finfo(np.float16).max)


@each
def test_integers(scaler):
    """Integer data is converted to float: a uint8 image does not wrap around."""
    x = RNG.integers(0, 256, (50, 3)).astype(np.uint8)
    fitted = scaler.fit(x)
    np.testing.assert_array_equal(fitted.transform(x), fitted.transform(x.astype(np.float32)))
    np.testing.assert_allclose(fitted.inverse(fitted.transform(x)), x, atol=1e-4)


@each
def test_is_a_pytree(scaler):
    """fit, transform and inverse run under jit, vmap and scan with the eager results, and a fitted
    scaler passes through flatten and tree.map unchanged."""
    fitted = scaler.fit(NORMAL)
    z = fitted.transform(NORMAL)
    jitted = jax.jit(lambda x: scaler.fit(x))(NORMAL)
    np.testing.assert_allclose(jitted.transform(NORMAL), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda s, x: s.transform(x))(fitted, NORMAL), z, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(fitted.transform)(NORMAL), z, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda s, row: (s, s.inverse(row)), fitted, z)
    np.testing.assert_allclose(scanned, fitted.inverse(z), rtol=1e-6, atol=1e-6)
    copy = jax.tree.map(lambda leaf: leaf, fitted)
    assert type(copy) is type(scaler)
    np.testing.assert_array_equal(copy.transform(NORMAL), z)
    stacked = jnp.stack([NORMAL, 3 * NORMAL])
    many = jax.vmap(scaler.fit)(stacked)
    each_z = jax.vmap(lambda s, x: s.transform(x))(many, stacked)
    np.testing.assert_allclose(each_z[1], z, rtol=1e-4, atol=1e-5)


def test_more_axes_are_rows():
    """[batch, time, features] is fitted and transformed as [batch * time, features]."""
    x = NORMAL.reshape(50, 10, 4)
    for scaler in ALL:
        z = scaler.fit(x).transform(x)
        np.testing.assert_array_equal(z.reshape(-1, 4), scaler.fit(NORMAL).transform(NORMAL))


@each
def test_gradient_of_an_imputed_cell_is_zero(scaler):
    """The gradient through transform is 1/scale at finite cells and exactly 0 at missing ones."""
    fitted = scaler.fit(NORMAL)
    x = jnp.asarray(NORMAL[:2]).at[0, 0].set(jnp.nan)
    g = np.asarray(jax.grad(lambda x: fitted.transform(x).sum())(x))
    assert g[0, 0] == 0
    np.testing.assert_allclose(g[1], 1 / np.asarray(fitted.scale), rtol=1e-6)


@each
def test_strict_jax_modes(scaler):
    """Works under strict dtype promotion, without rank promotion, and under debug_nans with
    missing cells: no hidden NaN is made on the way."""
    x = NORMAL.copy()
    x[0, 0], x[:, 1] = np.nan, np.inf
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        fitted = scaler.fit(x)
        assert np.isfinite(fitted.inverse(fitted.transform(x))).all()


def test_fit_returns_a_new_scaler():
    """fit changes nothing in place, and keeps the options."""
    scaler = RobustScaler(max_sigmas=5.0)
    fitted = scaler.fit(NORMAL)
    assert scaler.affine is None
    assert fitted.max_sigmas == 5.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StandardScaler().transform(NORMAL), r"StandardScaler.transform: not fitted yet"),
        (lambda: RobustScaler().inverse(NORMAL), r"RobustScaler.inverse: not fitted yet"),
        (lambda: MinMaxScaler().scale, "MinMaxScaler.scale: not fitted yet"),
        (lambda: StandardScaler().fit(np.ones((0, 3))), r"no data, x has shape \(0, 3\)"),
        (lambda: StandardScaler().fit(np.ones((3, 0))), r"no data, x has shape \(3, 0\)"),
        (lambda: StandardScaler().fit(1.0), r"must have axes \[rows, features\], got shape \(\)"),
        (lambda: MinMaxScaler().fit(np.ones(5)), r"give x\[:, None\]"),
        (
            lambda: StandardScaler().fit(np.ones((3, 2), complex)),
            "x must be real numbers, got dtype",
        ),
        (lambda: StandardScaler().fit(np.array([["a"]])), "x must be real numbers, got dtype <U1"),
        (lambda: StandardScaler().fit(NORMAL).transform(NORMAL[:, :3]), "fitted to 4 features"),
        (lambda: StandardScaler().fit(NORMAL).inverse(1.0), "fitted to 4 features"),
        (lambda: StandardScaler().fit(NORMAL).missing(NORMAL[0, :1]), "fitted to 4 features"),
        (
            lambda: StandardScaler().fit(NORMAL).transform(NORMAL, missing=UNKNOWN),
            "'impute' or",
        ),
        (lambda: MinMaxScaler(low=1.0, high=0.0), "needs finite low < high"),
        (lambda: RobustScaler(max_sigmas=-1.0), "max_sigmas must be > 0 or None, got -1"),
    ],
)
def test_errors(call, message):
    """A wrong use names the method, what it got and what it needs."""
    with pytest.raises(ValueError, match=message):
        call()
