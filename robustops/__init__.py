"""Numerically robust ops for JAX: NaN as a solved problem.

Ops stand at the top level; `robustops.losses`, `robustops.optim`, `robustops.models`,
`robustops.train` and `robustops.testing` are imported on their own. This module imports jax only.
"""

from importlib.metadata import version as _version

from .ops import log_softmax as log_softmax
from .ops import logsumexp as logsumexp
from .ops import safe_div as safe_div
from .ops import safe_exp as safe_exp
from .ops import safe_log as safe_log
from .ops import safe_log1p as safe_log1p
from .ops import safe_mean as safe_mean
from .ops import safe_norm as safe_norm
from .ops import safe_normalize as safe_normalize
from .ops import safe_pow as safe_pow
from .ops import safe_rsqrt as safe_rsqrt
from .ops import safe_sqrt as safe_sqrt
from .ops import safe_std as safe_std
from .ops import sigmoid as sigmoid
from .ops import softmax as softmax
from .ops import xlogy as xlogy

__version__ = _version("robustops")
