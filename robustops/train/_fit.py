"""A training loop that no bad batch can destroy, and that goes on where it was killed."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustops.optim import Health, StuckError, guard, health

from ._data import Data, Kind, check_data, check_targets, kind_of

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "robustops.train.fit needs flax: run `pip install 'robustops[models]'`"
    ) from error

from ._batches import Batches
from ._checkpoints import Checkpoints, Store
from ._devices import Placement
from ._host import to_host
from ._metrics import MetricsFiles
from ._progress import progress_bar
from ._record import FlightRecorder
from ._run import Run
from ._source import FromBatches, FromRows, Source
from ._step import (
    Metrics,
    TrainState,
    can_hold,
    copy_variables,
    evaluation,
    is_guarded,
    train_step,
)
from ._steps import Steps

_FLUSH = 100  # steps whose metrics wait on the device before they are written


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in each epoch; arrays of one entry per epoch.

    Attributes:
      loss: mean loss of the steps taken; NaN if none was.
      grad_norm: mean global norm of the gradients of the steps taken, before clipping; NaN if the
        optimizer holds `skip_nonfinite` only, which measures none.
      skipped: how many steps were refused.
      validation_loss: mean loss on the validation data after the epoch; None without any.
      nonfinite: rows of the training data with a NaN or infinite cell (dropped or kept).
      health: counters of the guard at the end.
      opt_state: state of the optimizer at the end.
      clipped: how many steps were taken with a gradient that was scaled down.
      steps: steps of the whole run, refused ones included.
      stopped: why the run ended before its last epoch: "patience", "callback", or "".
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    skipped: np.ndarray
    validation_loss: np.ndarray | None
    nonfinite: int
    health: Health
    opt_state: Any
    clipped: np.ndarray
    steps: int
    stopped: str


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What a callback of `fit` is given after an epoch.

    Attributes:
      number: of the epoch, from 1.
      step: steps done so far, refused ones included.
      loss: mean loss of the steps taken in this epoch.
      grad_norm: mean gradient norm of these.
      skipped: steps refused in this epoch.
      clipped: steps taken with a scaled gradient in this epoch.
      validation_loss: None without validation data.
      model: makes a copy of the model as it is now, in evaluation mode.
    """

    number: int
    step: int
    loss: float
    grad_norm: float
    skipped: int
    clipped: int
    validation_loss: float | None
    model: Callable[[], nnx.Module] = dataclasses.field(repr=False)


