"""The progress bar."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ._step import read

Show = Callable[[int, int, Sequence[Any]], None]


@contextmanager
def progress_bar(enabled: bool, total: int | None) -> Iterator[Show]:
    """Yields `show(epoch, step, metrics)`, with the steps done and the metrics of the epoch so far.

    The bar stays when it ends. Half a second passes between two readings of a metric, since each
    waits for the device.
    """
    if not enabled:
        yield lambda epoch, step, metrics: None
        return
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise ImportError(
            "fit: the progress bar needs rich: run `pip install 'robustops[models]'`, "
            "or pass progress=False"
        ) from error
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task, shown = bar.add_task("epoch 1", total=total), 0.0

        def show(epoch: int, step: int, metrics: Sequence[Any]) -> None:
            nonlocal shown
            if time.monotonic() - shown < 0.5 and step != total:
                return
            shown = time.monotonic()
            metrics = [read(m) for m in metrics]
            last = metrics[-1]
            text = (
                f"epoch {epoch + 1}  loss {float(last.loss):.4g}  |g| {float(last.grad_norm):.3g}"
            )
            text += f"  skipped {sum(not m.taken for m in metrics)}"
            text += f"  clipped {sum(bool(m.clipped) for m in metrics)}"
            if last.scale != 1:
                text += f"  scale {float(last.scale):g}"
            bar.update(task, completed=step, description=text)

        yield show
