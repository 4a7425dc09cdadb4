"""Real data that scikit-learn ships, split so that no held-out row is seen; no download."""

import dataclasses
from typing import Any, NamedTuple, Self

import numpy as np


class Rows(NamedTuple):
    """Inputs and targets with as many rows; `fit` takes it as it is."""

    inputs: np.ndarray
    """float32, first axis rows."""
    targets: np.ndarray
    """int32 classes, or float32 numbers, first axis rows."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A random split of a data set into disjoint rows.

    Attributes:
      train: rows to fit on, scalers too.
      validation: rows to choose by: epochs, rates, sizes.
      test: rows to report on, once.
      classes: names of the classes, in the order of their labels; empty for numbers.
      features: names of the features; empty for pixels.
      scaler: the scaler that made the inputs, fitted on the training rows; None for raw data.
      target_scaler: the same for targets that are numbers.
    """

    train: Rows
    validation: Rows
    test: Rows
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    scaler: Any = None
    target_scaler: Any = None

    def scaled(self, scaler: Any, *, shared: bool = False, targets: Any = None) -> Self:
        """The same rows, scaled by the statistics of the training rows alone.

        NaN and infinite cells, and with `RobustScaler(max_sigmas=...)` outliers, come out as the
        centre in all three parts (see `transform`).

        Args:
          scaler: a scaler of this module, not yet fitted, e.g. `StandardScaler()`.
          shared: one centre and scale for all features, as the pixels of an image have one unit;
            otherwise each entry of the last axis has its own.
          targets: a scaler for the targets, if they are numbers.

        Returns:
          A `Dataset` with the fitted scalers.

        Raises:
          ValueError: the data are scaled already, or `targets` is given for classes.
        """
        if self.scaler is not None:
            raise ValueError(
                "Dataset.scaled: scaled already; load the data again for another scaler"
            )
        if targets is not None and self.classes:
            raise ValueError("Dataset.scaled: the targets are classes, which have no scale")

        columns = lambda x: x.reshape(*x.shape, 1) if shared else x
        fitted = scaler.fit(columns(self.train.inputs))
        fitted_targets = None if targets is None else targets.fit(self.train.targets)

        def scale(rows: Rows) -> Rows:
            z = np.asarray(fitted.transform(columns(rows.inputs))).reshape(rows.inputs.shape)
            if rows.targets is rows.inputs:
                return Rows(z, z)
            if fitted_targets is None:
                return Rows(z, rows.targets)
            return Rows(z, np.asarray(fitted_targets.transform(rows.targets)))

        return dataclasses.replace(
            self,
            train=scale(self.train),
            validation=scale(self.validation),
            test=scale(self.test),
            scaler=fitted,
            target_scaler=fitted_targets,
        )


