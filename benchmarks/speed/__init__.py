"""The speed benchmark: time over that of a copy, ours, the usual forms' and the peers'."""

from ._cli import main as main
from ._measure import run as run
from ._measure import summary as summary
from ._measure import verify as verify
