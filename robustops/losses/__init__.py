"""Losses per example: total, accurate, with the names and signatures of `optax.losses`.

`import robustops.losses as losses` stands in for `import optax.losses as losses`. Reduce with
`robustops.safe_mean(loss, where=mask)`; only `mean_squared_error` is a mean already.
"""

from ._binary import binary_cross_entropy as binary_cross_entropy
from ._binary import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from ._cross_entropy import categorical_cross_entropy as categorical_cross_entropy
from ._cross_entropy import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from ._cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from ._cross_entropy import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from ._divergence import convex_kl_divergence as convex_kl_divergence
from ._divergence import generalized_kl_divergence as generalized_kl_divergence
from ._divergence import kl_divergence as kl_divergence
from ._divergence import kl_divergence_with_log_targets as kl_divergence_with_log_targets
from ._fenchel_young import make_fenchel_young_loss as make_fenchel_young_loss
from ._focal import poly_loss_cross_entropy as poly_loss_cross_entropy
from ._focal import sigmoid_focal_loss as sigmoid_focal_loss
from ._focal import softmax_focal_loss as softmax_focal_loss
from ._general import general_robust_loss as general_robust_loss
from ._likelihood import gaussian_kl as gaussian_kl
from ._likelihood import gaussian_nll as gaussian_nll
from ._likelihood import poisson_nll as poisson_nll
from ._margin import hinge_loss as hinge_loss
from ._margin import multiclass_hinge_loss as multiclass_hinge_loss
from ._margin import multiclass_perceptron_loss as multiclass_perceptron_loss
from ._margin import multiclass_sparsemax_loss as multiclass_sparsemax_loss
from ._margin import perceptron_loss as perceptron_loss
from ._margin import sparsemax_loss as sparsemax_loss
from ._ranking import ranking_softmax_loss as ranking_softmax_loss
from ._ranking import smooth_labels as smooth_labels
from ._regression import huber_loss as huber_loss
from ._regression import l2_loss as l2_loss
from ._regression import log1p_squared_error as log1p_squared_error
from ._regression import log_cosh as log_cosh
from ._regression import mean_squared_error as mean_squared_error
from ._regression import squared_error as squared_error
from ._regression import squared_log_error as squared_log_error
from ._robust import cauchy as cauchy
from ._robust import charbonnier as charbonnier
from ._robust import geman_mcclure as geman_mcclure
from ._robust import welsch as welsch
from ._segmentation import binary_dice_loss as binary_dice_loss
from ._segmentation import dice_loss as dice_loss
from ._segmentation import multiclass_generalized_dice_loss as multiclass_generalized_dice_loss
from ._sequence import ctc_loss as ctc_loss
from ._sequence import ctc_loss_with_forward_probs as ctc_loss_with_forward_probs
from ._similarity import cosine_distance as cosine_distance
from ._similarity import cosine_similarity as cosine_similarity
from ._similarity import ntxent as ntxent
from ._similarity import triplet_margin_loss as triplet_margin_loss
