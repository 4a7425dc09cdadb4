"""Scalers: fitted on data once, then pure functions of an array, forwards and back.

All of them are affine in each feature, `z = (x - center) / scale`, and differ in what they take
for the centre and the scale. They are pytrees: a fitted scaler goes through jit, vmap and scan, and
into a checkpoint. What they share:

- **Range.** Data from 1e-37 to 3e38 in float32, one feature at 1e-30 beside another at 1e37: each
  feature is divided by a power of two first, so no sum or square leaves the range, and no bit is
  lost.
- **Precision.** float16 and bfloat16 are accumulated in float32. The centre is held as a sum of two
  floats, so a mean of 1e6 over a deviation of 1 costs no digits. `fit`, `partial_fit` and
  `transform` take float64 and integers of numpy as they are, and give float32: time stamps of 1.7e9
  keep their seconds.
- **Missing cells.** NaN and infinite cells take no part in the fit. `transform` puts the centre in
  their place (z = 0) unless `missing="keep"`; `missing(x)` is the mask of the cells concerned, so
  `missing(x).sum()` is how many were replaced.
- **Constant features** get scale 1: they transform to 0, and come back exactly. A feature without a
  single finite cell gets centre 0 and scale 1.
- **Overflow.** A finite cell so far away that z is beyond the type's range gets its largest number.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from ._streaming import Seen, mean_of, merge, power_of_two, root_mean_square, saturate, see


class Affine(NamedTuple):
    """`x = unit * (center + center_low + scale * z)`, for each feature.

    Attributes:
      unit: a power of two near the magnitude of the feature; multiplying by it rounds nothing.
      center: the centre in that unit.
      center_low: what rounding the centre left over, at most half an ulp of it.
      scale: the scale in that unit, > 0.
    """

    unit: jax.Array
    center: jax.Array
    center_low: jax.Array
    scale: jax.Array


class _Scaler:
    """What the scalers share; a subclass says how to fit, in `_unit` and `_fit`."""

    affine: Affine | None

    @property
    def fill(self) -> float:
        """The scaled value that `transform` gives to a missing cell."""
        return 0.0

    @property
    def center(self) -> jax.Array:
        """The fitted centre, shape `[features]`."""
        affine = self._fitted("center")
        return saturate(affine.unit * affine.center)

    @property
    def scale(self) -> jax.Array:
        """The fitted scale, shape `[features]`, > 0 and finite."""
        affine = self._fitted("scale")
        return saturate(affine.unit * affine.scale)

    def fit(self, x: ArrayLike) -> Self:
        """Returns a scaler fitted to the data; this one is unchanged.

        Args:
          x: real data, shape `[..., rows, features]`; all axes but the last are rows. NaN and
            infinite cells are left out.

        Returns:
          A fitted scaler of the same kind and options.

        Raises:
          ValueError: no rows or no features, fewer than two axes, or a dtype that is not real.
        """
        affine = _with_all_digits(self._fit_affine, _rows(f"{type(self).__name__}.fit", x))
        return dataclasses.replace(self, affine=affine)  # type: ignore[type-var]

    def transform(
        self, x: ArrayLike, *, missing: Literal["impute", "keep"] = "impute"
    ) -> jax.Array:
        """Maps data to scaled data, `z = (x - center) / scale`.

        Args:
          x: real data, shape `[..., features]`.
          missing: "impute" puts the centre in place of the cells that `missing(x)` marks, so that
            the result is finite; "keep" scales them like the others: NaN stays NaN, inf stays inf.

        Returns:
          Scaled data of x's shape and dtype (the default floating type for integers and, unless x64
          is enabled, float64).

        Raises:
          ValueError: not fitted, another number of features than at the fit, or an unknown option.
        """
        if missing not in ("impute", "keep"):
            name = f"{type(self).__name__}.transform"
            raise ValueError(f"{name}: missing must be 'impute' or 'keep', got {missing!r}")
        scaled = functools.partial(self._transform, missing=missing)
        return _with_all_digits(scaled, self._checked("transform", x))

    def inverse(self, z: ArrayLike) -> jax.Array:
        """Maps scaled data back, `x = center + scale * z`; NaN and inf stay.

        `inverse(transform(x))` is x to a few ulps of the larger of |x| and |center|.

        Args:
          z: scaled data, shape `[..., features]`.

        Returns:
          Data of z's shape and dtype.

        Raises:
          ValueError: not fitted, or another number of features than at the fit.
        """
        return self._inverse(self._checked("inverse", z))

    def missing(self, x: ArrayLike) -> jax.Array:
        """Returns True where a cell counts as missing: NaN, infinite, or beyond `max_sigmas`."""
        return _with_all_digits(self._missing, self._checked("missing", x))

    @jax.jit
    def _fit_affine(self, x: jax.Array) -> Affine:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        valid = jnp.isfinite(x)
        x = jnp.where(valid, x, 0)
        low = jnp.min(x, axis=0, keepdims=True, where=valid, initial=jnp.inf)
        high = jnp.max(x, axis=0, keepdims=True, where=valid, initial=-jnp.inf)
        empty, constant = low > high, low == high
        unit = power_of_two(self._magnitude(x, valid))
        center, center_low, scale = self._fit(saturate(x * (1 / unit)), valid)
        # The computed mean of equal numbers may be an ulp off: a constant is its own centre.
        center = jnp.where(constant, jnp.where(constant, low, 0) * (1 / unit), center)
        affine = Affine(
            unit=unit,
            center=jnp.where(empty, 0, center),
            center_low=jnp.where(empty | constant, 0, center_low),
            scale=jnp.where(empty | constant | ~(scale > 0), 1 / unit, scale),
        )
        return jax.tree.map(lambda a: a[0], affine)

    @functools.partial(jax.jit, static_argnames="missing")
    def _transform(self, x: jax.Array, missing: str) -> jax.Array:
        affine = self._affine_for(x)
        z = self._from_unit_scale(self._standardize(x, affine))
        if missing == "impute":
            z = jnp.where(self._is_missing(x, affine), jnp.asarray(self.fill, z.dtype), z)
        return _cast(z, x.dtype)

    @jax.jit
    def _inverse(self, z: jax.Array) -> jax.Array:
        affine = self._affine_for(z)
        finite = jnp.isfinite(z)
        wide = jnp.where(finite, z, 0).astype(jnp.promote_types(z.dtype, affine.scale.dtype))
        y = affine.center + (affine.center_low + affine.scale * self._to_unit_scale(wide))
        x = saturate(affine.unit * saturate(y))
        return _cast(jnp.where(finite, x, z.astype(x.dtype)), z.dtype)

    @jax.jit
    def _missing(self, x: jax.Array) -> jax.Array:
        return self._is_missing(x, self._affine_for(x))

    def _magnitude(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """The magnitude of each feature, that its unit is taken from."""
        return jnp.max(jnp.abs(x), axis=0, keepdims=True)

    def _fit(self, y: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Centre, its low part, and scale of data in units; invalid cells hold 0."""
        raise NotImplementedError

    def _to_unit_scale(self, z: jax.Array) -> jax.Array:
        return z

    def _from_unit_scale(self, z: jax.Array) -> jax.Array:
        return z

    def _is_missing(self, x: jax.Array, affine: Affine) -> jax.Array:
        return ~jnp.isfinite(x)

    def _standardize(self, x: jax.Array, affine: Affine) -> jax.Array:
        """`(x - center) / scale` of a finite cell, saturated; NaN and inf stay themselves."""
        finite = jnp.isfinite(x)
        x = x.astype(jnp.promote_types(x.dtype, affine.scale.dtype))
        y = jnp.where(finite, x, 0) * (1 / affine.unit)
        # The quotient in the scale's type: the greatest cell over the range is 1 exactly.
        z = _cast((y - affine.center) - affine.center_low, affine.scale.dtype) / affine.scale
        return jnp.where(finite, saturate(z), x)

    def _fitted(self, method: str) -> Affine:
        if self.affine is None:
            name = type(self).__name__
            raise ValueError(
                f"{name}.{method}: not fitted yet; use `scaler = {name}().fit(x)` first"
            )
        return self.affine

    def _affine_for(self, x: jax.Array) -> Affine:
        """The fit as an array of one row with the rank of `x`: no rank is promoted implicitly."""
        rows = (1,) * (x.ndim - 1) + x.shape[-1:]
        return jax.tree.map(lambda a: a.reshape(rows), self._fitted("transform"))

    def _checked(self, method: str, x: ArrayLike) -> Any:
        features = self._fitted(method).scale.shape[-1]
        name = f"{type(self).__name__}.{method}"
        data = _real(name, x)
        if data.ndim == 0 or data.shape[-1] != features:
            raise ValueError(
                f"{name}: fitted to {features} features, so the last axis must have {features} "
                f"entries; got shape {data.shape}"
            )
        return data


