"""The models' benchmark: what they reach on real data, in 16 bits, and under faults."""

from ._cli import main as main
from ._run import run as run
from ._run import summary as summary
from ._run import verify as verify
