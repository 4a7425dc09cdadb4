"""`python -m benchmarks [SUITE] [options]`: runs a benchmark suite, `survival` if none is named."""

import sys
from collections.abc import Callable, Sequence

from benchmarks import survival

SUITES: dict[str, Callable[[Sequence[str]], int]] = {"survival": survival.main}


def main(argv: Sequence[str]) -> int:
    """Runs one suite, or all of them with the same options; returns the exit status."""
    name, rest = "survival", list(argv)
    if rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
    if name == "all":
        return max(suite(rest) for suite in SUITES.values())
    if name not in SUITES:
        valid = ", ".join([*SUITES, "all"])
        print(
            f"python -m benchmarks: unknown suite {name!r}; choose from: {valid}", file=sys.stderr
        )
        return 2
    return SUITES[name](rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
