"""Optax transformations that keep a run alive: refuse, clip, count, report."""

from robustops.optim._clip import ClipByGlobalNormState as ClipByGlobalNormState
from robustops.optim._clip import adaptive_grad_clip as adaptive_grad_clip
from robustops.optim._clip import clip_by_global_norm as clip_by_global_norm
from robustops.optim._guard import GuardState as GuardState
from robustops.optim._guard import SkipNonfiniteState as SkipNonfiniteState
from robustops.optim._guard import guard as guard
from robustops.optim._guard import skip_nonfinite as skip_nonfinite
from robustops.optim._health import Health as Health
from robustops.optim._health import health as health
