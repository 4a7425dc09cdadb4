"""A short training loop that no bad batch can destroy."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustops.ops import safe_mean
from robustops.optim import Health, StuckError, guard, health

from ._data import Data, Kind, check_data, check_targets, kind_of

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "robustops.train.fit needs flax: run `pip install 'robustops[models]'`"
    ) from error


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
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    skipped: np.ndarray
    validation_loss: np.ndarray | None
    nonfinite: int
    health: Health
    opt_state: Any


class _Metrics(NamedTuple):
    loss: jax.Array
    grad_norm: jax.Array
    taken: jax.Array


def fit(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    data: Any,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    validation: Any = None,
    targets: Kind | Literal["auto"] = "auto",
    nonfinite: Literal["raise", "drop", "keep"] = "raise",
    progress: bool = True,
) -> History:
    """Trains a model in place, refusing every step that would make something NaN or infinite.

    One jitted step: `mean(loss(model(inputs), targets))`, its gradient, `tx` inside `guard`. A step
    is refused if the loss, the gradient, the update or the module's new state (BatchNorm
    statistics) is not finite; then neither parameters, nor optimizer, nor module state (random
    counters included) change. The mean is `safe_mean`, which does not overflow.

    Rows are shuffled anew in each epoch. A last partial batch is filled up with rows from the
    start of the same epoch's order, so every row is used and no second shape is compiled; fewer
    rows than `batch_size` make one batch of them all.

    The model trains in training mode and validates in evaluation mode (`model.train()`,
    `model.eval()`); its own mode is not changed. An interrupt leaves the parameters of the last
    step.

    Args:
      model: an `nnx.Module` called as `model(inputs)`; updated in place.
      tx: an optax optimizer, wrapped in `robustops.optim.guard` (which clips the gradient to norm
        1) unless it holds a `guard` or `skip_nonfinite` already.
      data: `(inputs, targets)`, first axis rows, or one array that is both (an autoencoder).
        Integer and boolean inputs become floating, so do integer targets unless they are classes.
      loss: `(outputs, targets) -> values` of any shape, e.g. one of `robustops.losses`.
      epochs: passes over the data, >= 1.
      batch_size: rows in a step, >= 1.
      seed: seed of the shuffling.
      validation: data of the same form, for `validation_loss`.
      targets: what the targets are: "values" (same shape as the outputs), "probabilities" (the
        same, in [0, 1]) or "classes" (integers below the size of the outputs' last axis). "auto"
        knows the losses of robustops and optax; with another loss, integers with one axis less
        than the outputs are classes, and other targets are not checked.
      nonfinite: what to do with rows that have a NaN or infinite cell: "raise", "drop" them, or
        "keep" them and let their steps be refused. `History.nonfinite` counts them.
      progress: show a progress bar (needs `rich`).

    Returns:
      A `History`.

    Raises:
      ValueError: bad data or options, as above, with the count and the remedy.
      robustops.optim.StuckError: every step of an epoch was refused.
      ImportError: `progress=True` without `rich`.
    """
    for option, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"fit: {option} must be an integer >= 1, got {value!r}")
    if nonfinite not in ("raise", "drop", "keep"):
        raise ValueError(f"fit: nonfinite must be 'raise', 'drop' or 'keep', got {nonfinite!r}")
    if targets not in ("auto", "values", "probabilities", "classes"):
        raise ValueError(
            f"fit: targets must be 'auto', 'values', 'probabilities' or 'classes', got {targets!r}"
        )
    kind = kind_of(loss) if targets == "auto" else targets
    trained, params, rest = nnx.split(_in_mode(model, "train"), nnx.Param, ...)
    evaluated = nnx.split(_in_mode(model, "eval"), nnx.Param, ...)[0]
    run = jax.eval_shape  # Shapes only: no memory for all rows at once.

    def checked(name: str, data: Any) -> Data:
        rows = check_data(name, data, nonfinite)
        outputs = run(
            lambda p, r, x: nnx.merge(evaluated, p, r)(x), params, _copy(rest), rows.inputs
        )
        return check_targets(name, rows, outputs, kind)

    train = checked("data", data)
    held_out = None if validation is None else checked("validation", validation)
    if not _is_guarded(tx, params):
        tx = guard(tx)
    step, evaluate = _train_step(trained, tx, loss), _evaluation(evaluated, loss)

    # The step donates its arguments; the model keeps its own arrays until the end.
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    opt_state = tx.init(params)
    rng = np.random.default_rng(seed)
    batch_size = min(batch_size, len(train.inputs))
    steps = -(-len(train.inputs) // batch_size)
    rows: list[tuple[float, float, int]] = []
    validation_loss: list[float] = []
    try:
        with _progress(progress, epochs * steps) as show:
            for epoch in range(epochs):
                metrics = []
                for batch in _batches(train, batch_size, rng):
                    params, rest, opt_state, metric = step(params, rest, opt_state, *batch)
                    metrics.append(metric)
                    show(epoch, metrics)
                rows.append(_summary(jax.device_get(metrics)))
                if rows[-1][2] == steps:
                    raise StuckError(_stuck(epoch, steps, jax.device_get(metrics[-1])))
                if held_out is not None:
                    validation_loss.append(evaluate(params, rest, held_out, batch_size))
    finally:
        nnx.update(model, params, rest)
    means, norms, skipped = (np.array(column) for column in zip(*rows, strict=True))
    return History(
        loss=means,
        grad_norm=norms,
        skipped=skipped,
        validation_loss=None if held_out is None else np.array(validation_loss),
        nonfinite=train.nonfinite,
        health=health(opt_state),
        opt_state=opt_state,
    )


def _train_step(graphdef: Any, tx: Any, loss: Callable) -> Callable:
    def step(params, rest, opt_state, inputs, targets):
        def objective(params):
            model = nnx.merge(graphdef, params, _copy(rest))
            value = safe_mean(loss(model(inputs), targets))
            return value, nnx.split(model, nnx.Param, ...)[2]

        (value, new_rest), grads = jax.value_and_grad(objective, has_aux=True)(params)
        finite = jnp.isfinite(value) & _all_finite(new_rest)
        # One decision for everything: what the guard cannot see reaches it through the gradient.
        grads = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), grads)
        before = health(opt_state).skipped
        updates, opt_state = tx.update(grads, opt_state, params)
        now = health(opt_state)
        taken = now.skipped == before
        params = optax.apply_updates(params, updates)
        rest = jax.tree.map(lambda new, old: jnp.where(taken, new, old), new_rest, rest)
        return params, rest, opt_state, _Metrics(value, now.last_norm, taken)

    return jax.jit(step, donate_argnums=(0, 1, 2))


def _evaluation(graphdef: Any, loss: Callable) -> Callable:
    @jax.jit
    def batch_loss(params, rest, inputs, targets):
        return safe_mean(loss(nnx.merge(graphdef, params, _copy(rest))(inputs), targets))

    def evaluate(params, rest, data: Data, batch_size: int) -> float:
        starts = range(0, len(data.inputs), batch_size)
        parts = [
            (data.inputs[i : i + batch_size], data.targets[i : i + batch_size]) for i in starts
        ]
        means = jax.device_get([batch_loss(params, rest, *part) for part in parts])
        return float(np.average(means, weights=[len(inputs) for inputs, _ in parts]))

    return evaluate


def _batches(data: Data, size: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    order = rng.permutation(len(data.inputs))
    order = np.concatenate([order, order[: -len(order) % size]])
    for rows in order.reshape(-1, size):
        yield data.inputs[rows], data.targets[rows]


def _summary(metrics: list[_Metrics]) -> tuple[float, float, int]:
    """Mean loss and gradient norm of the steps taken, and the count of the others."""
    taken = [m for m in metrics if m.taken]
    loss, norm = (
        float(np.mean([m[i] for m in taken], dtype=np.float64)) if taken else float("nan")
        for i in (0, 1)
    )
    return loss, norm, len(metrics) - len(taken)


def _stuck(epoch: int, steps: int, last: _Metrics) -> str:
    return (
        f"fit: all {steps} steps of epoch {epoch + 1} were refused, so the parameters no longer "
        f"change (last loss {float(last.loss)}, gradient norm {float(last.grad_norm)}). "
        "Check in this order: (a) the data: scale it, and drop or impute NaN and inf "
        "(robustops.train.RobustScaler); (b) the initial parameters: robustops.train.rescale_init("
        "model, x); (c) the loss: take one from robustops.losses, on logits; (d) the learning rate"
    )


def _is_guarded(tx: optax.GradientTransformation, params: Any) -> bool:
    jax.eval_shape(tx.init, params)  # An error of `init` itself is not an answer.
    try:
        jax.eval_shape(lambda params: health(tx.init(params)), params)
    except ValueError:  # The documented answer of `health` where no guard is.
        return False
    return True


def _in_mode(model: nnx.Module, mode: Literal["train", "eval"]) -> nnx.Module:
    model = nnx.clone(model)
    getattr(model, mode)()
    return model


def _copy(state: Any) -> Any:
    """The same arrays in new variables: `nnx.merge` shares the variables it is given."""
    return jax.tree.map(lambda leaf: leaf, state)


def _all_finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves] or [True]).all()


@contextmanager
def _progress(enabled: bool, steps: int) -> Iterator[Callable[[int, list[_Metrics]], None]]:
    """A function that shows the epoch and its metrics so far; the bar stays when it ends."""
    if not enabled:
        yield lambda epoch, metrics: None
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
        task, shown, done = bar.add_task("epoch 1", total=steps), 0.0, 0

        def show(epoch: int, metrics: list[_Metrics]) -> None:
            nonlocal shown, done
            done += 1
            # Reading a metric waits for the device, so not at every step.
            if time.monotonic() - shown < 0.5 and done < steps:
                return
            shown = time.monotonic()
            last, refused = metrics[-1], sum(not m.taken for m in metrics)
            text = f"loss {float(last.loss):.4g}  |g| {float(last.grad_norm):.3g}"
            bar.update(
                task, completed=done, description=f"epoch {epoch + 1}  {text}  skipped {refused}"
            )

        yield show
