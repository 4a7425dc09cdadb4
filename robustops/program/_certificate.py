"""What `certify` found, as data and as text."""

import dataclasses
import math
from typing import Any

from ._report import _plain, _short


@dataclasses.dataclass(frozen=True)
class Bound:
    """Between which numbers an array lies.

    Attributes:
      name: what it is: "operand 0", "output", "gradient of params['w']".
      shape: its shape.
      dtype: its dtype, by name.
      low: lowest number; -inf if it may be infinite.
      high: highest number; inf if it may be infinite.
      nan: whether it may be NaN.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nan: bool

    def __str__(self) -> str:
        kind = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return f"{self.name}  {kind}: {self.low:.6g} to {self.high:.6g}{', or NaN' * self.nan}"


@dataclasses.dataclass(frozen=True)
class Unproved:
    """An operation that may make a NaN or inf.

    Attributes:
      phase: "forward", or "backward": then it is its derivative that may.
      primitive: the primitive that the user called.
      file: file of the user's line; None if there is none.
      line: its number.
      function: the function that it is in.
      source: its text.
      operands: what its operands may be.
      reason: what could not be excluded.
      remedy: one sentence.
    """

    phase: str
    primitive: str
    file: str | None
    line: int | None
    function: str | None
    source: str
    operands: tuple[Bound, ...]
    reason: str
    remedy: str

    def __str__(self) -> str:
        lines = []
        if self.file is not None:
            lines += [
                f"  {_short(self.file)}:{self.line}, in {self.function}",
                f"      {self.source}",
            ]
        lines += [f"    {self.primitive} ({self.phase}): {self.reason}"]
        lines += [f"    {operand}" for operand in self.operands]
        return "\n".join([*lines, f"    remedy: {self.remedy}"])


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `certify` could prove; `print(certificate)` says it in words.

    Attributes:
      ok: whether outputs and gradients are proved finite.
      unproved: the operations that may make a NaN or inf that arrives there.
      bounds: between which numbers each output and gradient lies.
    """

    ok: bool
    unproved: tuple[Unproved, ...] = ()
    bounds: tuple[Bound, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The certificate as nested dictionaries, lists, strings and numbers."""
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        if self.ok:
            lines = ["certify: proved finite for all inputs in the ranges", ""]
            return "\n".join([*lines, *(f"  {b}" for b in self.bounds)])
        bad = [b.name for b in self.bounds if b.nan or math.isinf(b.low) or math.isinf(b.high)]
        n = len(self.unproved)
        title = f"certify: not proved: {n} operation{'s'[: n != 1]} may make a NaN or inf"
        parts = [str(u) for u in self.unproved]
        return "\n\n".join([title, *parts, f"  may be not finite: {', '.join(bad)}"])
