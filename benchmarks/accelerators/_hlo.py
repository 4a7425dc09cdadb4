"""Memory traffic and kernels, read off the text of a compiled HLO module.

Every top-level instruction of the entry computation that is not bookkeeping is one kernel, and
moves its operands and results. What stands in on-chip memory is not counted; a conditional costs
its dearest branch, a loop its known trip count times its body.
"""

import math
import re
from typing import NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(rf"\b({'|'.join(BITS)})\[([\d,]*)\](\{{[^}}]*\}})?")
_ON_CHIP = re.compile(r"S\([1-9]")  # memory space in the layout
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast copy-done after-all opt-barrier "
    "partition-id replica-id async-done async-update slice-done".split()
)


class Traffic(NamedTuple):
    """Kernels, and bytes that they read and write."""

    kernels: int
    bytes: int


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: list[str]
    attributes: str


def traffic(hlo: str) -> Traffic:
    """Kernels and bytes of a module."""
    computations = _computations(hlo)

    def of(name: str) -> Traffic:
        body = computations[name]
        shapes = {i.name: i.shape for i in body}
        costs = [_cost(i, shapes, of) for i in body if i.op not in _FREE]
        return Traffic(sum(c.kernels for c in costs), sum(c.bytes for c in costs))

    return of("ENTRY")


def _cost(i: _Instruction, shapes: dict[str, str], of) -> Traffic:
    if i.op == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
        names = (
            [name.strip().lstrip("%") for name in listed[1].split(",")]
            if listed
            else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.attributes)
        )
        return max((of(name) for name in names), key=lambda cost: cost.bytes)
    if i.op == "while":
        known = re.search(r"known_trip_count[^\d]*(\d+)", i.attributes)
        body = re.search(r"body=%?([\w.\-]+)", i.attributes)
        assert body is not None, i
        once, times = of(body[1]), int(known[1]) if known else 1
        return Traffic(once.kernels * times, once.bytes * times)
    called = re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", i.attributes)
    if i.op in ("call", "async-start") and called:
        return of(called[1])
    if i.op == "slice-start":  # (source), slice, token: it reads of the source as much
        source, part = (match[0] for match in list(_SHAPE.finditer(i.shape))[:2])
        moved = _bytes(_ON_CHIP.sub("", part))
        return Traffic(1, moved * (_bytes(source) > 0) + _bytes(part))
    # The result of a copy-start names its source again.
    out = i.shape.split("}, ")[0] + "}" if i.op == "copy-start" else i.shape
    read = sum(_bytes(shapes[name]) for name in set(i.operands) if name in shapes)
    return Traffic(1, _bytes(out) + read)


def _bytes(shape: str) -> int:
    return sum(
        math.prod(int(d) for d in dims.split(",") if d) * BITS[dtype] // 8
        for dtype, dims, layout in _SHAPE.findall(shape)
        if not _ON_CHIP.search(layout)
    )


def _computations(hlo: str) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    body: list[_Instruction] | None = None
    for line in hlo.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and "(" in line:
            name = "ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")
            body = found.setdefault(name, [])
        elif body is not None and " = " in line:
            body.append(_instruction(line))
    return found


def _instruction(line: str) -> _Instruction:
    head, rest = line.split(" = ", 1)
    if rest.startswith("("):
        shape, rest = _within(rest[1:])
        rest = rest.lstrip()
    else:
        shape, rest = rest.split(" ", 1)
    op, _, rest = rest.partition("(")
    operands, attributes = _within(rest)
    name = head.replace("ROOT", "").strip().lstrip("%")
    return _Instruction(name, shape, op.strip(), re.findall(r"%([\w.\-]+)", operands), attributes)


def _within(text: str) -> tuple[str, str]:
    """What stands before the bracket that closes an open one, and what follows it."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:at], text[at + 1 :]
    return text, ""
