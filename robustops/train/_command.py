"""`python -m robustops train`: a reference model on real data, from one command."""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from robustops import losses, models, optim

from . import _datasets as datasets
from ._checkpoints import Checkpoints
from ._fit import History, fit
from ._pictures import plot_curves, plot_reconstructions
from ._record import FlightRecorder
from ._scalers import StandardScaler

Model = Literal[
    "autoencoder",
    "conv-autoencoder",
    "variational-autoencoder",
    "classifier",
    "conv-classifier",
    "rnn",
    "gru",
]
DataName = Literal[
    "digits", "digit-sequences", "image-patches", "breast-cancer", "wine", "diabetes"
]
TABLES = ("digits", "image-patches", "breast-cancer", "wine", "diabetes")
IMAGES = ("digits", "image-patches")
SUITS: dict[str, tuple[str, ...]] = {
    "autoencoder": TABLES,
    "conv-autoencoder": IMAGES,
    "variational-autoencoder": TABLES,
    "classifier": ("digits", "breast-cancer", "wine"),
    "conv-classifier": ("digits",),
    "rnn": ("digit-sequences",),
    "gru": ("digit-sequences",),
}


@dataclasses.dataclass(frozen=True)
class Train:
    """Trains a reference model on real data that scikit-learn ships, with every guard on.

    Data are scaled by the training rows, steps with a NaN are refused, and a run that was killed
    goes on when the same command is given again. In the output directory are checkpoints,
    metrics.csv, records of refused steps (for `python -m robustops replay`), curves.png and, of an
    autoencoder, reconstructions.png.

    autoencoder, variational-autoencoder: digits, image-patches, breast-cancer, wine, diabetes;
    conv-autoencoder: digits, image-patches; classifier: digits, breast-cancer, wine;
    conv-classifier: digits; rnn, gru: digit-sequences (64 steps of one pixel).
    """

    model: Model = "autoencoder"
    """Which model of robustops.models."""
    data: DataName = "digits"
    """Which data set; see above for what suits which model."""
    epochs: int = 100
    """Passes over the training rows; give more to a finished run to train it on."""
    batch_size: int = 64
    """Rows in a step."""
    learning_rate: float = 3e-3
    """Of Adam, at the start; it falls to 0 along a cosine."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers, or channels of the stages; none given: the model's own."""
    code: int = 16
    """Size of an autoencoder's code."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What to compute in; parameters are float32. float16 has its loss scaled."""
    seed: int = 0
    """Of the split, the first parameters and the shuffling."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss."""
    fault_every: int | None = None
    """Put a NaN into the gradient every so many steps, to see the guard at work."""
    all_devices: bool = False
    """Share each batch among all devices of this machine."""
    out: Path | None = None
    """Output directory; by default runs/MODEL-DATA-SEED."""
    progress: bool = True
    """Show a progress bar."""


