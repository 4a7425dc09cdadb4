"""Losses per example: total, accurate, with the names and signatures of `optax.losses`.

`import robustops.losses as losses` stands in for `import optax.losses as losses`. Reduce with
`robustops.safe_mean(loss, where=mask)`; only `mean_squared_error` is a mean already.
"""

from ._classification import binary_cross_entropy as binary_cross_entropy
from ._classification import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from ._classification import softmax_cross_entropy as softmax_cross_entropy
from ._classification import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from ._regression import geman_mcclure as geman_mcclure
from ._regression import huber_loss as huber_loss
from ._regression import log_cosh as log_cosh
from ._regression import mean_squared_error as mean_squared_error
from ._regression import squared_error as squared_error
