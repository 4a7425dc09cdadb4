"""A look at a batch before it is trained on: what is wrong with it, and where."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ._scalers import RobustScaler

Kind = Literal["dtype", "rows", "nan", "inf", "range", "rounding", "constant", "outlier", "label"]
_REMEDY: dict[str, str] = {
    "dtype": "convert them to numbers",
    "rows": "give as many targets as inputs",
    "nan": "drop these rows (x[~report.bad_rows]) or impute (RobustScaler().fit(x).transform(x))",
    "inf": "drop these rows (x[~report.bad_rows]) or impute (RobustScaler().fit(x).transform(x))",
    "range": "bring them into range before the cast (RobustScaler or StandardScaler)",
    "rounding": "take off their mean before the cast (StandardScaler or RobustScaler)",
    "constant": "drop the columns: they tell nothing; never divide by their deviation",
    "outlier": "impute them: RobustScaler(max_sigmas=...), or take a robust loss",
    "label": "relabel or drop these rows",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
    """One thing that is wrong with a batch."""

    kind: Kind
    """What: "nan", "inf", "range" (finite, but infinite in float32), "rounding" (constant in
    float32 only), "constant", "outlier", "label", "dtype" or "rows"."""
    where: Literal["inputs", "targets"]
    """In which array."""
    count: int
    """How many cells, columns or labels."""
    rows: np.ndarray
    """The rows concerned, ascending; empty where it is not a matter of rows."""
    columns: np.ndarray
    """The columns concerned, ascending; the place in a flat row for arrays with more axes."""
    text: str
    """In words, with the remedy."""


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What `check_batch` found; printed, one finding a line.

    Attributes:
      findings: the findings, the gravest kind first.
      bad_rows: True for rows that no step should see: with a cell that is NaN, infinite or out of
        range, or a label that is none.
    """

    findings: tuple[Finding, ...]
    bad_rows: np.ndarray

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def raise_if_bad(self) -> None:
        """Raises a ValueError with the findings, if there are any."""
        if self.findings:
            raise ValueError(f"check_batch: {self}")

    def __str__(self) -> str:
        if self.ok:
            return f"{len(self.bad_rows)} rows, nothing found"
        return "\n".join(finding.text for finding in self.findings)


def check_batch(
    inputs: Any, targets: Any = None, *, classes: int | None = None, max_sigmas: float = 30.0
) -> BatchReport:
    """Finds what makes training fail in a batch (or a whole data set), with rows and columns.

    NaN; inf; numbers that float32 cannot hold; columns that are constant, or are once they are
    rounded to float32; cells more than
    `max_sigmas` robust deviations from the median of their column (as `RobustScaler` counts them);
    labels that are not integers from 0 to `classes - 1`; dtypes that are not numbers.

    Args:
      inputs: array, first axis rows.
      targets: array with as many rows, or None.
      classes: number of classes, if the targets are labels.
      max_sigmas: beyond how many robust deviations a cell is an outlier. Real features have long
        tails: beyond 10 lie 0.1% of the cells of breast_cancer, beyond 30 two cells.

    Returns:
      A `BatchReport`: print it, or ask whether it is `ok`.

    Raises:
      ValueError: no rows, or an option out of range.
    """
    if not max_sigmas > 0:
        raise ValueError(f"check_batch: max_sigmas must be > 0, got {max_sigmas}")
    if classes is not None and classes < 1:
        raise ValueError(f"check_batch: classes must be >= 1, got {classes}")
    x = np.asarray(inputs)
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"check_batch: inputs must have rows, got shape {x.shape}")
    found: list[Finding] = []
    bad = np.zeros(len(x), bool)
    cells = _check_cells("inputs", x, found, bad)
    if cells is not None:
        _check_columns(cells, max_sigmas, found)
    if targets is not None:
        y = np.asarray(targets)
        if y.ndim == 0 or len(y) != len(x):
            shapes = f"inputs of shape {x.shape}, targets of shape {y.shape}"
            found.append(_finding("rows", "targets", np.zeros((0, 0), bool), shapes))
        elif classes is None:
            _check_cells("targets", y, found, bad)
        else:
            _check_labels(y, classes, found, bad)
    order = list(_REMEDY)
    found.sort(key=lambda finding: order.index(finding.kind))
    return BatchReport(tuple(found), bad)


