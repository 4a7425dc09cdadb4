"""What `diagnose` found, as data and as text."""

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Operand:
    """One operand of the equation at fault.

    Attributes:
      shape: its shape.
      dtype: its dtype, by name.
      min: smallest finite element; NaN if there is none.
      max: largest finite element; NaN if there is none.
      zero: how many elements are 0.
      inf: how many are infinite.
      nan: how many are NaN.
    """

    shape: tuple[int, ...]
    dtype: str
    min: float
    max: float
    zero: int
    inf: int
    nan: int

    def __str__(self) -> str:
        kind = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        counts = [f"{n} {word}" for word in ("zero", "inf", "nan") if (n := getattr(self, word))]
        spread = [] if np.isnan(self.min) else [f"min {self.min:.6g}", f"max {self.max:.6g}"]
        return ": ".join([kind, *filter(None, [", ".join([*spread, *counts])])])


@dataclasses.dataclass(frozen=True)
class Step:
    """One place that the value passed.

    Attributes:
      role: "before" the birth, "origin", or "after" it.
      primitive: the primitive there.
      file: file of the user's line; None if there is none.
      line: its number; None if there is none.
      source: its text.
      note: what is odd about the value there: a sum that lost its smaller term, a probability that
        was rounded to 1; "" for nothing.
    """

    role: str
    primitive: str
    file: str | None
    line: int | None
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the first bad value was born.

    Attributes:
      phase: "forward", "backward" (the value is finite, its derivative is not), or "input".
      primitive: the primitive that the user called, also if its derivative rule is at fault;
        None for the input.
      file: file of the user's line; None if there is none.
      line: its number.
      function: the function that it is in.
      source: its text.
      operands: the operands of that primitive; of the input, the argument.
      index: first bad element of the result; of the input, of the argument.
      iteration: which iteration of the loop around it, from 0; outermost first in a tuple if there
        are several loops; None if there is none. In a scan it is the index into its inputs.
      remedy: one sentence.
      argument: the argument at fault, in the phase "input"; else None.
    """

    phase: str
    primitive: str | None
    file: str | None
    line: int | None
    function: str | None
    source: str
    operands: tuple[Operand, ...]
    index: tuple[int, ...]
    iteration: int | tuple[int, ...] | None
    remedy: str
    argument: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What `diagnose` found; `print(report)` says it in words.

    Attributes:
      ok: whether output and gradient are finite.
      origin: where the first bad value was born; None if all is well, and if the failure does not
        come back when the equations are run one by one.
      path: how the value got there, and where it went: first the steps before the birth, then the
        birth, then those after it.
      consequences: what it reached: "output", "gradient of params['w']", ...
    """

    ok: bool
    origin: Origin | None = None
    path: tuple[Step, ...] = ()
    consequences: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as nested dictionaries, lists, strings and numbers."""
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        if self.ok:
            return "diagnose: everything is finite."
        reached = ", ".join(self.consequences)
        if self.origin is None:
            return (
                f"diagnose: not finite: {reached}\n"
                "  The failure does not come back when the equations run with every value kept:\n"
                "  look for a sum or product that the compiler orders differently."
            )
        at = self.origin
        lines = [f"diagnose: {_title(at)}", ""]
        if at.file is not None:
            lines += [f"  {_short(at.file)}:{at.line}, in {at.function}", f"      {at.source}", ""]
        for k, given in enumerate(at.operands):
            lines.append(f"  {'argument' if at.argument else f'operand {k}'}  {given}")
        lines += [f"  first bad element  {list(at.index)}"] if at.index else []
        for role, heading in (("before", "how it came to this"), ("after", "where it went")):
            steps = [s for s in self.path if s.role == role]
            if steps:
                lines += ["", f"  {heading}:", *(f"    {_step(s)}" for s in steps)]
        lines += ["", f"  not finite: {reached}", f"  remedy: {at.remedy}"]
        return "\n".join(lines)


def operand(value: Any) -> Operand:
    """Sum up an array."""
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.bool_):
        return Operand(tuple(value.shape), str(dtype), np.nan, np.nan, 0, 0, 0)
    array = np.asarray(value)
    wide = array.astype(complex if np.iscomplexobj(array) else float)
    finite = np.abs(wide[np.isfinite(wide)]) if np.iscomplexobj(wide) else wide[np.isfinite(wide)]
    return Operand(
        shape=tuple(array.shape),
        dtype=str(dtype),
        min=float(finite.min()) if finite.size else np.nan,
        max=float(finite.max()) if finite.size else np.nan,
        zero=int((wide == 0).sum()),
        inf=int(np.isinf(wide).sum()),
        nan=int(np.isnan(wide).sum()),
    )


def _title(at: Origin) -> str:
    if at.phase == "input":
        return f"the input is at fault: {at.argument}"
    where = ""
    if at.iteration is not None:
        where = f", iteration {at.iteration}"
    what = "its derivative is not finite" if at.phase == "backward" else "its result is not finite"
    return f"{at.primitive} ({at.phase}{where}): {what}"


def _step(step: Step) -> str:
    place = f"{_short(step.file)}:{step.line}" if step.file else "?"
    return f"{place}  {step.primitive}" + (f": {step.note}" if step.note else f"  {step.source}")


def _short(file: str | None) -> str:
    if file is None:
        return "?"
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