def fit(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    data: Any,
    loss: Callable[[Any, Any], jax.Array],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    validation: Any = None,
    targets: Kind | Literal["auto"] = "auto",
    nonfinite: Literal["raise", "drop", "keep"] = "raise",
    progress: bool = True,
    patience: int | None = None,
    min_delta: float = 1e-3,
    callbacks: Sequence[Callable[[Epoch], Any]] = (),
    metrics: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    recorder: FlightRecorder | str | os.PathLike[str] | None = None,
    devices: Literal["all"] | Sequence[Any] | None = None,
) -> History:
    """Trains a model in place, refusing every step that would make something NaN or infinite.

    One jitted step: `mean(loss(model(inputs), targets))`, its gradient, `tx` inside `guard`. A step
    is refused if the loss, the gradient, the update or the module's new state (BatchNorm
    statistics) is not finite; then neither parameters, nor optimizer, nor module state (random
    counters included) change. The mean is `safe_mean`, which does not overflow; outputs of 16 bits
    are widened before the loss, which `dynamic_loss_scale` in `tx` scales.

    Rows are shuffled anew in each epoch. A last partial batch is filled up with rows from the
    start of the same epoch's order, so every row is used and no second shape is compiled; fewer
    rows than `batch_size` make one batch of them all.

    The model trains in training mode and validates in evaluation mode (`model.train()`,
    `model.eval()`); its own mode is not changed. An interrupt leaves the parameters of the last
    step.

    With `checkpoints`, the same call after a kill goes on from the last complete checkpoint, and
    ends in the same parameters, history and metrics files, bit for bit. A run that had ended
    returns at once, and goes on if it is now given more epochs and was not stopped early.

    Args:
      model: an `nnx.Module` called as `model(inputs)`; updated in place.
      tx: an optax optimizer, wrapped in `robustops.optim.guard` (which clips the gradient to norm
        1) unless it holds a `guard` or `skip_nonfinite` already.
      data: `(inputs, targets)`, first axis rows, or one array that is both (an autoencoder).
        Integer and boolean inputs become floating, so do integer targets unless they are classes.
        Or batches, which are not checked: `Batches`, or an iterable of `(inputs, targets)` of one
        shape, one pass an epoch. If `checkpoints` are to be written within an epoch, its iterators
        need `get_state` and `set_state`, as grain's have, with a state that JSON can hold.
      loss: `(outputs, targets) -> values` of any shape, e.g. one of `robustops.losses`.
      epochs: passes over the data, >= 1.
      steps: in place of `epochs`: steps of the run, refused ones included, >= 1.
      batch_size: rows in a step, >= 1; not for batches.
      seed: seed of the shuffling; not for batches.
      validation: data of the same form as rows, for `validation_loss`.
      targets: what the targets are: "values" (same shape as the outputs), "probabilities" (the
        same, in [0, 1]) or "classes" (integers below the size of the outputs' last axis). "auto"
        knows the losses of robustops and optax; with another loss, integers with one axis less
        than the outputs are classes, and other targets are not checked.
      nonfinite: what to do with rows that have a NaN or infinite cell: "raise", "drop" them, or
        "keep" them and let their steps be refused (of `validation` they are dropped then too).
        `History.nonfinite` counts those of `data`.
      progress: show a progress bar (needs `rich`).
      patience: stop after so many epochs in which the validation loss (without validation: the
        training loss) has not gone below its best by a share of `min_delta`; None to go on.
      min_delta: see `patience`, >= 0.
      callbacks: called with an `Epoch` after each; one that returns True stops the run.
      metrics: files for one row a step: `*.csv`, `*.jsonl`, or a directory without suffix for
        TensorBoard (needs `tensorboardX`). An old file is replaced, unless the run goes on.
      checkpoints: `Checkpoints`, or a directory.
      recorder: `FlightRecorder`, or a directory: files of refused steps.
      devices: "all", or a list: each takes an equal share of every batch. None: one device; if
        `jax.distributed` joins several processes, all of theirs. Each process is then given the
        same data.

    Returns:
      A `History`.

    Raises:
      ValueError: bad data or options, as above, with the count and the remedy; a checkpoint of
        another model, optimizer, data size, seed or batch size.
      TypeError: a transformation, data or callbacks of another type.
      robustops.optim.StuckError: every step of an epoch was refused.
      ImportError: an option needs a package that is not installed, `rich` for `progress=True`.
    """
    _check_options(epochs, steps, patience, min_delta, nonfinite, targets)
    _check_given(model, tx, data, loss, callbacks, metrics)
    graphdef, params, rest = nnx.split(_in_mode(model, "train"), nnx.Param, ...)
    evaluated = nnx.split(_in_mode(model, "eval"), nnx.Param, ...)[0]
    kind = kind_of(loss) if targets == "auto" else targets

    def checked(name: str, data: Any) -> Data:
        # A NaN among the validation rows would make every validation loss NaN.
        drop = "drop" if name == "validation" and nonfinite == "keep" else nonfinite
        rows = check_data(name, data, drop)
        run = lambda p, r, x: nnx.merge(evaluated, p, r)(x)
        # Shapes only: no memory for all rows at once.
        outputs = jax.eval_shape(run, params, copy_variables(rest), rows.inputs)
        return check_targets(name, rows, outputs, kind)

    train = None
    batches = hasattr(data, "__iter__") and not hasattr(data, "__array__") and not _is_rows(data)
    if batches and batch_size is not None:
        raise ValueError(
            f"fit: batch_size={batch_size} is for rows in memory, and data come in batches; leave "
            "it out"
        )
    if batches:
        source = FromBatches(data) if isinstance(data, Batches) else Source(data)
    else:
        check_count("batch_size", batch_size)
        train = checked("data", data)
        source = FromRows(train, batch_size or 1, seed)
    held_out = None if validation is None else checked("validation", validation)
    place = Placement(devices, source.batch_size)
    tx = tx if is_guarded(tx, params) else guard(tx)
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    if isinstance(recorder, str | os.PathLike):
        recorder = FlightRecorder(recorder)
    if recorder is not None:
        recorder.check(model)

    # The step donates its arguments; the model keeps its own arrays until the end.
    state = place.state(TrainState(params, rest, tx.init(params)))
    facts = {**source.facts, "validation": None if held_out is None else len(held_out.inputs)}
    run = Run(state, facts, epochs, steps)
    step = place.jit(run.by_leaves(train_step(graphdef, tx, loss, state.opt_state)), donate=(0,))
    holds = recorder is not None and can_hold(state.opt_state)
    batch_loss = place.jit(evaluation(evaluated, loss))
    with ExitStack() as stack:
        store = None if checkpoints is None else stack.enter_context(Store(checkpoints))
        if store is not None:
            run.resume(store, place)
        files = stack.enter_context(MetricsFiles(metrics, run.step))
        total = steps if epochs is None else source.steps and epochs * source.steps
        show = stack.enter_context(progress_bar(progress, total))
        stack.callback(lambda: nnx.update(model, *run.variables(place)))
        stepper = stack.enter_context(Steps(step, holds, run, place, recorder, loss))

        def fetch() -> list[dict[str, Any]]:
            stepper.settle()
            return run.fetch()

        def save() -> None:
            if store is not None:
                store.save(to_host(run.state._asdict()), run.facts())

        while run.here or not run.done():  # `steps` may have ended within an epoch
            batches = islice(source.epoch(run.epoch, run.place), run.steps_left())
            batch = next(batches, None)
            if batch is None and not run.here:
                raise ValueError(
                    f"fit: data has no batch in epoch {run.epoch + 1}; an iterator gives one pass, "
                    "Batches gives many"
                )
            while batch is not None:
                if run.unread == _FLUSH:
                    files.write(fetch())
                stepper.take(batch)
                show(run.epoch, run.step, run.here)
                batch = next(batches, None)  # while the device works
                if batch is not None and _due(checkpoints, run.step):
                    if run.place is None:
                        raise ValueError(
                            "fit: checkpoints within an epoch (every_steps) need batches whose "
                            "iterator has get_state and set_state; leave every_steps out"
                        )
                    files.write(fetch())
                    save()
            rows = fetch()
            validation_loss = None
            if held_out is not None:
                validation_loss = _validate(batch_loss, place, run.state, held_out, batch_size)
                if rows:
                    rows[-1]["validation_loss"] = validation_loss
            files.write(rows)
            within = run.place is not None and run.steps_left() == 0
            within = within and len(run.here) != source.steps
            if within and rows:
                save()  # with more steps the run goes on in this epoch
            reported = run.end_epoch(validation_loss)
            # A loss scale that still falls is refused until it fits.
            if run.rows[-1][2] == len(reported) and (
                health(run.state.opt_state).scale == reported[0].scale
            ):
                raise StuckError(_stuck(run.epoch, reported))
            stop = [bool(callback(_told(run, place, evaluated))) for callback in callbacks]
            if any(stop):
                run.stopped = "callback"
            elif patience is not None and _stalled(run.losses(), patience, min_delta):
                run.stopped = "patience"
            due = checkpoints is not None and (run.done() or run.epoch % checkpoints.every == 0)
            if due and not within:
                save()
    columns = [np.array(column) for column in zip(*run.rows, strict=True)]
    opt_state = run.state.opt_state
    return History(
        loss=columns[0],
        grad_norm=columns[1],
        skipped=columns[2],
        validation_loss=None if held_out is None else np.array(run.validation_loss),
        nonfinite=0 if train is None else train.nonfinite,
        health=health(opt_state),
        opt_state=opt_state,
        clipped=columns[3],
        steps=run.step,
        stopped=run.stopped,
    )


