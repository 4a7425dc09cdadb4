"""The ops: total functions with total derivatives. Importing this package fills `OPS`."""

from ._elementwise import safe_div as safe_div
from ._elementwise import safe_exp as safe_exp
from ._elementwise import safe_log as safe_log
from ._elementwise import safe_log1p as safe_log1p
from ._elementwise import safe_pow as safe_pow
from ._elementwise import safe_rsqrt as safe_rsqrt
from ._elementwise import safe_sqrt as safe_sqrt
from ._moments import safe_mean as safe_mean
from ._moments import safe_std as safe_std
from ._norms import safe_norm as safe_norm
from ._norms import safe_normalize as safe_normalize
from ._softmax import log_softmax as log_softmax
from ._softmax import logsumexp as logsumexp
from ._softmax import softmax as softmax
from ._special import sigmoid as sigmoid
from ._special import xlogy as xlogy