def load_digits(
    *, image: bool = False, seed: int = 0, validation: float = 0.15, test: float = 0.2
) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels from 0 to 16, ten classes.

    Args:
      image: inputs of shape `[rows, 8, 8, 1]`, not `[rows, 64]`.
      seed: seed of the split; the same seed gives the same rows in each part.
      validation: share of the rows held out to choose by, in [0, 1).
      test: share of the rows held out to report on, in [0, 1).

    Returns:
      A `Dataset` in raw units.

    Raises:
      ImportError: scikit-learn is missing; says which extra to install.
      ValueError: the shares leave no training row, or are out of range.
    """
    x, y = _datasets("load_digits").load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1) if image else x
    return _split(x, y, seed, validation, test, classes=tuple("0123456789"))


def load_digit_sequences(*, seed: int = 0, validation: float = 0.15, test: float = 0.2) -> Dataset:
    """The digits of `load_digits`, read as 64 steps of one pixel: shape `[rows, 64, 1]`.

    Arguments, result and errors are those of `load_digits`.
    """
    x, y = _datasets("load_digit_sequences").load_digits(return_X_y=True)
    return _split(x[:, :, None], y, seed, validation, test, classes=tuple("0123456789"))


def load_breast_cancer(*, seed: int = 0, validation: float = 0.15, test: float = 0.2) -> Dataset:
    """569 tumours, 30 features from 1e-3 to 4e3, classes malignant (0) and benign (1).

    Arguments, result and errors are those of `load_digits`.
    """
    return _table("load_breast_cancer", seed, validation, test)


def load_wine(*, seed: int = 0, validation: float = 0.15, test: float = 0.2) -> Dataset:
    """178 wines, 13 features from 0.1 to 1,680, three classes.

    Arguments, result and errors are those of `load_digits`.
    """
    return _table("load_wine", seed, validation, test)


def load_diabetes(*, seed: int = 0, validation: float = 0.15, test: float = 0.2) -> Dataset:
    """442 patients, 10 features in their own units; the target, 25 to 346, is a number.

    Targets have shape `[rows, 1]`. Arguments, result and errors are those of `load_digits`.
    """
    bunch = _datasets("load_diabetes").load_diabetes(scaled=False)
    names = tuple(map(str, bunch.feature_names))
    return _split(bunch.data, bunch.target[:, None], seed, validation, test, features=names)


def load_image_patches(
    *,
    size: int = 8,
    count: int = 2400,
    image: bool = False,
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.2,
) -> Dataset:
    """Grey patches, 0 to 255, of scikit-learn's two photographs; the target is the input.

    The patches are cells of a grid, so no two have a pixel in common: those of the test set have
    not been seen in part.

    Args:
      size: height and width of a patch, in pixels.
      count: how many patches, drawn from the grids of both photographs.
      image: inputs of shape `[rows, size, size, 1]`, not `[rows, size^2]`.
      seed: seed of the draw and the split.
      validation: share of the rows held out to choose by, in [0, 1).
      test: share of the rows held out to report on, in [0, 1).

    Returns:
      A `Dataset` in raw units.

    Raises:
      ImportError: scikit-learn is missing; says which extra to install.
      ValueError: a number is out of range, or the photographs have fewer patches of this size.
    """
    datasets = _datasets("load_image_patches")
    if size < 1 or count < 1:
        raise ValueError(f"load_image_patches: size and count must be >= 1, got {size}, {count}")
    cells = []
    for photograph in datasets.load_sample_images().images:
        grey = np.asarray(photograph, np.float64).mean(-1)
        height, width = (n // size for n in grey.shape)
        grid = grey[: height * size, : width * size].reshape(height, size, width, size)
        cells.append(grid.swapaxes(1, 2).reshape(-1, size, size, 1))
    patches = np.concatenate(cells)
    if count > len(patches):
        raise ValueError(
            f"load_image_patches: the photographs have {len(patches)} patches of {size} x {size} "
            f"pixels, got count={count}"
        )
    chosen = np.random.default_rng([seed, 0]).permutation(len(patches))[:count]
    x = patches[chosen] if image else patches[chosen].reshape(count, -1)
    return _split(x, None, seed, validation, test)


def _table(name: str, seed: int, validation: float, test: float) -> Dataset:
    bunch = getattr(_datasets(name), name)()
    return _split(
        bunch.data,
        bunch.target,
        seed,
        validation,
        test,
        classes=tuple(map(str, bunch.target_names)),
        features=tuple(map(str, bunch.feature_names)),
    )


def _split(
    x: np.ndarray,
    y: np.ndarray | None,
    seed: int,
    validation: float,
    test: float,
    classes: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
) -> Dataset:
    if not (0 <= validation and 0 <= test and validation + test < 1):
        raise ValueError(
            "the shares must be >= 0 and leave rows to train on, got "
            f"validation={validation}, test={test}"
        )
    x = np.asarray(x, np.float32)
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    ends = [round(test * len(x)), round(test * len(x)) + round(validation * len(x))]

    def rows(chosen: np.ndarray) -> Rows:
        inputs = x[chosen]
        if y is None:
            return Rows(inputs, inputs)
        return Rows(inputs, y[chosen].astype(np.int32 if classes else np.float32))

    held_out, chosen_by, train = (rows(part) for part in np.split(order, ends))
    return Dataset(train, chosen_by, held_out, classes, features)


def _datasets(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"robustops.train.{name} needs scikit-learn: run `pip install 'robustops[data]'`"
        ) from error
    return datasets
