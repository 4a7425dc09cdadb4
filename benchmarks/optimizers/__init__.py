"""The optimizer benchmark: what the guards cost beside bare Adam, and what they do about faults."""

from ._cli import main as main
from ._run import run as run
from ._run import summary as summary
from ._run import verify as verify
