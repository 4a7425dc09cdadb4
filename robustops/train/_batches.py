"""Shuffled batches whose place in the data is one integer."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

State = dict[str, int]


class Batches:
    """Shuffled batches of rows, resumable bit for bit.

    A `for` loop is one pass over the data, the next loop the next pass; `next(batches)` goes on
    without end. `fit` takes it in place of arrays.

    The batch of a step is a function of the seed and the step: pass `e` takes the rows in the order
    of `numpy.random.default_rng((seed, e)).permutation(rows)`. So a state is a few integers, small
    enough for any checkpoint, and `set_state` goes on where it was taken, in this process or
    another. A last partial batch is filled up with rows from the start of the same order, so every
    row is used in each pass and all batches have one shape; fewer rows than `batch_size` make one
    batch of them all.

    Args:
      data: an array, or tuple (a `NamedTuple` too) of arrays with as many rows each.
      batch_size: rows in a batch, >= 1.
      seed: seed of the shuffling, >= 0.
      backend: "numpy" makes each batch when it is asked for; "grain" makes the next ones in
        threads beforehand; "auto" takes grain where it is installed. The batches are the same.

    Attributes:
      batch_size: rows in a batch.
      step: number of batches given so far.
      backend: "grain" or "numpy".

    Raises:
      ValueError: no rows, unequal numbers of rows, or an option out of range.
      ImportError: `backend="grain"` without grain.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        seed: int = 0,
        backend: Literal["auto", "grain", "numpy"] = "auto",
    ):
        for option, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
                raise ValueError(f"Batches: {option} must be an integer >= {least}, got {value!r}")
        if backend not in ("auto", "grain", "numpy"):
            raise ValueError(
                f"Batches: backend must be 'auto', 'grain' or 'numpy', got {backend!r}"
            )
        self._source = _Source(data, batch_size, seed)
        self.batch_size: int = self._source.batch_size
        self.step: int = 0
        self.backend = "numpy" if backend == "numpy" else _backend(required=backend == "grain")
        self._ahead: Any = None

    def __len__(self) -> int:
        """Batches in one pass over the data."""
        return self._source.steps

    def __iter__(self) -> Iterator[Any]:
        """One pass: what is left of the one that has begun, or the next."""
        return _Pass(self)

    def __next__(self) -> Any:
        if self.backend == "numpy":
            batch = self._source[self.step]
        else:
            if self._ahead is None:
                self._ahead = _read_ahead(self._source, self.step)
            batch = next(self._ahead)
        self.step += 1
        return batch

    def __getitem__(self, step: int) -> Any:
        """The batch of any step, without moving on."""
        return self._source[step]

    def get_state(self) -> State:
        """Where the batches are, in integers: take it after a step, and `set_state` goes on."""
        source = self._source
        return {
            "step": self.step,
            "seed": source.seed,
            "rows": source.rows,
            "batch_size": source.batch_size,
        }

    def set_state(self, state: State) -> None:
        """Goes to the place where `state` was taken.

        Raises:
          ValueError: the state is of other data (another number of rows), another batch size or
            another seed: the batches to come would not be those of the run that was stopped.
        """
        own = self.get_state()
        if not isinstance(state, dict) or state.keys() != own.keys():
            raise ValueError(f"Batches.set_state: a state has the keys {sorted(own)}, got {state}")
        for key in ("rows", "batch_size", "seed"):
            if state[key] != own[key]:
                raise ValueError(
                    f"Batches.set_state: the state was taken with {key}={state[key]}, but these "
                    f"batches have {key}={own[key]}; build them with the same data and options"
                )
        if state["step"] < 0:
            raise ValueError(f"Batches.set_state: step must be >= 0, got {state['step']}")
        self.step = int(state["step"])
        self._ahead = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}


class _Pass(Iterator[Any]):
    """One pass over `Batches`, with grain's names for its place."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self._find_end()

    def _find_end(self) -> None:
        self._end = (self._batches.step // len(self._batches) + 1) * len(self._batches)

    def __next__(self) -> Any:
        if self._batches.step >= self._end:
            raise StopIteration
        return next(self._batches)

    def get_state(self) -> State:
        return self._batches.get_state()

    def set_state(self, state: State) -> None:
        self._batches.set_state(state)
        self._find_end()


class _Source:
    """Batches by number, with random access."""

    def __init__(self, data: Any, batch_size: int, seed: int):
        arrays = data if isinstance(data, tuple) else (data,)
        self.data = data
        arrays = [np.asarray(array) for array in arrays]
        if not arrays or any(array.ndim == 0 for array in arrays):
            raise ValueError("Batches: data must be an array with rows, or a tuple of such arrays")
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ValueError(f"Batches: the arrays must have as many rows, >= 1; got {lengths}")
        self.arrays = arrays
        self.rows = lengths[0]
        self.batch_size = min(batch_size.__index__(), self.rows)
        self.seed = seed.__index__()
        self.steps = -(-self.rows // self.batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return 2**40  # What grain asks for: without end.

    def __getitem__(self, step: Any) -> Any:
        epoch, place = divmod(int(step), self.steps)
        order = self._order
        if order is None or order[0] != epoch:
            rows = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            rows = np.concatenate([rows, rows[: -self.rows % self.batch_size]])
            self._order = order = (epoch, rows.reshape(-1, self.batch_size))
        parts = [array[order[1][place]] for array in self.arrays]
        if not isinstance(self.data, tuple):
            return parts[0]
        # A NamedTuple is made of its fields, a plain tuple of an iterable.
        make = getattr(type(self.data), "_make", tuple)
        return make(parts)


def _backend(required: bool) -> Literal["grain", "numpy"]:
    try:
        import grain  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if required:
            raise ImportError(
                "Batches: backend='grain' needs grain: run `pip install 'robustops[data]'`, or "
                "take backend='numpy'"
            ) from error
        return "numpy"
    return "grain"


def _read_ahead(source: _Source, step: int) -> Iterator[Any]:
    import grain  # pyright: ignore[reportMissingImports]

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source)[step:].to_iter_dataset(options))
