"""The survival benchmark: ways to lose a training run, on real data, under five arms."""

from ._arms import ARMS as ARMS
from ._cli import main as main
from ._runner import SCENARIOS as SCENARIOS
from ._runner import run as run
from ._runner import summary as summary
from ._runner import verify as verify
