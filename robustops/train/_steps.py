"""Runs the compiled step, and has the steps that it refuses written down."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._devices import Placement
from ._record import FlightRecorder
from ._run import Run
from ._source import Batch
from ._step import read

# Steps looked at by one wait, while as many are on their way, and the bytes of their batches, which
# are kept so long. On two cores a wait costs a tenth of a millisecond.
_MOST, _BYTES = 16, 2**26


@dataclasses.dataclass
class _Open:
    """A step that was launched and not looked at yet."""

    batch: Batch
    place: int
    """Of its metrics in `Run.here`."""
    epoch: int
    step: int
    metrics: Any = None
    taken: Any = None


class Steps:
    """Launches steps; what a refused one was given goes to the recorder, if there is one.

    A record holds the state of the refused step, which the next step overwrites. The device would
    be idle if each decision were read before the next launch, so steps are launched ahead and told
    the decision of the one before: after a refused step they are held, change nothing, and are
    launched again once the record is written. A held step says that it was not taken, so the last
    of several tells whether all were: one wait for up to `_MOST` steps, after a refusal for one,
    then for twice as many each time, so that a step held in vain stays the exception.

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
        self._open: list[_Open] = []
        """From the oldest to the newest."""
        self._many = 1

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: Any) -> None:
        self.settle()  # after an error of the data too

    def take(self, batch: Batch) -> None:
        """Launches a step, and counts it."""
        if self._go is None:
            self.settle()
        elif len(self._open) >= 2 * self._many:
            self._look(self._many)
        run = self._run
        step = _Open(batch, len(run.here), run.epoch + 1, run.step + 1)
        self._launch(step)
        run.after(batch, step.metrics)

    def settle(self) -> None:
        """Looks at all steps; their metrics and the state are final then."""
        while self._open:
            self._look(len(self._open))

    def _look(self, count: int) -> None:
        """Looks at the oldest steps; a refused one is recorded, and those after it launched."""
        if read(self._open[count - 1].metrics).taken:
            size = _bytes(self._open[0].batch)
            self._many = min(2 * self._many, _MOST, max(1, _BYTES // max(1, size)))
            del self._open[:count]
            return
        told = read(self._open[0].metrics)
        while told.taken:
            del self._open[0]
            told = read(self._open[0].metrics)
        refused, *held = self._open
        self._open, self._many = [], 1
        assert self._recorder is not None
        self._recorder.write(
            self._run.state, refused.batch, told, self._loss, refused.epoch, refused.step
        )
        for step in held:
            self._launch(step)
            self._run.here[step.place] = step.metrics

    def _launch(self, step: _Open) -> None:
        arrays = self._place.batch((step.batch.inputs, step.batch.targets))
        go = () if self._go is None else (self._open[-1].taken if self._open else self._go,)
        self._run.leaves, step.metrics, step.taken = self._step(self._run.leaves, *arrays, *go)
        if self._recorder is not None and not self._recorder.full:
            self._open.append(step)


def _bytes(batch: Batch) -> int:
    arrays = jax.tree.leaves((batch.inputs, batch.targets))
    return sum(jnp.size(x) * jnp.result_type(x).itemsize for x in arrays)
