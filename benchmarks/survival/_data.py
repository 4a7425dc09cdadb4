"""Real data that ships inside scikit-learn, split and put in units; nothing is downloaded."""

import functools
import warnings
from typing import NamedTuple

import numpy as np

try:
    from sklearn import datasets
except ImportError as error:
    raise ImportError(
        "benchmarks needs scikit-learn: run `pip install -e '.[benchmarks]'` in the checkout"
    ) from error


class Split(NamedTuple):
    """One random split of a data set, in float64 until the stress has been applied."""

    x: np.ndarray
    """Training inputs, rows first."""
    y: np.ndarray
    """Training targets: integer classes, or numbers of shape `[rows, outputs]`."""
    x_test: np.ndarray
    """Held-out inputs."""
    y_test: np.ndarray
    """Held-out targets."""


@functools.cache
def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets of a data set in its original units."""
    if name == "patches":
        return _patches()
    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
        return np.asarray(x, np.float64), np.asarray(y, np.float64)[:, None]
    loaders = {
        "digits": datasets.load_digits,
        "breast_cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
    }
    x, y = loaders[name](return_X_y=True)
    return np.asarray(x, np.float64), np.asarray(y, np.int32)


def _patches(size: int = 8, count: int = 2400) -> tuple[np.ndarray, np.ndarray]:
    """Grey patches of scikit-learn's two photographs, 0 to 255; input and target are the same."""
    rng = np.random.default_rng(0)
    grey = [
        np.asarray(image, np.float64).mean(-1) for image in datasets.load_sample_images().images
    ]
    rows = rng.integers(0, grey[0].shape[0] - size, count)
    columns = rng.integers(0, grey[0].shape[1] - size, count)
    patches = np.stack(
        [
            grey[i % len(grey)][r : r + size, c : c + size].ravel()
            for i, (r, c) in enumerate(zip(rows, columns, strict=True))
        ]
    )
    return patches, patches


def split(name: str, seed: int, held_out: float = 0.25) -> Split:
    """Returns a random split; the same seed gives the same split."""
    x, y = load(name)
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    test, train = np.split(order, [round(held_out * len(x))])
    return Split(x[train], y[train], x[test], y[test])


def standardized(data: Split, *, targets: bool = False) -> Split:
    """Inputs (and targets) to mean 0 and deviation 1 by the training rows' statistics."""
    center, scale = moments(data.x)
    data = data._replace(x=(data.x - center) / scale, x_test=(data.x_test - center) / scale)
    if targets:
        center, scale = moments(data.y)
        data = data._replace(y=(data.y - center) / scale, y_test=(data.y_test - center) / scale)
    return data


def reconstruction(data: Split) -> Split:
    """The task of an autoencoder: the targets are the inputs."""
    return data._replace(y=data.x, y_test=data.x_test)


def scaled(data: Split, scale: float) -> Split:
    """Inputs in other units."""
    return data._replace(x=data.x * scale, x_test=data.x_test * scale)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column over the finite cells, constant columns with deviation 1.

    This is the textbook standard scaler, in float64. Infinite cells are not left out: as in every
    such scaler they make the column's moments, and so the column, NaN.
    """
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        center, scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    return center, np.where(scale == 0, 1.0, scale)
