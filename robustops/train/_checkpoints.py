"""Checkpoints: asynchronous, atomic, with a checksum, the best and the last ones kept."""

import json
import math
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from ._host import from_host

FORMAT = 1
_PREFIX = "step_"


class Checkpoints:
    """A directory of checkpoints, written while training goes on and complete or absent.

    Given to `fit`, a run that was killed at any moment goes on from the last complete one, to the
    same parameters bit for bit. Parameters, module state, random keys, optimizer state, history
    and place in the data are saved (with Orbax); each array has a checksum. Two runs must not
    share a directory.

    Args:
      directory: where; made if absent.
      every: epochs from one checkpoint to the next, >= 1. The end of the run has one, too.
      every_steps: steps from one to the next within an epoch, for long epochs; None for none.
      keep_best: how many of those after an epoch with the lowest validation loss (without
        validation: training loss) are kept, >= 0.
      keep_last: how many of the last are kept, >= 1. With two, the one before the last is there if
        the last is damaged.

    Raises:
      ValueError: a number is out of range, or the directory is a file.
      ImportError: without `orbax-checkpoint`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 1,
        every_steps: int | None = None,
        keep_best: int = 1,
        keep_last: int = 2,
    ):
        for name, value, least in (
            ("every", every, 1),
            ("every_steps", 1 if every_steps is None else every_steps, 1),
            ("keep_best", keep_best, 0),
            ("keep_last", keep_last, 1),
        ):
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
                raise ValueError(f"Checkpoints: {name} must be an integer >= {least}, got {value}")
        self.directory: Path = Path(directory).absolute()
        if self.directory.is_file():
            raise ValueError(f"Checkpoints: {directory} is a file; name a directory")
        self.every: int = every
        self.every_steps: int | None = every_steps
        self.keep_best: int = keep_best
        self.keep_last: int = keep_last
        self._orbax = _import_orbax()

    def steps(self) -> list[int]:
        """The steps of the checkpoints in the directory, in order."""
        if not self.directory.is_dir():
            return []
        names = [p.name.removeprefix(_PREFIX) for p in self.directory.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def restore(self, model: nnx.Module, which: Literal["best", "last"] | int = "last") -> int:
        """Puts the parameters and the module state of a checkpoint into a model.

        Args:
          model: of the same structure as the one trained; updated in place.
          which: "last"; "best", by validation loss; or a step of `steps()`.

        Returns:
          The step.

        Raises:
          ValueError: no such checkpoint, or one that is damaged, or of another model.
        """
        steps = self.steps()
        if not isinstance(which, str):
            chosen = which if which in steps else None
        elif which == "best":
            scores = {s: self._facts(s)["score"] for s in steps}
            ranked = [s for s in steps if scores[s] is not None]
            chosen = min(ranked, key=lambda s: scores[s], default=None)
        elif which == "last":
            chosen = max(steps, default=None)
        else:
            raise ValueError(f"Checkpoints: which must be 'best', 'last' or a step, got {which!r}")
        if chosen is None:
            raise ValueError(
                f"Checkpoints: no checkpoint {which!r} in {self.directory}, which has "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        arrays, _ = self._load(chosen)
        like = dict(zip(("params", "rest"), nnx.split(model, nnx.Param, ...)[1:], strict=True))
        mine = {k: v for k, v in arrays.items() if k.partition(".")[0] in like}
        state = from_host(like, mine, str(self._path(chosen)))
        state = jax.tree.map(jax.numpy.asarray, state)
        nnx.update(model, state["params"], state["rest"])
        return chosen

    def _path(self, step: int) -> Path:
        return self.directory / f"{_PREFIX}{step}"

    def _load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and the facts of a checkpoint; a ValueError that names it if it is damaged."""
        facts, orbax = self._facts(step), self._orbax
        kinds = [
            (name, np.dtype(d), shape, checksum) for name, d, shape, checksum in facts["arrays"]
        ]
        like = {str(i): np.zeros(k[2], k[1]) for i, k in enumerate(kinds) if 0 not in k[2]}
        found = self._read(step, "state", orbax.args.StandardRestore(like))
        arrays = {}
        for i, (name, dtype, shape, checksum) in enumerate(kinds):
            arrays[name] = np.asarray(found.get(str(i), np.zeros(shape, dtype)))
            if _checksum(arrays[name]) != checksum:
                raise ValueError(f"checkpoint {self._path(step)} is damaged: checksum of {name}")
        return arrays, facts

    def _facts(self, step: int) -> dict[str, Any]:
        found = self._read(step, "facts", self._orbax.args.JsonRestore())
        body = found.get("body")
        if body is None or _checksum(body) != found.get("checksum"):
            raise ValueError(f"checkpoint {self._path(step)} is damaged: checksum of its facts")
        if body["format"] != FORMAT:
            raise ValueError(
                f"checkpoint {self._path(step)} has format {body['format']}, this version of "
                f"robustops reads {FORMAT}"
            )
        return body

    def _read(self, step: int, item: str, how: Any) -> dict[str, Any]:
        orbax = self._orbax
        try:
            with orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as reader:
                return reader.restore(self._path(step), orbax.args.Composite(**{item: how}))[item]
        # Whatever a damaged file makes Orbax raise, it is this checkpoint that is damaged, and the
        # one before it may be whole.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise ValueError(
                f"checkpoint {self._path(step)} is damaged or half-written ({reason})"
            ) from error


