"""Policy gradient on the sampled tokens alone: no sum over the vocabulary, hence a noisier gradient.

Source: Thinking Machines' on-policy distillation; the estimator is "k1" of Schulman's note on approximating KL. For
y ~ p_sampler the expected gradient is that of the full reverse KL(p_S‖p_T) at one position.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from distill.errors import UserError


class SampledToken(NamedTuple):
    """``[...]`` each: the loss, log p_S - log p_T (detached), and 1 where the ratio was clipped."""

    value: Tensor
    k1: Tensor
    clipped: Tensor


def sampled_token(
    student: Tensor, teacher: Tensor, sampler: Tensor | None, ratio_clip: float | None = None
) -> SampledToken:
    """-ratio·A with A = -(log p_S(y) - log p_T(y)), detached, and ratio = p_S(y) / p_sampler(y), with gradient.

    The arguments are log-probabilities ``[...]`` of the sampled tokens y; ``sampler`` those of the policy that sampled
    them. The ratio is 1 on fresh rollouts and corrects for stale or reused ones. ``ratio_clip`` c limits it to
    [1/c, c]; a clipped token has no gradient. Raises ValueError when there is no sampler or the shapes differ.
    """
    if sampler is None:
        allowed = "given for sampled_token, which only fits tokens that a policy sampled (all rollouts on_policy)"
        raise UserError("sampler_logprobs", None, allowed)
    if not student.shape == teacher.shape == sampler.shape:
        shapes = [list(part.shape) for part in (student, teacher, sampler)]
        raise ValueError(
            "student, teacher and sampler must have the same shape [...], but are {}, {} and {}.".format(*shapes)
        )
    if ratio_clip is not None and not ratio_clip > 1:
        raise UserError("ratio_clip", ratio_clip, "null or above 1")
    k1 = (student - teacher).detach()
    log_ratio = student - sampler
    # In log space: exp of a large log-ratio is inf, and its gradient under a clamp 0·inf.
    limit = math.inf if ratio_clip is None else math.log(ratio_clip)
    clipped = (log_ratio.detach().abs() > limit).to(k1.dtype)
    return SampledToken(log_ratio.clamp(-limit, limit).exp() * k1, k1, clipped)
