"""Numerically robust ops for JAX: NaN as a solved problem.

Ops stand at the top level; `robustops.losses`, `robustops.optim`, `robustops.models`,
`robustops.train` and `robustops.testing` are imported on their own. This module imports jax only.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING as TYPE_CHECKING

from .ops import cosine_similarity as cosine_similarity
from .ops import entr as entr
from .ops import global_norm as global_norm
from .ops import kl_div as kl_div
from .ops import log1mexp as log1mexp
from .ops import log_cosh as log_cosh
from .ops import log_sigmoid as log_sigmoid
from .ops import log_softmax as log_softmax
from .ops import logaddexp as logaddexp
from .ops import logcumsumexp as logcumsumexp
from .ops import logmeanexp as logmeanexp
from .ops import logsubexp as logsubexp
from .ops import logsumexp as logsumexp
from .ops import pairwise_distance as pairwise_distance
from .ops import rel_entr as rel_entr
from .ops import safe_arccos as safe_arccos
from .ops import safe_arccosh as safe_arccosh
from .ops import safe_arcsin as safe_arcsin
from .ops import safe_arctan2 as safe_arctan2
from .ops import safe_arctanh as safe_arctanh
from .ops import safe_cbrt as safe_cbrt
from .ops import safe_div as safe_div
from .ops import safe_exp as safe_exp
from .ops import safe_expm1 as safe_expm1
from .ops import safe_hypot as safe_hypot
from .ops import safe_log as safe_log
from .ops import safe_log1p as safe_log1p
from .ops import safe_log2 as safe_log2
from .ops import safe_log10 as safe_log10
from .ops import safe_logit as safe_logit
from .ops import safe_mean as safe_mean
from .ops import safe_norm as safe_norm
from .ops import safe_normalize as safe_normalize
from .ops import safe_pow as safe_pow
from .ops import safe_reciprocal as safe_reciprocal
from .ops import safe_rsqrt as safe_rsqrt
from .ops import safe_sqrt as safe_sqrt
from .ops import safe_square as safe_square
from .ops import safe_std as safe_std
from .ops import safe_var as safe_var
from .ops import sigmoid as sigmoid
from .ops import softmax as softmax
from .ops import softplus as softplus
from .ops import softplus_inverse as softplus_inverse
from .ops import xlog1py as xlog1py
from .ops import xlogy as xlogy

if TYPE_CHECKING:
    from .program import Range as Range
    from .program import certify as certify
    from .program import check_finite as check_finite
    from .program import diagnose as diagnose
    from .program import robustify as robustify
else:
    from ._lazy import __dir__ as __dir__
    from ._lazy import __getattr__ as __getattr__

__version__ = _version("robustops")