def _due(checkpoints: Checkpoints | None, step: int) -> bool:
    every = None if checkpoints is None else checkpoints.every_steps
    return every is not None and step % every == 0


def _validate(
    batch_loss: Callable, place: Placement, state: TrainState, data: Data, size: int | None
) -> float:
    size = size or 256
    starts = range(0, len(data.inputs), size)
    parts = [(data.inputs[i : i + size], data.targets[i : i + size]) for i in starts]
    means = [batch_loss(state.params, state.rest, *place.batch(part)) for part in parts]
    return float(np.average(jax.device_get(means), weights=[len(inputs) for inputs, _ in parts]))


def _told(run: Run, place: Placement, evaluated: Any) -> Epoch:
    loss, grad_norm, skipped, clipped = run.rows[-1]

    def model() -> nnx.Module:
        copied = jax.tree.map(jnp.copy, run.variables(place))
        return nnx.merge(evaluated, *copied)

    return Epoch(
        number=run.epoch,
        step=run.step,
        loss=loss,
        grad_norm=grad_norm,
        skipped=skipped,
        clipped=clipped,
        validation_loss=run.validation_loss[-1] if run.validation_loss else None,
        model=model,
    )


def _stalled(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the last `patience` losses are no better than the best before them."""
    best, since = float("inf"), 0
    for value in losses:
        if value < best - min_delta * abs(best) or (value < best and best == float("inf")):
            best, since = value, 0
        else:
            since += 1
    return since >= patience


def _stuck(epoch: int, metrics: Sequence[Metrics]) -> str:
    last = metrics[-1]
    return (
        f"fit: all {len(metrics)} steps of epoch {epoch} were refused, so the parameters no longer "
        f"change (last loss {float(last.loss)}, gradient norm {float(last.grad_norm)}). "
        "Check in this order: (a) the data: scale it, and drop or impute NaN and inf "
        "(robustops.train.RobustScaler); class labels outside 0..classes-1 make a NaN too; (b) the "
        "initial parameters: robustops.train.rescale_init(model, x); (c) the loss: take one from "
        "robustops.losses, on logits; (d) the learning rate"
    )


def _check_options(epochs, steps, patience, min_delta, nonfinite, targets) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError(f"fit: pass epochs or steps, one of them, got {epochs=} and {steps=}")
    for name, value in (("epochs", epochs), ("steps", steps), ("patience", patience)):
        if value is not None:
            check_count(name, value)
    if not min_delta >= 0:
        raise ValueError(f"fit: min_delta must be >= 0, got {min_delta!r}")
    if nonfinite not in ("raise", "drop", "keep"):
        raise ValueError(f"fit: nonfinite must be 'raise', 'drop' or 'keep', got {nonfinite!r}")
    if targets not in ("auto", "values", "probabilities", "classes"):
        raise ValueError(
            f"fit: targets must be 'auto', 'values', 'probabilities' or 'classes', got {targets!r}"
        )


def _check_given(model, tx, data, loss, callbacks, metrics) -> None:
    if not isinstance(model, nnx.Module):
        raise TypeError(f"fit: model must be an instance of flax.nnx.Module, got {model!r}")
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"fit: tx must be an optax transformation, as optax.adam(1e-3), got {tx!r}")
    if isinstance(data, str | Mapping):
        got = repr(data) if isinstance(data, str) else f"a {type(data).__name__} of {list(data)}"
        raise TypeError(
            f"fit: data must be (inputs, targets), one array or batches, got {got}; "
            "robustops.train.load_digits() and its like give such"
        )
    if not callable(loss):
        raise TypeError(
            f"fit: loss must be a function of outputs and targets, got {type(loss).__name__}; the "
            "targets go into data, as (inputs, targets)"
        )
    if not isinstance(callbacks, tuple | list) or not all(map(callable, callbacks)):
        raise TypeError(f"fit: callbacks must be a sequence of functions, got {callbacks!r}")
    if metrics is None:
        raise TypeError("fit: metrics must be a path or several, got None; leave it out for none")


def _is_rows(data: Any) -> bool:
    """Whether this is `(inputs, targets)`, and not a list of such batches."""
    if not isinstance(data, tuple | list):
        return False
    arrays = lambda x: isinstance(x, tuple | list) and all(hasattr(y, "shape") for y in x)
    return not data or not all(arrays(x) and len(x) == 2 for x in data)


def check_count(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is an integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"fit: {name} must be an integer >= 1, got {value!r}")


def _in_mode(model: nnx.Module, mode: Literal["train", "eval"]) -> nnx.Module:
    model = nnx.clone(model)
    getattr(model, mode)()
    return model
