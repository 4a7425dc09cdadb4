"""Runs the compiled step, and has the steps that it refuses written down."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ._devices import Placement
from ._record import FlightRecorder
from ._run import Run
from ._source import Batch
from ._step import read


class Steps:
    """Launches steps; what a refused one was given goes to the recorder, if there is one.

    A record holds the state of the refused step, which the next step overwrites. The device would
    be idle if each decision were read before the next launch, so the next step is launched first
    and told the decision: after a refused step it is held, changes nothing, and is launched again
    once the record is written.

    Args:
      step: `(leaves, inputs, targets) -> (leaves, metrics, taken)`, compiled, which takes `go` too
        if it `holds`: False leaves the state as it is, bit for bit.
      holds: whether it can be held; else every decision is read before the next launch.
      run: whose state the steps change.
      place: where the batches go.
      recorder: of refused steps, or None.
      loss: named in the records.
    """

    def __init__(
        self,
        step: Callable,
        holds: bool,
        run: Run,
        place: Placement,
        recorder: FlightRecorder | None,
        loss: Callable,
    ):
        self._step, self._run, self._place = step, run, place
        self._recorder, self._loss = recorder, loss
        self._go = place.state(np.array(True)) if holds else None
        self._open: tuple[Batch, Any, Any, int, int] | None = None
        """Batch, metrics, decision, epoch and number of the step that was not looked at yet."""

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: Any) -> None:
        self.settle()  # after an error of the data too

    def take(self, batch: Batch) -> None:
        """Launches a step, and counts it."""
        if self._go is None:
            self.settle()
        arrays = self._place.batch((batch.inputs, batch.targets))
        metrics, taken = self._launch(arrays, self._go if self._open is None else self._open[2])
        if self.settle():
            metrics, taken = self._launch(arrays, self._go)
        self._run.after(batch, metrics)
        if self._recorder is not None:
            self._open = batch, metrics, taken, self._run.epoch + 1, self._run.step

    def settle(self) -> bool:
        """Whether the last step was refused and not looked at yet; its record is written now."""
        if self._open is None:
            return False
        (batch, metrics, _, epoch, step), self._open = self._open, None
        told = read(metrics)
        if told.taken:
            return False
        assert self._recorder is not None
        self._recorder.write(self._run.state, batch, told, self._loss, epoch, step)
        return True

    def _launch(self, arrays: Any, go: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        extra = () if go is None else (go,)
        self._run.leaves, metrics, taken = self._step(self._run.leaves, *arrays, *extra)
        return metrics, taken
