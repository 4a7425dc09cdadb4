"""Where a run takes its batches from: rows in memory, `Batches`, or an iterable of the user."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._batches import Batches
from ._data import Data


class Batch(NamedTuple):
    """A batch, and where the data stood after it."""

    inputs: Any
    targets: Any
    rows: np.ndarray | None
    """Which rows of the data these are, if that is known."""
    place: Any
    """JSON, given to `epoch` to go on after this batch; None if that cannot be."""


class Source:
    """An iterable of batches, one pass an epoch; its iterators may save their place, as grain's."""

    batch_size: int | None = None
    steps: int | None
    """Batches in an epoch, if that is known."""

    def __init__(self, batches: Any):
        self._batches = batches
        self.steps = len(batches) if hasattr(batches, "__len__") else None
        self.facts: dict[str, Any] = {}
        """What must be the same when a run goes on."""

    def epoch(self, epoch: int, place: Any) -> Iterator[Batch]:
        """The batches of an epoch, after a place in it; None is the start."""
        del epoch
        batches = iter(self._batches)
        if place is not None:
            batches.set_state(place)  # pyright: ignore[reportAttributeAccessIssue]
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"fit: a batch must be (inputs, targets), got a {type(batch).__name__}"
                )
            get_state = getattr(batches, "get_state", lambda: None)
            yield Batch(batch[0], batch[1], None, get_state())


class FromBatches(Source):
    """`Batches`, of whose endless stream an epoch is one pass over the rows."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self.batch_size, self.steps = batches.batch_size, len(batches)
        self.facts = {k: v for k, v in batches.get_state().items() if k != "step"}

    def epoch(self, epoch: int, place: Any) -> Iterator[Batch]:
        """The batches of an epoch, after a place in it; None is the start."""
        assert self.steps is not None
        begin = epoch * self.steps + (place or 0)
        if self._batches.step != begin:
            self._batches.set_state({**self._batches.get_state(), "step": begin})
        for i in range(place or 0, self.steps):
            batch = next(self._batches)
            inputs, targets, *rows = batch if isinstance(batch, tuple) else (batch, batch)
            yield Batch(inputs, targets, rows[0] if rows else None, i + 1)


class FromRows(FromBatches):
    """Rows in memory, with their numbers."""

    def __init__(self, data: Data, batch_size: int, seed: int):
        columns = (data.inputs, data.targets, np.arange(len(data.inputs)))
        # `fit` asks for the next batch while a step runs; threads for it would cost more.
        super().__init__(Batches(columns, batch_size, seed=seed, backend="numpy"))
