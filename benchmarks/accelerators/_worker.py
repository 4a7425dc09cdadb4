"""Compiles cases for one target, in a process whose environment was set before jax was imported.

`python -m benchmarks.accelerators._worker TARGET STATE CASE...` writes one JSON line per program to
stdout. What STATE holds of the same program, target and versions is not compiled again.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._cases import OURS, Program, programs
from ._hlo import traffic
from ._targets import TARGETS, Target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The compilers log from C++ straight to file descriptor 2."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _sharding(target: Target) -> NamedSharding:
    with _quiet():
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
    with _quiet():
        lowered = jitted.lower(*program.arguments)
    digest = hashlib.sha256(f"{key}\n{lowered.as_text()}".encode()).hexdigest()
    if digest in known:
        return known[digest]
    begin = time.perf_counter()
    with _quiet():
        compiled = lowered.compile()
    found = traffic(compiled.as_text())
    cost = compiled.cost_analysis() or {}
    return {
        "digest": digest,
        "kernels": found.kernels,
        "bytes": found.bytes,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": time.perf_counter() - begin,
        # The compiler's own estimate; it can be negative, and there is none for a GPU.
        "estimated_seconds": cost.get("optimal_seconds"),
    }


def main(argv: Sequence[str]) -> int:
    """Compiles what is asked for; returns the exit status."""
    name, state, *wanted = argv
    target, path = TARGETS[name], Path(state)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {row["digest"]: row for row in map(json.loads, lines)}
    versions = {w: metadata.version(w) for w in ("jax", *target.wheels)}
    sharding = _sharding(target)
    for case in wanted:
        for (mode, library), program in programs(case).items():
            row: dict[str, Any] = {
                "suite": "accelerators",
                "target": name,
                "case": case,
                "library": library,
                "mode": mode,
                "versions": versions,
                "error": None,
            }
            try:
                costs = _measured(program, sharding, known, f"{name} {versions}")
            except Exception as error:  # A program that the compiler refuses is a row.
                if library == OURS:
                    raise
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
                costs = {}
            if costs and costs["digest"] not in known:
                known[costs["digest"]] = costs
                with path.open("a") as file:
                    file.write(json.dumps(costs) + "\n")
            row |= {key: value for key, value in costs.items() if key != "digest"}
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
