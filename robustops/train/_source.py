"""Batches in an order that a run can come back to."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._data import Data


class Batch(NamedTuple):
    """A batch, and where the data stood after it."""

    inputs: Any
    targets: Any
    rows: np.ndarray | None
    place: Any
    """JSON, given to `epoch` to go on after this batch."""


class Rows:
    """Rows in memory, shuffled anew in each epoch by a generator of (seed, epoch).

    A last partial batch is filled up with rows from the start of the same epoch's order.
    """

    def __init__(self, data: Data, batch_size: int, seed: int):
        self._data, self._seed = data, seed
        self.batch_size: int | None = min(batch_size, len(data.inputs))
        self.steps: int | None = -(-len(data.inputs) // self.batch_size)
        self.facts = {"seed": seed, "batch_size": self.batch_size, "rows": len(data.inputs)}

    def epoch(self, epoch: int, place: Any) -> Iterator[Batch]:
        """The batches of an epoch after a place in it, None being the start."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._data.inputs))
        order = np.concatenate([order, order[: -len(order) % self.batch_size]])
        start = place or 0
        for i, rows in enumerate(order.reshape(-1, self.batch_size)[start:], start + 1):
            yield Batch(self._data.inputs[rows], self._data.targets[rows], rows, i)


class Batches:
    """Batches that the user makes: an iterable whose iterators, as grain's, can save their place."""

    def __init__(self, batches: Any):
        self._batches = batches
        self.steps: int | None = len(batches) if hasattr(batches, "__len__") else None
        self.batch_size: int | None = None
        self.facts: dict[str, Any] = {}

    def epoch(self, epoch: int, place: Any) -> Iterator[Batch]:
        """The batches of one pass, after a place in it."""
        del epoch
        batches = iter(self._batches)
        if place is not None:
            batches.set_state(place)
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"fit: a batch must be (inputs, targets), got a {type(batch).__name__}"
                )
            yield Batch(*batch, None, batches.get_state() if hasattr(batches, "get_state") else None)