class _Streaming(_Scaler):
    """A scaler that can be fitted to data that come in parts."""

    seen: Seen | None

    def partial_fit(self, x: ArrayLike) -> Self:
        """Returns a scaler fitted to all parts so far; this one is unchanged.

        The parts' statistics are merged as Chan, Golub and LeVeque do, with means of two floats: a
        million float32 rows of mean 1e6 and deviation 1 give both to 1e-6. NaN and infinite cells
        are left out. float64 and integers of numpy are taken as they are; what was seen of them is
        float64 on the host, and is rounded to float32 if the scaler goes through jit.

        Args:
          x: the next rows, shape `[..., rows, features]`; up to 2^31 in all.

        Returns:
          A fitted scaler of the same kind and options, e.g.
          `functools.reduce(StandardScaler.partial_fit, parts, StandardScaler())`.

        Raises:
          ValueError: as `fit`; another number of features than before; or the scaler comes from
            `fit`, which keeps no counts to go on from.
        """
        name = f"{type(self).__name__}.partial_fit"
        rows = _rows(name, x)
        if self.seen is None and self.affine is not None:
            raise ValueError(
                f"{name}: this scaler comes from fit, which keeps no counts; begin with "
                f"{type(self).__name__}().partial_fit(first_part)"
            )
        if self.seen is not None and self.seen.cells.shape[-1] != rows.shape[-1]:
            raise ValueError(
                f"{name}: the parts so far have {self.seen.cells.shape[-1]} features, this one has "
                f"{rows.shape[-1]}"
            )

        def add(rows):
            seen = see(rows) if self.seen is None else merge(self.seen, see(rows))
            return seen, self._affine_of(seen)

        wide = self.seen is not None and _is_wide(self.seen.mean)
        traced = isinstance(rows, Tracer)
        seen, affine = _with_all_digits(add, rows, wide and not traced)
        return dataclasses.replace(self, affine=affine, seen=seen)  # type: ignore[type-var]

    @jax.jit
    def _affine_of(self, seen: Seen) -> Affine:
        empty, constant = seen.low > seen.high, seen.low == seen.high
        unit, center, center_low, scale = self._from_seen(seen)
        center = jnp.where(constant, jnp.where(constant, seen.low, 0) * (1 / unit), center)
        return Affine(
            unit=unit,
            center=jnp.where(empty, 0, center),
            center_low=jnp.where(empty | constant, 0, center_low),
            scale=jnp.where(empty | constant | ~(scale > 0), 1 / unit, scale),
        )

    def _from_seen(self, seen: Seen) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Unit, centre, its low part, and scale in the unit; of any value for constant features."""
        raise NotImplementedError


@functools.partial(jax.tree_util.register_dataclass, data_fields=["affine", "seen"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StandardScaler(_Streaming):
    """Scales each feature to mean 0 and (population) standard deviation 1.

    `z = (x - mean) / std`. NaN and inf are left out of the fit and imputed with the mean (z = 0);
    constant features become 0; see the module for range and precision. One outlier of size s moves
    the mean by s/n and the deviation by s/sqrt(n): where outliers occur take `RobustScaler`.

    Example:
      >>> x_train, x_test = [[1.0], [3.0]], [[2.0], [float("nan")]]
      >>> scaler = StandardScaler().fit(x_train)
      >>> z = scaler.transform(x_test)
      >>> replaced = int(scaler.missing(x_test).sum())
    """

    affine: Affine | None = None
    seen: Seen | None = None

    def _from_seen(self, seen: Seen) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        return seen.unit, seen.mean, seen.mean_low, seen.deviation

    def _fit(self, y: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        center, low = mean_of(y, valid)
        deviation = jnp.where(valid, (y - center) - low, 0)
        return center, low, root_mean_square(deviation, valid)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["affine", "seen"], meta_fields=["low", "high"]
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MinMaxScaler(_Streaming):
    """Scales each feature linearly so that its least value is `low` and its greatest `high`.

    `z = low + (high - low) * (x - min) / (max - min)`; `center` is min and `scale` is max - min.
    Data outside the fitted range goes outside `[low, high]`: nothing is clipped. NaN and inf are
    left out of the fit and imputed with the middle of the range; a constant feature becomes `low`.

    Args:
      low: value that the least cell is given.
      high: value that the greatest cell is given; finite, > low.

    Raises:
      ValueError: low or high is not finite, or low >= high.
    """

    low: float = 0.0
    high: float = 1.0
    affine: Affine | None = None
    seen: Seen | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"MinMaxScaler: needs finite low < high, got low={self.low}, high={self.high}"
            )

    @property
    def fill(self) -> float:
        """The middle of the range."""
        return self.low / 2 + self.high / 2

    def _from_seen(self, seen: Seen) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        empty = seen.low > seen.high
        low, high = jnp.where(empty, 0, seen.low), jnp.where(empty, 0, seen.high)
        unit = power_of_two(jnp.maximum(jnp.abs(low), jnp.abs(high)))
        center = low * (1 / unit)
        return unit, center, jnp.zeros_like(center), saturate(high * (1 / unit)) - center

    def _fit(self, y: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        least = jnp.min(y, axis=0, keepdims=True, where=valid, initial=jnp.inf)
        greatest = jnp.max(y, axis=0, keepdims=True, where=valid, initial=-jnp.inf)
        empty = least > greatest
        least, greatest = jnp.where(empty, 0, least), jnp.where(empty, 0, greatest)
        return least, jnp.zeros_like(least), greatest - least

    def _from_unit_scale(self, z: jax.Array) -> jax.Array:
        finite = jnp.isfinite(z)
        scaled = self.low + (self.high - self.low) * jnp.where(finite, z, 0)
        return jnp.where(finite, saturate(scaled), z)

    def _to_unit_scale(self, z: jax.Array) -> jax.Array:
        return (z - self.low) / (self.high - self.low)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["affine"], meta_fields=["max_sigmas"]
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RobustScaler(_Scaler):
    """Scales each feature by its median and median absolute deviation, which outliers do not move.

    `z = (x - median) / scale`, `scale = 1.4826 * median|x - median|`: for normal data the standard
    deviation, and right within a bounded factor while less than half of the cells are outliers,
    however large these are. Where more than half of the cells are equal the MAD is 0; then the
    scale is IQR / 1.349, where that is 0 too `1.2533 * mean|x - median|` (both also the deviation
    of normal data), and 1 for a constant feature. A median needs all rows at once: there is no
    `partial_fit`.

    Args:
      max_sigmas: None, or a number > 0: cells more than this many scales from the median count as
        missing, as NaN does: `transform` imputes them and `missing(x)` marks them. Real features
        have long tails: beyond 10 lie 0.1% of scikit-learn's breast_cancer cells and 0.5% of its
        digits cells; the benchmark takes 30.

    Raises:
      ValueError: max_sigmas is not > 0.

    References:
      Rousseeuw and Croux, `Alternatives to the Median Absolute Deviation
      <https://doi.org/10.1080/01621459.1993.10476408>`_, 1993
    """

    max_sigmas: float | None = None
    affine: Affine | None = None

    def __post_init__(self) -> None:
        if self.max_sigmas is not None and not self.max_sigmas > 0:
            raise ValueError(f"RobustScaler: max_sigmas must be > 0 or None, got {self.max_sigmas}")

    def _magnitude(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        # From the bulk of the data, not its greatest cell: an outlier of 1e37 would set a unit in
        # which a bulk of 1e-30 is 0.
        size = jnp.abs(x)
        median, upper = _quantiles(size, valid, (0.5, 0.75))
        bulk = jnp.where(median > 0, median, upper)
        return jnp.where(bulk > 0, bulk, jnp.max(size, axis=0, keepdims=True))

    def _fit(self, y: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        lower, median, upper = _quantiles(y, valid, (0.25, 0.5, 0.75))
        deviation = saturate(jnp.abs(y - median))
        (mad,) = _quantiles(deviation, valid, (0.5,))
        greatest = jnp.max(deviation, axis=0, keepdims=True, where=valid, initial=0)
        relative = jnp.where(valid, deviation, 0) / jnp.where(greatest > 0, greatest, 1)
        mean = greatest * jnp.mean(
            relative, axis=0, keepdims=True, where=valid | ~valid.any(axis=0, keepdims=True)
        )
        scale = jnp.where(mad > 0, 1.482602218505602 * mad, (upper - lower) / 1.3489795003921634)
        scale = jnp.where(scale > 0, scale, 1.2533141373155001 * mean)
        return median, jnp.zeros_like(median), scale

    def _is_missing(self, x: jax.Array, affine: Affine) -> jax.Array:
        missing = super()._is_missing(x, affine)
        if self.max_sigmas is None:
            return missing
        return missing | (jnp.abs(self._standardize(x, affine)) > self.max_sigmas)


def _rows(name: str, x: Any) -> Any:
    """Checked data as `[rows, features]`."""
    data = _real(name, x)
    if data.ndim < 2:
        raise ValueError(
            f"{name}: x must have axes [rows, features], got shape {data.shape}; "
            "for a single feature give x[:, None]"
        )
    if data.size == 0:
        raise ValueError(f"{name}: no data, x has shape {data.shape}")
    return data.reshape(-1, data.shape[-1])


def _is_wide(x: Any) -> bool:
    """Whether jax would round it: float64 from the host, unless x64 is enabled."""
    wide = not isinstance(x, jax.Array) and x.dtype == np.float64
    return wide and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype


def _with_all_digits(run: Callable[[Any], Any], x: Any, wide: bool = False) -> Any:
    """`run(x)`, in float64 if `x` is wide or `wide` is true; an `Affine` and arrays get narrow.

    A time stamp of 1.7e9 seconds would lose two minutes before the mean is taken off. What float32
    cannot hold is infinite or 0, as ever. A `Seen` stays on the host in float64.
    """
    if not (wide or _is_wide(x)):
        return run(x)
    if _is_wide(x):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded = x.astype(np.float32)
            within = np.isfinite(rounded) & (abs(x) >= np.finfo(np.float32).tiny)
            # As a sum of two floats, as the centre is.
            split = rounded.astype(np.float64) + (x - rounded).astype(np.float32)
        x = np.where(within, split, rounded)

    def narrow(found):
        if isinstance(found, Seen):
            return jax.tree.map(np.asarray, found)
        if isinstance(found, Affine):
            rest = found.center - found.center.astype(jnp.float32)
            found = found._replace(center_low=found.center_low + rest)
        cast = lambda a: _cast(a, jnp.float32) if a.dtype == jnp.float64 else a
        return jax.tree.map(cast, found)

    with jax.enable_x64(True):
        return jax.tree.map(narrow, run(x), is_leaf=lambda a: isinstance(a, Affine | Seen))


def _real(name: str, x: Any) -> Any:
    """`x` as a floating array: integers and booleans take the default floating type."""
    # Not jnp.asarray: under jax_debug_nans it raises at the missing cells.
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        return x.astype(jnp.result_type(float) if isinstance(x, jax.Array) else np.float64)
    raise ValueError(f"{name}: x must be real numbers, got dtype {x.dtype}")


def _cast(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Casts to a narrower type; a finite number beyond its range becomes its largest."""
    limit = jnp.finfo(dtype).max.astype(x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x).astype(dtype)


def _quantiles(y: jax.Array, valid: jax.Array, levels: tuple[float, ...]) -> tuple[jax.Array, ...]:
    """Quantiles of the valid cells, linear between neighbours; 0 where no cell is valid."""
    ordered = jnp.sort(jnp.where(valid, y, jnp.inf), axis=0)
    count = jnp.sum(valid, axis=0, keepdims=True)
    last = jnp.maximum(count - 1, 0)

    def at(index):
        return jnp.where(count > 0, jnp.take_along_axis(ordered, index, axis=0), 0)

    def quantile(level):
        # Position as integer and fraction of 4: float32 loses the fraction beyond 2^24 rows.
        quarters = last * int(4 * level)
        below, rest = quarters // 4, (quarters % 4).astype(y.dtype) / 4
        lower, upper = at(below), at(jnp.minimum(below + 1, last))
        return (1 - rest) * lower + rest * upper

    return tuple(quantile(level) for level in levels)
