"""The benchmark suites: `python -m benchmarks` from a checkout."""
