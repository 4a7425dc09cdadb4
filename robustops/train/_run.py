"""Where a run of `fit` stands: everything that a checkpoint must bring back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checkpoints import Store
from ._devices import Placement
from ._host import from_host, is_key, to_host
from ._source import Batch
from ._step import Metrics, TrainState


class Run:
    """State on the devices, place in the data, and what the steps so far reported.

    Args:
      state: on the devices.
      source: facts of the data that must be the same when the run goes on.
      epochs: after which the run is done, or None.
      steps: the same.
    """

    def __init__(
        self, state: TrainState, source: dict[str, Any], epochs: int | None, steps: int | None
    ):
        self.state = state
        self._source, self._epochs, self._steps = source, epochs, steps
        self.epoch = self.step = 0
        self.place: Any = None
        """After which batch of the epoch to go on; None at its start."""
        self.here: list[Any] = []
        """`Metrics` of the steps of this epoch; the last `unread` ones are on the device."""
        self.unread = 0
        self.rows: list[tuple[float, float, int, int]] = []
        """Of each epoch: loss, gradient norm, skipped, clipped."""
        self.validation_loss: list[float] = []
        self.stopped = ""

    @property
    def state(self) -> TrainState:
        """What the steps change, on the devices."""
        return jax.tree.unflatten(self._tree, self.leaves)

    @state.setter
    def state(self, state: TrainState) -> None:
        self.leaves, self._tree = jax.tree.flatten(state)

    def by_leaves(self, step: Callable) -> Callable:
        """`step(state, ...) -> (state, ...)`, from leaves to leaves.

        The leaves of a flax model's state are found in Python, which took a third of a millisecond
        a call.
        """

        def of_leaves(leaves: list[Any], *given: Any) -> tuple[Any, ...]:
            state, *told = step(jax.tree.unflatten(self._tree, leaves), *given)
            return jax.tree.leaves(state), *told

        return of_leaves

    def done(self) -> bool:
        """Whether there is nothing left to do."""
        over = self._epochs is not None and self.epoch >= self._epochs
        return bool(self.stopped) or over or self.steps_left() == 0

    def steps_left(self) -> int | None:
        """Steps up to the limit, if there is one."""
        return None if self._steps is None else max(0, self._steps - self.step)

    def after(self, batch: Batch, metrics: jax.Array) -> None:
        """Counts a step."""
        self.step += 1
        self.place = batch.place
        self.here.append(metrics)
        self.unread += 1

    def fetch(self) -> list[dict[str, Any]]:
        """Rows of the steps that were not read yet, and their metrics on the host."""
        if not self.unread:
            return []
        fetched = [Metrics(*m) for m in jax.device_get(self.here[-self.unread :])]
        self.here[-self.unread :] = fetched
        first = self.step - self.unread + 1
        self.unread = 0
        return [
            {
                "step": step,
                "epoch": self.epoch + 1,
                "loss": float(m.loss),
                "grad_norm": float(m.grad_norm),
                "skipped": int(not m.taken),
                "clipped": int(m.clipped),
                "scale": float(m.scale),
            }
            for step, m in enumerate(fetched, first)
        ]

    def end_epoch(self, validation_loss: float | None) -> list[Metrics]:
        """Sums the epoch up and begins the next; returns the metrics of its steps."""
        metrics = self.here
        taken = [m for m in metrics if m.taken]
        loss, norm = (
            float(np.mean([m[i] for m in taken], dtype=np.float64)) if taken else float("nan")
            for i in (0, 1)
        )
        clipped = sum(bool(m.clipped) for m in metrics)
        self.rows.append((loss, norm, len(metrics) - len(taken), clipped))
        if validation_loss is not None:
            self.validation_loss.append(validation_loss)
        self.epoch += 1
        self.place, self.here = None, []
        return metrics

    def losses(self) -> list[float]:
        """By which epochs are compared: validation loss, or training loss without any."""
        return self.validation_loss or [row[0] for row in self.rows]

    def facts(self) -> dict[str, Any]:
        """All but the arrays, as JSON. The score is of the epoch just ended; lower is better."""
        score = self.losses()[-1] if self.losses() and not self.here else None
        return {
            "step": self.step,
            "epoch": self.epoch,
            "place": self.place,
            "here": [[float(x) for x in m] for m in self.here],
            "rows": self.rows,
            "validation_loss": self.validation_loss,
            "stopped": self.stopped,
            "source": self._source,
            "score": score if score is not None and np.isfinite(score) else None,
        }

    def resume(self, store: Store, place: Placement) -> None:
        """Goes to the last checkpoint, if there is one.

        Raises:
          ValueError: it is of another model, optimizer or data, or no checkpoint is whole.
        """
        found = store.last()
        if found is None:
            return
        arrays, facts = found
        where = f"fit: the checkpoint of step {facts['step']} in {store.directory}"
        for name in {**self._source, **facts["source"]}:
            then, now = facts["source"].get(name), self._source.get(name)
            if then != now:
                raise ValueError(
                    f"{where} is of a run with {name}={then}, this one has {name}={now}; give "
                    "this run a directory of its own, or the options of that run"
                )
        state = from_host(self.state._asdict(), arrays, where)
        self.state = place.state(TrainState(**state))
        self.step, self.epoch, self.place = facts["step"], facts["epoch"], facts["place"]
        self.here = [Metrics(*map(np.float64, row)) for row in facts["here"]]
        self.rows = [tuple(row) for row in facts["rows"]]
        self.validation_loss, self.stopped = facts["validation_loss"], facts["stopped"]

    def variables(self, place: Placement) -> tuple[Any, Any]:
        """Parameters and module state, on the default device."""
        parts = {"params": self.state.params, "rest": self.state.rest}
        if place.count > 1:
            parts = from_host(parts, to_host(parts), "")
            parts = jax.tree.map(lambda x: x if is_key(x) else jnp.asarray(x), parts)
        return parts["params"], parts["rest"]
