"""Files of metrics, one row a step: CSV, JSON lines, TensorBoard."""

import csv
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "skipped",
    "clipped",
    "scale",
    "validation_loss",
)
Row = dict[str, Any]


class MetricsFiles:
    """The files of a run; those of the other processes have none.

    Args:
      where: a path, or several: `*.csv`, `*.jsonl`, or a directory (no suffix) for TensorBoard.
      step: steps done so far, whose rows are kept; 0 replaces the files.

    Raises:
      ValueError: another suffix.
      ImportError: TensorBoard without `tensorboardX`.
    """

    def __init__(self, where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], step: int):
        paths = [Path(where)] if isinstance(where, str | os.PathLike) else [Path(p) for p in where]
        kinds = {".csv": _Csv, ".jsonl": _JsonLines, "": _TensorBoard}
        for path in paths:
            if path.suffix not in kinds:
                raise ValueError(
                    "fit: metrics go to *.csv, *.jsonl or a directory without a suffix "
                    f"(TensorBoard), got {str(path)!r}"
                )
        first = jax.process_index() == 0
        self._files = [kinds[path.suffix](path, step) for path in paths if first]

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows, and gives them to the operating system."""
        for file in self._files:
            file.write(rows)

    def __enter__(self) -> "MetricsFiles":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()


class _Lines:
    """A text file with one line a row, which may end in the middle of one."""

    header = ""

    def __init__(self, path: Path, step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = list(self._kept(path, step)) if step else []
        if len(kept) < step:
            warnings.warn(
                f"fit: {path} has rows for {len(kept)} of the {step} steps before the checkpoint; "
                "the others are lost",
                stacklevel=2,
            )
        # In a new file that takes the old one's place, so that a kill leaves one of the two.
        beside = path.with_name(path.name + ".tmp")
        beside.write_text(self.header + "".join(kept))
        os.replace(beside, path)
        self._file = path.open("a", newline="")

    def _kept(self, path: Path, step: int) -> Iterable[str]:
        if not path.exists():
            return
        for line in path.read_text().splitlines(keepends=True):
            if line == self.header or not line.endswith("\n"):
                continue
            if self._step(line) <= step:
                yield line

    def _step(self, line: str) -> int:
        raise NotImplementedError

    def _line(self, row: Row) -> str:
        raise NotImplementedError

    def write(self, rows: Sequence[Row]) -> None:
        self._file.write("".join(map(self._line, rows)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Csv(_Lines):
    header = ",".join(COLUMNS) + "\n"

    def _step(self, line: str) -> int:
        return int(line.partition(",")[0])

    def _line(self, row: Row) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row.get(name, "") for name in COLUMNS)
        return text.getvalue()


class _JsonLines(_Lines):
    def _step(self, line: str) -> int:
        return json.loads(line)["step"]

    def _line(self, row: Row) -> str:
        return json.dumps({key: _json(value) for key, value in row.items()}, allow_nan=False) + "\n"


def _json(value: Any) -> Any:
    """JSON has no NaN and no infinity; `float` reads these strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class _TensorBoard:
    def __init__(self, path: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "fit: metrics for TensorBoard need tensorboardX: run `pip install "
                "'robustops[tensorboard]'`, or name a *.csv or *.jsonl file"
            ) from error
        # Events of later steps, from before a kill, are hidden.
        self._writer = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
