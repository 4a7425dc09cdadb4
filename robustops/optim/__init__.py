"""Optax transformations that keep a run alive: refuse, clip, rescale, return, count, report."""

from robustops.optim._clip import ClipByGlobalNormState as ClipByGlobalNormState
from robustops.optim._clip import adaptive_grad_clip as adaptive_grad_clip
from robustops.optim._clip import clip_by_global_norm as clip_by_global_norm
from robustops.optim._decide import guarded_apply as guarded_apply
from robustops.optim._guard import GuardState as GuardState
from robustops.optim._guard import SkipNonfiniteState as SkipNonfiniteState
from robustops.optim._guard import guard as guard
from robustops.optim._guard import skip_nonfinite as skip_nonfinite
from robustops.optim._health import Health as Health
from robustops.optim._health import StuckError as StuckError
from robustops.optim._health import health as health
from robustops.optim._health import raise_if_stuck as raise_if_stuck
from robustops.optim._health import undo_if_refused as undo_if_refused
from robustops.optim._health import unless_refused as unless_refused
from robustops.optim._learned import ClipByPercentileState as ClipByPercentileState
from robustops.optim._learned import ClipByZscoreState as ClipByZscoreState
from robustops.optim._learned import NormStatistics as NormStatistics
from robustops.optim._learned import clip_by_percentile as clip_by_percentile
from robustops.optim._learned import clip_by_zscore as clip_by_zscore
from robustops.optim._rollback import RollbackState as RollbackState
from robustops.optim._rollback import rollback as rollback
from robustops.optim._scale import DynamicLossScaleState as DynamicLossScaleState
from robustops.optim._scale import dynamic_loss_scale as dynamic_loss_scale