def _check_cells(
    where: Any, array: np.ndarray, found: list[Finding], bad: np.ndarray
) -> np.ndarray | None:
    """NaN, inf and range; the cells as `[rows, columns]`, or None if they are no numbers."""
    cells = array.reshape(len(array), -1)
    if not _is_real(array):
        what = f"{where} have dtype {array.dtype}"
        found.append(_finding("dtype", where, np.zeros((0, 0), bool), what))
        return None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return cells
    # bfloat16 is no kind of numpy's own.
    wide = cells if cells.dtype.kind == "f" else cells.astype(np.float32)
    infinite = np.isinf(wide)
    beyond = ~infinite & (np.abs(wide) > float(np.finfo(np.float32).max))
    for kind, mask, word in (
        ("nan", np.isnan(wide), "NaN"),
        ("inf", infinite, "infinite"),
        ("range", beyond, "beyond float32"),
    ):
        if mask.any():
            found.append(_finding(kind, where, mask, f"{mask.sum()} cells of {where} are {word}"))
            bad |= mask.any(axis=1)
    return wide


def _check_columns(cells: np.ndarray, max_sigmas: float, found: list[Finding]) -> None:
    if cells.dtype != np.float32:
        cells = cells.astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(cells.astype(np.float32))
        low = np.where(finite, cells, np.inf).min(axis=0)
        high = np.where(finite, cells, -np.inf).max(axis=0)
        rounded = low.astype(np.float32) == high.astype(np.float32)
    constant = (low == high) & (len(cells) > 1)
    for kind, mask, where in (
        ("rounding", rounded & (low < high), " in float32"),
        ("constant", constant, ""),
    ):
        if mask.any():
            text = f"{mask.sum()} columns of inputs are constant{where}"
            found.append(_finding(kind, "inputs", mask[None, :], text))
    scaler = RobustScaler(max_sigmas=max_sigmas).fit(cells)
    outlier = np.asarray(scaler.missing(cells)) & finite
    if outlier.any():
        worst = cells[outlier][np.abs(cells[outlier]).argmax()]
        text = (
            f"{outlier.sum()} cells of inputs are more than {max_sigmas:g} robust deviations from "
            f"their column's median, the largest {worst:g}"
        )
        found.append(_finding("outlier", "inputs", outlier, text))


def _check_labels(y: np.ndarray, classes: int, found: list[Finding], bad: np.ndarray) -> None:
    if not _is_real(y) or y.dtype == bool:
        what = f"labels have dtype {y.dtype}"
        found.append(_finding("dtype", "targets", np.zeros((0, 0), bool), what))
        return
    labels = y.reshape(len(y), -1)
    if not np.issubdtype(y.dtype, np.integer):
        what = f"labels have dtype {y.dtype}, not an integer one"
        found.append(_finding("dtype", "targets", np.zeros((0, 0), bool), what))
        labels = labels.astype(np.float64)
    mask = ~((labels >= 0) & (labels < classes) & (labels == np.floor(labels)))
    if mask.any():
        first = labels[mask][0]
        text = f"{mask.sum()} labels are not among 0..{classes - 1}, e.g. {first}"
        found.append(_finding("label", "targets", mask, text))
        bad |= mask.any(axis=1)


def _is_real(array: np.ndarray) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _finding(kind: Any, where: Any, mask: np.ndarray, text: str) -> Finding:
    whole_column = kind in ("constant", "rounding")
    rows = np.zeros(0, int) if whole_column else np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    places = [
        f"{name} {_few(index)}"
        for name, index in (("rows", rows), ("columns", columns))
        # A single column needs no name.
        if index.size and (name == "rows" or mask.shape[1] > 1)
    ]
    place = f" ({'; '.join(places)})" if places else ""
    text = f"{kind}: {text}{place}: {_REMEDY[kind]}"
    return Finding(kind, where, int(mask.sum()), rows, columns, text)


def _few(index: np.ndarray) -> str:
    shown = ", ".join(map(str, index[:5]))
    return f"{shown} and {len(index) - 5} more" if len(index) > 5 else shown
