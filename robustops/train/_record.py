"""The flight recorder: what made a step be refused, in one file, and its replay."""

import dataclasses
import functools
import importlib
import inspect
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from robustops.program import Report, diagnose

from ._host import from_host, is_key, names, to_host
from ._source import Batch
from ._step import Metrics, TrainState, objective

FORMAT = 1
# Named by a record, these are imported without being asked for: they compute, and no more.
_TRUSTED = ("robustops.losses.", "robustops.models.", "optax.losses.", "jax.nn.", "jax.numpy.")
_TRUSTED_INSIDE = ("jax._src.nn.", "jax._src.numpy.")


class FlightRecorder:
    """Writes what made the guard refuse a step to a file, for `python -m robustops replay FILE`.

    A record holds parameters, module state with its random keys, optimizer state, batch, rows and
    step, and the names of the model and the loss. It holds no code (npz and JSON, no pickle).
    While steps are good nothing is copied, and the device never waits: up to 32 steps are sent
    before the first is looked at (128 MiB of batches are kept so long), and those sent after a
    refused one change nothing and are sent again. Unless the optimizer is `rollback` or keeps its
    guard inside of another transformation: then the host waits for each step before it sends the
    next. Once `max_files` are written, nothing is looked at any more.

    Args:
      directory: where; made if absent.
      build: what makes the model, so that `replay` can: a class or a function that can be imported,
        or a `functools.partial` of one with numbers, strings, dtypes, functions and tuples as
        keywords, e.g. `partial(Classifier, features=64, hidden=(32,))`. It is called as
        `build(rngs=nnx.Rngs(0))`, or without arguments if it takes none. None: `replay` then says
        how to diagnose by hand.
      max_files: records written in a run, the first ones, >= 1; as many are kept in the directory.
      max_bytes: size of a record in bytes; without optimizer state if it is larger, and not at all
        if it still is.

    Raises:
      ValueError: a number is out of range, or `build` cannot be named.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        build: Callable[..., nnx.Module] | None = None,
        max_files: int = 5,
        max_bytes: int = 2**30,
    ):
        for name, value in (("max_files", max_files), ("max_bytes", max_bytes)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
                raise ValueError(f"FlightRecorder: {name} must be an integer >= 1, got {value!r}")
        self.directory: Path = Path(directory)
        self.build: Callable[..., nnx.Module] | None = build
        self.max_files: int = max_files
        self.max_bytes: int = max_bytes
        self._spelled = None if build is None else spell(build)
        if isinstance(self._spelled, str):
            raise ValueError(f"FlightRecorder: build cannot be named in a record: {self._spelled}")
        self._written: set[str] = set()

    def check(self, model: nnx.Module) -> None:
        """Raises a ValueError unless there can be a directory and `build` makes such a model."""
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"FlightRecorder: {self.directory} is a file; name a directory")
        if self.build is None:
            return
        made = nnx.eval_shape(lambda: _call(self.build))  # pyright: ignore[reportArgumentType]
        mine, other = (
            [
                f"{n}: {x.dtype}{list(x.shape)}"
                for n, x in zip(names(s), jax.tree.leaves(s), strict=True)
            ]
            for s in (nnx.state(model), nnx.state(made))
        )
        if mine != other:
            first = next(iter(set(mine) ^ set(other)), "the order of the variables")
            raise ValueError(
                f"FlightRecorder: build makes another model than the one trained; they differ in "
                f"{first}"
            )

    @property
    def full(self) -> bool:
        """Whether as many records were written as may be."""
        return len(self._written) >= self.max_files

    def write(
        self,
        state: TrainState,
        batch: Batch,
        metrics: Metrics,
        loss: Callable,
        epoch: int,
        step: int,
    ) -> Path | None:
        """Writes a record unless the limits are reached; returns its path."""
        if self.full:
            return None
        file = self.directory / f"refused_{step:08d}.npz"
        spelled = spell(loss)
        facts = {
            "format": FORMAT,
            "step": step,
            "epoch": epoch,
            "rows": batch.rows,
            "build": self._spelled,
            "loss": None if isinstance(spelled, str) else spelled,
            "metrics": [float(x) for x in metrics],
        }
        arrays = to_host({**state._asdict(), "inputs": batch.inputs, "targets": batch.targets})
        size = sum(x.nbytes for x in arrays.values())
        if size > self.max_bytes:
            arrays = {k: v for k, v in arrays.items() if not k.startswith("opt_state.")}
            facts["note"] = f"without optimizer state: {size} bytes are more than max_bytes"
        size = sum(x.nbytes for x in arrays.values())
        if size > self.max_bytes:
            warnings.warn(
                f"fit: no record of refused step {step}: its {size} bytes are more than "
                f"FlightRecorder(max_bytes={self.max_bytes})",
                stacklevel=2,
            )
            return None
        self._written.add(file.name)  # in all processes, so that all look at the same steps
        if jax.process_index() != 0:
            return None
        self.directory.mkdir(parents=True, exist_ok=True)
        _save(file, arrays, facts)
        others = [p for p in self.directory.glob("refused_*.npz") if p.name not in self._written]
        others.sort(key=lambda p: p.stat().st_mtime)
        for old in others[: max(0, len(others) + len(self._written) - self.max_files)]:
            old.unlink()
        return file


@dataclasses.dataclass(frozen=True)
class Record:
    """A refused step, as `load_record` reads it.

    Attributes:
      file: where it was.
      step: its number, from 1, counting refused ones.
      epoch: from 1.
      loss: mean loss of the batch.
      grad_norm: norm of the gradient; NaN if it was not finite.
      scale: what the loss was multiplied by, 1 without `dynamic_loss_scale`.
      rows: which rows of the data are the batch; None if the data came in batches.
      arrays: everything by name: `params.*`, `rest.*` (module state, random keys as their bits),
        `opt_state.*` (as after the refusal, which changes counters only), `inputs`, `targets`. If
        this step made `rollback` return to its snapshot, parameters are those of the snapshot.
      build: how to make the model, by name; None if that is not known.
      loss_name: how to import the loss; None if it has no name that can be imported.
      note: what is unusual about the record; "" for nothing.
    """

    file: Path
    step: int
    epoch: int
    loss: float
    grad_norm: float
    scale: float
    rows: np.ndarray | None
    arrays: dict[str, np.ndarray]
    build: dict[str, Any] | None
    loss_name: dict[str, Any] | None
    note: str

    def diagnose(self, model: nnx.Module, loss: Callable) -> Report:
        """Runs `robustops.diagnose` on the refused step.

        Args:
          model: of the structure of the one trained, with any parameters; not changed.
          loss: the loss given to `fit`.

        Returns:
          A `Report`; `ok` if loss, gradient and module state were finite, so that the step was
          refused in the optimizer.

        Raises:
          ValueError: the model is of another structure.
        """
        model = nnx.clone(model)
        model.train()
        graphdef, *parts = nnx.split(model, nnx.Param, ...)
        like = dict(zip(("params", "rest"), parts, strict=True))
        mine = {k: v for k, v in self.arrays.items() if k.partition(".")[0] in like}
        state = from_host(like, mine, str(self.file))
        state = jax.tree.map(lambda x: x if is_key(x) else jnp.asarray(x), state)
        mean_loss = objective(graphdef, loss)
        scale = None if self.scale == 1 else jnp.float32(self.scale)

        def step_loss(params, rest, inputs, targets):
            return mean_loss(params, rest, inputs, targets, scale)

        inputs, targets = (jnp.asarray(self.arrays[k]) for k in ("inputs", "targets"))
        return diagnose(step_loss, state["params"], state["rest"], inputs, targets)


def load_record(file: str | os.PathLike[str]) -> Record:
    """Reads a file of `FlightRecorder`, without running any code that it names.

    Args:
      file: a record.

    Returns:
      A `Record`.

    Raises:
      ValueError: not a record, or a damaged one.
      FileNotFoundError: no such file.
    """
    file = Path(file)
    try:
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("it is no npz file")
        with np.load(file, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            arrays = {
                name: stored[name].view(np.dtype(jnp.dtype(dtype)))
                for name, dtype in facts["dtypes"].items()
            }
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"load_record: {file} is no record, or a damaged one ({error})") from error
    loss, grad_norm, _, _, scale = facts["metrics"]
    return Record(
        file=file,
        step=facts["step"],
        epoch=facts["epoch"],
        loss=loss,
        grad_norm=grad_norm,
        scale=scale,
        rows=arrays.pop("rows", None),
        arrays=arrays,
        build=facts["build"],
        loss_name=facts["loss"],
        note=facts.get("note", ""),
    )


def replay(file: str | os.PathLike[str], *, trust: bool = False) -> str:
    """Diagnoses the step in a record; what `python -m robustops replay FILE` prints.

    The model and the loss are imported by the names in the record. Those of robustops,
    `optax.losses` and `jax.nn` are known to compute and no more; others run only with `trust`.

    Args:
      file: a file of `FlightRecorder`.
      trust: import and call what the record names, wherever it comes from.

    Returns:
      The report as text or, where model or loss cannot be made, why, and how to go on by hand.

    Raises:
      ValueError: as for `load_record`.
    """
    return explain(file, trust)[0]


def explain(file: str | os.PathLike[str], trust: bool) -> tuple[str, bool]:
    """The text of `replay`, and whether the step was replayed."""
    record = load_record(file)
    head = (
        f"step {record.step} (epoch {record.epoch}) was refused: loss {record.loss:.6g}, "
        f"gradient norm {record.grad_norm:.6g}"
    )
    head += f", loss scale {record.scale:g}" if record.scale != 1 else ""
    head += f"\nnote: {record.note}" if record.note else ""
    made = []
    for what, spelled in (("model", record.build), ("loss", record.loss_name)):
        problem = f"the record does not name its {what}"
        try:
            if spelled is not None:
                made.append(unspell(spelled, trust))
                continue
        except (ImportError, AttributeError, TypeError, PermissionError) as error:
            problem = str(error)
        return f"{head}\n\nNot replayed: {problem}.\n{_by_hand(file)}", False
    report = record.diagnose(_call(made[0]), made[1])
    return f"{head}\n\n{report}{_afterword(record, report)}", True


def spell(fn: Any) -> Any:
    """A function, class or `partial` by name, as JSON; a string says why it cannot be done."""
    keywords: dict[str, Any] = {}
    if isinstance(fn, functools.partial):
        if fn.args:
            return "a partial with positional arguments; use keywords"
        keywords, fn = fn.keywords, fn.func
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not name or module == "__main__":
        return f"{fn!r} is not in a module that can be imported"
    if "<" in name:
        return f"{module}.{name} is a lambda or is made inside a function; define it in a module"
    spelled = {}
    for key, value in keywords.items():
        spelled[key] = _spell_value(value)
        if spelled[key] is None and value is not None:
            return f"the keyword {key}={value!r} is no number, string, dtype, function or tuple"
    return {"import": f"{module}:{name}", "keywords": spelled}


def _spell_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        parts = [_spell_value(v) for v in value]
        return None if None in parts else parts
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        named = spell(value) if callable(value) else None
        return named if isinstance(named, dict) else None


def unspell(spelled: Any, trust: bool) -> Any:
    """The inverse of `spell`.

    Raises:
      ImportError, AttributeError: it is not there any more.
      PermissionError: it is not one of the known functions, and there is no `trust`.
    """
    if isinstance(spelled, list):
        return tuple(unspell(v, trust) for v in spelled)
    if not isinstance(spelled, dict):
        return spelled
    if "dtype" in spelled:
        return jnp.dtype(spelled["dtype"])
    module, _, name = spelled["import"].partition(":")
    known = f"{module}.".startswith((*_TRUSTED, *_TRUSTED_INSIDE))
    if not known and not trust:
        raise PermissionError(
            f"{module}:{name} is the user's code, which a record from elsewhere must not run; if "
            "it is yours, pass --trust"
        )
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    # Else a path through a known module could lead to anything that it imports.
    if (found.__module__, found.__qualname__) != (module, name) and not trust:
        raise PermissionError(f"{module}:{name} is not what that module defines")
    keywords = {k: unspell(v, trust) for k, v in spelled["keywords"].items()}
    return functools.partial(found, **keywords) if keywords else found


def _call(build: Callable[..., nnx.Module]) -> nnx.Module:
    fn = build.func if isinstance(build, functools.partial) else build
    # The metaclass of nnx.Module hides the signature.
    parameters = inspect.signature(fn.__init__ if inspect.isclass(fn) else fn).parameters
    return build(rngs=nnx.Rngs(0)) if "rngs" in parameters else build()


def _by_hand(file: Any) -> str:
    return (
        "By hand, with the model (any parameters) and the loss as given to fit:\n\n"
        f"    record = robustops.train.load_record({str(file)!r})\n"
        "    print(record.diagnose(model, loss))"
    )


def _afterword(record: Record, report: Report) -> str:
    if report.ok and np.isfinite(record.grad_norm):
        return (
            "\n\nLoss, gradient and module state of this step are finite, so it was refused in the "
            "optimizer:\nits update, its state or the new parameters overflowed. Lower the learning"
            " rate, or cap the step:\nguard(inner, max_relative_update=0.02)."
        )
    if report.ok:
        return (
            "\n\nThe gradient that reached the guard was not finite, and made again it is: it was "
            "spoilt on the way to\nthe guard (a transformation before it, an injected fault, a "
            "device), or compiled code rounds differently."
        )
    at = report.origin
    if at is None or at.argument not in ("inputs", "targets") or record.rows is None:
        return ""
    bad = ~np.isfinite(record.arrays[at.argument].astype(np.float64))
    rows = record.rows[bad.reshape(len(bad), -1).any(axis=1)]
    shown = ", ".join(map(str, np.unique(rows)[:10].tolist()))
    return f"\n  rows of the data: {shown}" + (", ..." if len(np.unique(rows)) > 10 else "")


def _save(file: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Writes npz, whole or not at all; dtypes that numpy has no name for, as bfloat16, as bits."""
    rows = facts.pop("rows", None)
    if rows is not None:
        arrays = {**arrays, "rows": np.asarray(rows)}
    facts = {**facts, "dtypes": {name: x.dtype.name for name, x in arrays.items()}}
    plain = {
        k: x if x.dtype.isbuiltin == 1 else x.view(f"u{x.dtype.itemsize}")
        for k, x in arrays.items()
    }
    beside = file.with_suffix(".tmp")
    with beside.open("wb") as opened:
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        np.savez(opened, facts=text, **plain)  # pyright: ignore[reportArgumentType]
    os.replace(beside, file)
