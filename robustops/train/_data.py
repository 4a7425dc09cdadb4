"""Checks of training data, on the host, before the first step."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["values", "probabilities", "classes"]

_CLASSES = {
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "softmax_cross_entropy_with_integer_labels",
}
_PROBABILITIES = {
    "binary_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
}
_VALUES = {
    "cauchy",
    "charbonnier",
    "geman_mcclure",
    "general_robust_loss",
    "huber_loss",
    "l2_loss",
    "log1p_squared_error",
    "log_cosh",
    "mean_squared_error",
    "poisson_nll",
    "squared_error",
    "squared_log_error",
    "welsch",
}


@dataclasses.dataclass(frozen=True)
class Data:
    """Checked rows: as many inputs as targets, of numeric types.

    Attributes:
      inputs: floating array, first axis rows.
      targets: floating array, or int32 class labels, first axis rows.
      nonfinite: rows that had a NaN or infinite cell.
    """

    inputs: np.ndarray
    targets: np.ndarray
    nonfinite: int


def kind_of(loss: Any) -> Kind | None:
    """What targets a loss of robustops or optax wants, by its name; None for any other loss."""
    while hasattr(loss, "func"):  # functools.partial
        loss = loss.func
    name, module = getattr(loss, "__name__", ""), getattr(loss, "__module__", None) or ""
    if module.split(".")[0] not in ("robustops", "optax"):
        return None
    if name in _CLASSES:
        return "classes"
    if name in _PROBABILITIES:
        return "probabilities"
    return "values" if name in _VALUES else None


def check_data(name: str, data: Any, nonfinite: Literal["raise", "drop", "keep"]) -> Data:
    """Turns `(inputs, targets)`, or inputs alone, into checked arrays; see `fit` for the rules."""
    pair = data if isinstance(data, tuple | list) else (data, data)
    if len(pair) != 2:
        raise ValueError(
            f"fit: {name} must be (inputs, targets) or one array that is both, "
            f"got a {type(data).__name__} of {len(pair)}"
        )
    inputs = _numeric(f"{name} inputs", pair[0], keep_integers=False)
    targets = inputs if pair[1] is pair[0] else _numeric(f"{name} targets", pair[1])
    if len(inputs) != len(targets):
        raise ValueError(
            f"fit: {name} has {len(inputs)} rows of inputs, but {len(targets)} of targets "
            f"(shapes {inputs.shape} and {targets.shape})"
        )
    if inputs.size == 0 or targets.size == 0:
        raise ValueError(f"fit: {name} is empty: shapes {inputs.shape} and {targets.shape}")
    bad_inputs, bad_targets = _nonfinite(inputs), _nonfinite(targets)
    rows = bad_inputs.any(axis=1) | bad_targets.any(axis=1)
    if rows.any() and nonfinite == "raise":
        raise ValueError(
            f"fit: {int(rows.sum())} of {len(inputs)} rows of {name} are not finite, first row "
            f"{int(rows.argmax())}: {int(bad_inputs.sum())} cells of the inputs and "
            f"{int(bad_targets.sum())} of the targets are NaN, infinite or beyond {inputs.dtype}. "
            "Impute and scale them (RobustScaler().fit(x).transform(x)), or pass nonfinite='drop' "
            "to leave these rows out, or 'keep' to let the guard refuse their steps"
        )
    if rows.any() and nonfinite == "drop":
        inputs, targets = inputs[~rows], targets[~rows]
        if len(inputs) == 0:
            raise ValueError(f"fit: every row of {name} has a NaN or infinite cell; none is left")
    return Data(inputs, targets, int(rows.sum()))


def check_targets(name: str, data: Data, outputs: Any, kind: Kind | None) -> Data:
    """Checks the targets against what the loss wants and the shape that the model gives.

    Args:
      name: what to call the data in an error.
      data: checked rows.
      outputs: shape and dtype of the model's outputs for all these rows.
      kind: what the loss wants, or None if that is not known.

    Returns:
      The data, its targets as integers for "classes" and floating otherwise.
    """
    targets = data.targets
    whole = np.issubdtype(targets.dtype, np.integer)
    if not hasattr(outputs, "shape"):
        if kind is not None:
            raise ValueError(
                f"fit: this loss takes one array, but the model returns a {type(outputs).__name__};"
                " take the loss that belongs to the model (VariationalAutoencoder.loss), or one of "
                "your own that takes what the model returns"
            )
        targets = targets.astype(jnp.result_type(float)) if whole else targets
        return dataclasses.replace(data, targets=targets)
    if kind is None and whole and outputs.ndim == targets.ndim + 1:
        kind = "classes"
    if kind == "classes":
        if not whole:
            raise ValueError(
                f"fit: this loss wants integer class labels, but the targets of {name} have dtype "
                f"{targets.dtype}; cast them, or take a loss of probabilities or values"
            )
        if targets.shape != outputs.shape[:-1]:
            raise ValueError(
                f"fit: class labels of {name} must have shape {outputs.shape[:-1]} for outputs of "
                f"shape {outputs.shape}, got {targets.shape}"
            )
        classes, bad = outputs.shape[-1], (targets < 0) | (targets >= outputs.shape[-1])
        if bad.any():
            raise ValueError(
                f"fit: {int(bad.sum())} labels of {name} are outside 0..{classes - 1} (the model "
                f"has {classes} outputs), e.g. {int(targets[bad][0])}; relabel, or use more outputs"
            )
        return dataclasses.replace(data, targets=targets.astype(np.int32))
    if whole:
        targets = targets.astype(jnp.result_type(float))
    if kind is not None and targets.shape != outputs.shape:
        # Broadcasting [n, 1] against [n] would silently train on all n * n pairs.
        raise ValueError(
            f"fit: targets of {name} have shape {targets.shape}, but the model's outputs "
            f"{outputs.shape}; reshape one of them"
        )
    if kind == "probabilities":
        finite = targets[np.isfinite(targets)]
        bad = finite[(finite < 0) | (finite > 1)]
        if bad.size:
            raise ValueError(
                f"fit: {bad.size} targets of {name} are outside [0, 1] where this loss wants "
                f"probabilities, e.g. {float(bad[0])}; correct the labels, or take a loss of values"
            )
    return dataclasses.replace(data, targets=targets)


def _numeric(name: str, array: Any, keep_integers: bool = True) -> np.ndarray:
    """A real array with rows, floating (float64 becomes jax's float) or, if allowed, integer."""
    array = np.asarray(array)
    if array.ndim == 0:
        raise ValueError(f"fit: {name} must have rows along the first axis, got a scalar")
    if jnp.issubdtype(array.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # Counted afterwards, as infinite cells.
            return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    if array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"fit: {name} must be real numbers, got dtype {array.dtype}")
    if keep_integers and array.dtype != bool:
        return array
    return array.astype(jnp.result_type(float))


def _nonfinite(array: np.ndarray) -> np.ndarray:
    """True for each cell that is NaN or infinite, as `[rows, cells]`."""
    bad = (
        np.zeros(array.shape, bool)
        if np.issubdtype(array.dtype, np.integer)
        else ~np.isfinite(array)
    )
    return bad.reshape(len(array), -1)
