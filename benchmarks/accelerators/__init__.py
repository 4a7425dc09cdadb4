"""The accelerators benchmark: what XLA's compilers for TPU and GPU make of ours and of the rest."""

from ._cli import main as main
from ._measure import run as run
from ._measure import verify as verify
