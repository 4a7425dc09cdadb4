"""The accuracy benchmark: errors in ulps against mpmath, ours and the peers'."""

from ._cli import main as main
from ._exhaustive import kept_rows as kept_rows
from ._exhaustive import run_exhaustive as run_exhaustive
from ._exhaustive import verify_exhaustive as verify_exhaustive
from ._measure import run as run
from ._measure import summary as summary
from ._measure import verify as verify
