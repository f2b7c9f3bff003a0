"""Engine and learner compute the same policy with other kernels: what to do about it.

Tokens are sampled from the engine's policy and trained on as if they were samples of the learner's. A pure
function of the log-probabilities of both; this module knows nothing of engines or models.
"""

import torch
from torch import Tensor


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor, cap: float
) -> Tensor:
    """Truncated importance weights min(learner's probability / engine's, cap), zero outside of the mask.

    All tensors `[N, S]`, the result as old_logprobs and without a gradient; `cap` > 0, usually 2. Weights
    are not negative and the surrogate is linear in the advantages, so weighting its tokens is the same as
    multiplying the advantages by the weights: after whitening, and not the critic's returns. In expectation
    over the engine's samples, and but for the cap, the gradient is then the one of the learner's own samples.
    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
    (truncated importance sampling).
    """
    weights = torch.zeros_like(old_logprobs)
    ratios = (old_logprobs[loss_mask] - rollout_logprobs[loss_mask]).exp()
    weights[loss_mask] = ratios.clamp(max=cap)
    return weights