class Store:
    """The checkpoints of a run in progress: what is left from before, saving, cleaning."""

    def __init__(self, options: Checkpoints):
        self._options = options
        self.directory = options.directory
        self._orbax = options._orbax
        self._first = jax.process_index() == 0
        options.directory.mkdir(parents=True, exist_ok=True)
        if self._first:
            for stale in options.directory.iterdir():
                if stale.name.startswith(_PREFIX) and (
                    stale.name.endswith(".removed") or "orbax-checkpoint-tmp" in stale.name
                ):
                    shutil.rmtree(stale)
        self._writer: Any = None
        self._scores: dict[int, float | None] = {}

    def last(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The last checkpoint that is whole; damaged ones are named, and put aside.

        Raises:
          ValueError: there are checkpoints, and all are damaged.
        """
        steps = self._options.steps()
        found, damaged = None, []
        for step in reversed(steps):
            try:
                self._scores[step] = self._options._facts(step)["score"]
                found = found or self._options._load(step)
            except ValueError as error:
                self._scores.pop(step, None)
                damaged.append(step)
                if found is None:
                    before = [s for s in steps if s < step]
                    then = f"step {before[-1]} is tried" if before else "none is left before it"
                    warnings.warn(f"fit: {error}; {then}", stacklevel=2)
        if damaged and found is None:
            raise ValueError(
                f"fit: all checkpoints in {self._options.directory} are damaged (steps "
                f"{', '.join(map(str, damaged))}); remove them to start anew"
            )
        _agree(None if found is None else found[1]["step"])
        for step in damaged if self._first else ():
            path = self._options._path(step)
            aside = path.with_name(f"damaged_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        return found

    def save(self, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Starts to write a checkpoint of `facts["step"]`; waits for the one before, if need be."""
        orbax, step = self._orbax, facts["step"]
        if self._writer is None:
            self._writer = orbax.AsyncCheckpointer(orbax.CompositeCheckpointHandler())
        self._writer.wait_until_finished()
        self._clean()
        kinds = [(name, str(x.dtype), list(x.shape), _checksum(x)) for name, x in arrays.items()]
        body = json.loads(json.dumps({**facts, "format": FORMAT, "arrays": kinds}))
        # Orbax takes no empty arrays; their shape says it all.
        state = {str(i): x for i, x in enumerate(arrays.values()) if x.size}
        self._writer.save(
            self._options._path(step),
            orbax.args.Composite(
                state=orbax.args.StandardSave(state),
                facts=orbax.args.JsonSave({"body": body, "checksum": _checksum(body)}),
            ),
        )
        self._scores[step] = facts["score"]

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for the last checkpoint."""
        if self._writer is not None:
            self._writer.close()
            self._clean()

    def _clean(self) -> None:
        """Removes all but the best and the last, of those that are complete."""
        steps = sorted(self._scores)
        ranked = [s for s in steps if self._scores[s] is not None]
        ranked = [s for s in ranked if not math.isnan(self._scores[s])]  # pyright: ignore[reportArgumentType]
        best = sorted(ranked, key=lambda s: (self._scores[s], s))[: self._options.keep_best]
        for step in set(steps) - {*steps[-self._options.keep_last :], *best}:
            del self._scores[step]
            if self._first:
                # Renamed first: a kill in between leaves no half of a checkpoint under its name.
                path = self._options._path(step)
                gone = path.with_name(path.name + ".removed")
                path.rename(gone)
                shutil.rmtree(gone)


def _agree(step: int | None) -> None:
    """Raises unless all processes found the same checkpoint."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = -1 if step is None else step
    found = np.asarray(multihost_utils.process_allgather(np.int32(mine))).ravel()
    if (found != mine).any():
        raise ValueError(
            f"fit: the processes found different checkpoints (steps {found.tolist()}, -1 for none);"
            " the directory must be on a file system that all of them share"
        )


def _checksum(value: Any) -> int:
    """Of an array's bytes, or of a JSON value."""
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).tobytes())
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            "Checkpoints needs orbax-checkpoint: run `pip install 'robustops[train]'`"
        ) from error
    return orbax
