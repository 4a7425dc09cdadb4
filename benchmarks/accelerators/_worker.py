"""Compiles cases for one target, in a process whose environment was set before jax was imported.

`python -m benchmarks.accelerators._worker TARGET STATE` reads cases from stdin, one a line, and
writes the rows of each as one line of JSON. What STATE holds of the same program, target, versions
and way of counting is not compiled again.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._command import quiet
from .._rows import said
from . import _hlo
from ._cases import Program, programs
from ._targets import TARGETS, Target


def _sharding(target: Target) -> NamedSharding:
    with quiet():
        jax.devices()
        described = topologies.get_topology_desc(
            platform=target.platform, topology_name=target.topology, **target.options
        )
    return NamedSharding(Mesh(np.array(described.devices[:1]), ("x",)), PartitionSpec())


def _measured(program: Program, sharding: NamedSharding, known: dict, key: str) -> dict[str, Any]:
    jitted = jax.jit(
        program.fn,
        in_shardings=sharding,
        out_shardings=sharding,
        donate_argnums=program.donated,
    )
    with quiet():
        lowered = jitted.lower(*program.arguments)
    digest = hashlib.sha256(f"{key}\n{lowered.as_text()}".encode()).hexdigest()
    if digest in known:
        return known[digest]
    begin = time.perf_counter()
    with quiet():
        compiled = lowered.compile()
    text, memory, cost = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    assert text is not None
    assert memory is not None
    found = _hlo.traffic(text)
    return {
        "digest": digest,
        "kernels": found.kernels,
        "bytes": found.bytes,
        "temporaries": memory.temp_size_in_bytes,
        "compile_seconds": time.perf_counter() - begin,
        # The compiler's own estimate; it can be negative, and there is none for a GPU.
        "estimated_seconds": (cost or {}).get("optimal_seconds"),
    }


def main(argv: Sequence[str]) -> int:
    """Compiles the cases that stdin names, one a line; returns the exit status."""
    name, state = argv
    target, path = TARGETS[name], Path(state)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {row["digest"]: row for row in map(json.loads, lines)}
    versions = {w: metadata.version(w) for w in ("jax", *target.wheels)}
    reader = hashlib.sha256(Path(_hlo.__file__).read_bytes()).hexdigest()
    sharding = _sharding(target)
    for line in sys.stdin:
        rows = []
        for (mode, library), program in programs(line.rstrip("\n")).items():
            row: dict[str, Any] = {"library": library, "mode": mode, "error": None, "device": name}
            try:
                costs = _measured(program, sharding, known, f"{name} {versions} {reader}")
            except Exception as error:  # A program that the compiler refuses is a row.
                row["error"] = said(error)
                costs = {}
            if costs and costs["digest"] not in known:
                known[costs["digest"]] = costs
                with path.open("a") as file:
                    file.write(json.dumps(costs) + "\n")
            row |= {key: value for key, value in costs.items() if key != "digest"}
            rows.append(row | {"versions": versions})
        print(json.dumps(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