# What may differ when a run goes on.
_FREE = ("epochs", "patience", "out", "progress", "all_devices")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError(
            "python -m robustops train needs tyro: run `pip install 'robustops[train]'`"
        ) from error
    given = tyro.cli(Train, args=list(argv), prog="python -m robustops train")
    try:
        print(train(given))
    except (ValueError, optim.StuckError) as error:
        print(f"python -m robustops train: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: Train) -> str:
    """Trains as told; returns what to print."""
    _check(options)
    if options.data not in SUITS[options.model]:
        raise ValueError(
            f"--model {options.model} does not suit --data {options.data}; it takes "
            f"{', '.join(SUITS[options.model])}, and {options.data} suits "
            f"{', '.join(m for m, d in SUITS.items() if options.data in d)}"
        )
    out = options.out or Path("runs") / f"{options.model}-{options.data}-{options.seed}"
    data = _load(options)
    build = _builder(options, data)
    _same_run(options, out)
    model: Any = build(rngs=nnx.Rngs(options.seed))
    history = fit(
        model,
        _optimizer(options, len(data.train.inputs)),
        data.train,
        _loss(model),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        validation=data.validation,
        patience=options.patience,
        progress=options.progress,
        metrics=out / "metrics.csv",
        checkpoints=Checkpoints(out / "checkpoints"),
        recorder=FlightRecorder(out / "records", build=build),
        devices="all" if options.all_devices else None,
    )
    model.eval()
    outputs: Any = nnx.jit(lambda m, x: m(x))(model, data.test.inputs)
    plot_curves(out / "metrics.csv", out / "curves.png")
    if "autoencoder" in options.model:
        outputs = getattr(outputs, "reconstruction", outputs)
        plot_reconstructions(data.test.inputs, outputs, out / "reconstructions.png")
    return _summary(history, data, np.asarray(outputs, np.float32), out)


def _check(options: Train) -> None:
    """Raises a ValueError for a number out of range, before anything is written."""
    for name in ("epochs", "batch_size", "code", "patience", "fault_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if any(width < 1 for width in options.hidden):
        raise ValueError(f"--hidden must be at least 1 each, got {options.hidden}")
    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")
    if not 0 < options.learning_rate < math.inf:
        raise ValueError(f"--learning-rate must be above 0 and finite, got {options.learning_rate}")


def _load(options: Train) -> datasets.Dataset:
    load = getattr(datasets, f"load_{options.data.replace('-', '_')}")
    arguments: dict[str, Any] = {"seed": options.seed}
    if options.model.startswith("conv"):
        arguments["image"] = True
    data = load(**arguments)
    pixels = options.data in ("digits", "digit-sequences", "image-patches")
    data = data.scaled(StandardScaler(), shared=pixels)
    if "autoencoder" in options.model:
        parts = {k: datasets.Rows(rows.inputs, rows.inputs) for k, rows in _parts(data).items()}
        data = dataclasses.replace(data, **parts)
    return data


def _parts(data: datasets.Dataset) -> dict[str, datasets.Rows]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def _builder(options: Train, data: datasets.Dataset) -> Callable[..., nnx.Module]:
    """The model as a partial of names and numbers, which a record can hold."""
    shape = data.train.inputs.shape[1:]
    keywords: dict[str, Any] = {"dtype": options.dtype}
    if options.hidden:
        first, *more = options.hidden
        recurrent = options.model in ("rnn", "gru")
        if recurrent and more:
            raise ValueError(f"--model {options.model} has one hidden size, got {options.hidden}")
        keywords["hidden"] = first if recurrent else options.hidden
    if options.model.startswith("conv"):
        keywords["shape"] = shape
    else:
        keywords["features"] = shape[-1]
    if "autoencoder" in options.model:
        keywords["code"] = options.code
    else:
        keywords["classes"] = len(data.classes)
    if options.model in ("rnn", "gru"):
        keywords["cell"] = options.model
    kinds: dict[str, Callable[..., nnx.Module]] = {
        "autoencoder": models.Autoencoder,
        "conv-autoencoder": models.ConvAutoencoder,
        "variational-autoencoder": models.VariationalAutoencoder,
        "classifier": models.Classifier,
        "conv-classifier": models.ConvClassifier,
        "rnn": models.SequenceClassifier,
        "gru": models.SequenceClassifier,
    }
    return functools.partial(kinds[options.model], **keywords)


def _loss(model: Any) -> Callable:
    if hasattr(model, "loss"):
        return model.loss
    if hasattr(model, "classes"):
        return losses.softmax_cross_entropy_with_integer_labels
    return losses.squared_error


def _optimizer(options: Train, rows: int) -> optax.GradientTransformation:
    steps = options.epochs * -(-rows // min(options.batch_size, rows))
    rate = optax.cosine_decay_schedule(options.learning_rate, steps)
    tx = optim.guard(optax.adam(rate))
    if options.dtype == "float16":
        tx = optim.dynamic_loss_scale(tx)
    if options.fault_every is not None:
        from robustops.testing import inject_fault

        at = jnp.arange(options.fault_every, steps, options.fault_every)
        tx = optax.chain(inject_fault(jnp.nan, at=at), tx)
    return tx


def _same_run(options: Train, out: Path) -> None:
    """Raises a ValueError if the directory is of a run with other options, which left a checkpoint;
    else notes these."""
    mine = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(options).items()
        if k not in _FREE
    }
    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a directory")
    file = out / "options.json"
    begun = file.exists() and Checkpoints(out / "checkpoints").steps()
    try:
        theirs = dict(json.loads(file.read_text())) if begun else mine
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file}, which holds the options of the run in {out}, is damaged ({error}); choose "
            "another --out, or remove that file if the options are the same"
        ) from error
    differ = [k for k in mine if mine[k] != theirs.get(k)]
    if differ:
        told = ", ".join(f"{k} {theirs.get(k)}, now {mine[k]}" for k in differ)
        raise ValueError(
            f"{out} is of a run with other options ({told}); choose another --out, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(mine, indent=2) + "\n")


def _summary(history: History, data: datasets.Dataset, outputs: np.ndarray, out: Path) -> str:
    health = history.health
    lines = [
        f"{history.steps} steps: {int(health.skipped)} refused, {int(health.clipped)} clipped"
        + (f"; stopped by {history.stopped}" if history.stopped else "")
    ]
    x, y = data.test
    if y.shape == outputs.shape:
        left = np.mean((outputs - y) ** 2) / np.mean((y - data.train.inputs.mean(0)) ** 2)
        lines.append(f"test: {100 * left:.1f}% of the variance unexplained ({len(x)} rows)")
    else:
        right = (outputs.argmax(-1) == y).mean()
        lines.append(f"test: {100 * right:.1f}% right ({len(x)} rows)")
    lines.append(f"in {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return "\n".join(lines)
