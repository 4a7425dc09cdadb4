"""Time of `import robustops` over that of `import jax`: `python -m benchmarks.import_time`.

Processor time, in new interpreters, in turn; the median over the rounds of the ratio, which must be <= 1.1.
"""

import statistics
import subprocess
import sys

ROUNDS = 11
CODE = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"


def seconds(module: str) -> float:
    """Processor time that a new interpreter takes to import the module."""
    command = [sys.executable, "-c", CODE.format(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measures and prints; raises if the import is too slow."""
    for module in ("jax", "robustops"):  # fills the caches of the file system
        seconds(module)
    pairs = [(seconds("jax"), seconds("robustops")) for _ in range(ROUNDS)]
    jax, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(ours / jax for jax, ours in pairs)
    ratio, quarter = statistics.median(ratios), ROUNDS // 4
    print(
        f"import jax {jax:.3f} s, import robustops {ours:.3f} s: {ratio:.3f} times "
        f"(quartiles {ratios[quarter]:.3f}, {ratios[-quarter - 1]:.3f}; {ROUNDS} rounds)"
    )
    if ratio > 1.1:
        raise SystemExit("import robustops takes more than 1.1 times import jax")


if __name__ == "__main__":
    main()
