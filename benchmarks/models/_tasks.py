"""The tasks: data, reference model, recipe and goal of each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from robustops import losses, train
from robustops.models import Autoencoder, Classifier, ConvClassifier, SequenceClassifier

CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of the table; its recipe was chosen on validation rows."""

    data: Callable[..., train.Dataset]
    shared: bool
    """One scale for all features."""
    model: Callable[..., nnx.Module]
    """Of `dtype` and `rngs`."""
    loss: Callable[..., jax.Array]
    goal: float
    """Least accuracy, or greatest share of variance unexplained, on test rows."""
    epochs: int
    batch_size: int = 64
    rate: float = 3e-3
    weight_decay: float = 1e-4
    reconstructs: bool = False
    """The targets are the inputs, and the score is the variance unexplained."""
    shifts: tuple[int, ...] = ()
    """Training images are added that are shifted to the right by so many pixels."""

    def training_rows(self, data: train.Dataset) -> train.Rows:
        """The training rows, and their shifted copies."""
        if not self.shifts:
            return data.train
        inputs, targets = data.train
        images = inputs.reshape(len(inputs), 8, 8, -1)
        copies = np.concatenate([images, *(_shifted(images, shift) for shift in self.shifts)])
        targets = np.concatenate([targets] * (1 + len(self.shifts)))
        return train.Rows(copies.reshape(-1, *inputs.shape[1:]), targets)

    def score(self, model: nnx.Module, rows: train.Rows) -> float:
        """Accuracy, or share of the variance unexplained, in evaluation mode."""
        model = nnx.clone(model)
        model.eval()
        outputs = np.asarray(nnx.jit(lambda m, x: m(x))(model, rows.inputs), np.float64)
        if self.reconstructs:
            centred = rows.inputs - rows.inputs.mean(0)
            return float(np.sum((outputs - rows.inputs) ** 2) / np.sum(centred.astype(float) ** 2))
        return float(np.mean(outputs.argmax(-1) == rows.targets))

    def reaches(self, score: float) -> bool:
        """Whether a score is as good as the goal."""
        return score <= self.goal if self.reconstructs else score >= self.goal


def _shifted(images: np.ndarray, shift: int) -> np.ndarray:
    """What leaves on one side is lost; the least value comes in on the other."""
    moved = np.roll(images, shift, axis=2)
    moved[:, :, slice(0, shift) if shift > 0 else slice(shift, None)] = images.min()
    return moved


TASKS: dict[str, Task] = {
    "digits, MLP": Task(
        train.load_digits,
        shared=True,
        model=functools.partial(Classifier, 64, (256,), 10),
        loss=CROSS_ENTROPY,
        goal=0.97,
        epochs=15,
        shifts=(-1, 1),
    ),
    "digits, convolutional": Task(
        functools.partial(train.load_digits, image=True),
        shared=True,
        model=functools.partial(ConvClassifier, (8, 8, 1), (32, 64), 10, dropout=0.5),
        loss=CROSS_ENTROPY,
        goal=0.985,
        epochs=8,
        shifts=(-1, 1),
    ),
    "digits, 16-number code": Task(
        train.load_digits,
        shared=True,
        model=functools.partial(Autoencoder, 64, (256, 128), 16, activation=nnx.gelu),
        loss=losses.squared_error,
        goal=0.09,
        epochs=100,
        rate=2e-3,
        weight_decay=0.1,
        reconstructs=True,
    ),
    "breast_cancer": Task(
        train.load_breast_cancer,
        shared=False,
        model=functools.partial(Classifier, 30, (32,), 2),
        loss=CROSS_ENTROPY,
        goal=0.96,
        epochs=60,
        batch_size=32,
        weight_decay=0.3,
    ),
    "digit sequences, GRU": Task(
        train.load_digit_sequences,
        shared=True,
        model=functools.partial(SequenceClassifier, 1, 64, 10, cell="gru"),
        loss=CROSS_ENTROPY,
        goal=0.90,
        epochs=40,
        rate=2e-2,
        weight_decay=0.1,
        shifts=(-1, 1),
    ),
}

DTYPES: dict[str, Any] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}


def principal_components(data: train.Dataset, count: int = 16) -> float:
    """Share of the test variance that the training rows' principal components leave."""
    mean = data.train.inputs.mean(0)
    axes = np.linalg.svd(data.train.inputs - mean, full_matrices=False)[2][:count]
    centred = data.test.inputs - mean
    left = centred - centred @ axes.T @ axes
    return float(np.sum(left**2) / np.sum((data.test.inputs - data.test.inputs.mean(0)) ** 2))
