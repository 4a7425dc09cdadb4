"""Time of `import robustops` over that of `import jax`: `python -m benchmarks.import_time`.

In each round a new interpreter imports jax, and then the rest of robustops, in processor time. The
median of (jax + rest) / jax must be at most 1.1.
"""

import statistics
import subprocess
import sys

ROUNDS = 15
CODE = """
from time import process_time
begin = process_time()
import jax
middle = process_time()
import robustops
print(middle - begin, process_time() - middle)
"""


def seconds() -> tuple[float, float]:
    """Processor time to import jax, and then the rest of robustops."""
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    jax, rest = map(float, done.stdout.split())
    return jax, rest


def main() -> None:
    """Measures and prints; fails if the import is too slow."""
    seconds()  # fills the caches of the file system
    found = [seconds() for _ in range(ROUNDS)]
    jax, rest = (statistics.median(column) for column in zip(*found, strict=True))
    ratios = sorted((jax + rest) / jax for jax, rest in found)
    ratio, quarter = statistics.median(ratios), ROUNDS // 4
    print(
        f"import jax {jax:.3f} s, the rest of robustops {rest:.3f} s: {ratio:.3f} times "
        f"(quartiles {ratios[quarter]:.3f}, {ratios[-quarter - 1]:.3f}; {ROUNDS} rounds)"
    )
    if ratio > 1.1:
        raise SystemExit("import robustops takes more than 1.1 times import jax")


if __name__ == "__main__":
    main()
