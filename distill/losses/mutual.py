"""What networks that are trained together learn from each other: targets and pauses, from logits.

Shapes: ``n`` positions, ``k`` networks, ``V`` vocabulary (of images: classes). Nothing here carries a gradient to the
network that teaches: callers give what others say without a graph.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distill.losses.divergence import kl, log_probs

Ensemble = Literal["mean", "min_logit", "naive"]
ENSEMBLES = ("mean", "min_logit", "naive")


def mean_kl(own: Tensor, others: Tensor) -> Tensor:
    """Mean over the others of KL(p_j‖p_i), in nats: ``[n, V]`` and ``[n, k - 1, V]`` log-probabilities → ``[n]``.

    Source: deep mutual learning, arXiv 1706.00384 (of two networks the plain KL).
    """
    return kl(others, own[:, None]).mean(-1)


def ensemble(logits: Tensor, targets: Tensor, how: Ensemble) -> Tensor:
    """One target for all networks: logits ``[n, k, V]`` of all of them and labels ``[n]`` → logits ``[n, V]``.

    Source: KDCL (Guo et al., CVPR 2020). ``naive``: the network with the smallest cross-entropy at this position (the
    first of equals); ``min_logit``: with each network's logits relative to that of the label, the smallest of each
    class, so that the label's share is at least the largest that any network gives. ``mean`` of logits is ours: the
    paper's KDCL-Linear weighs them by a small optimisation in every step, its KDCL-General by a validation set.

    Raises:
        ValueError: there is no such ensemble.
    """
    labels = targets[:, None, None].expand(-1, logits.shape[1], 1)
    if how == "mean":
        return logits.mean(1)
    if how == "min_logit":
        return (logits - logits.gather(-1, labels)).amin(1)
    if how == "naive":
        best = log_probs(logits).gather(-1, labels)[..., 0].argmax(1)
        return logits[torch.arange(len(logits), device=logits.device), best]
    raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, but is {how!r}")


def paused(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Where the teacher does not learn: log-probabilities ``[n, V]`` of both, labels ``[n]`` → bool ``[n]``.

    Source: SwitOKD (Qian et al., ECCV 2022): with e = ‖p - y‖₁ of each, it pauses while the gap ‖p_S - p_T‖₁ is above
    δ = e_S - exp(-e_T / (e_S + e_T))·e_T. In our formulation that is decided at each position, so that it does not
    depend on how a batch is cut; where both are sure of the label nobody pauses.
    """
    ours, theirs = student.exp(), teacher.exp()
    # ‖p - y‖₁ = 1 - p_y + Σ of the other classes = 2·(1 - p_y).
    far, near = (2 * (1 - p.gather(-1, targets[:, None])[:, 0]) for p in (ours, theirs))
    share = near / (far + near).clamp(min=torch.finfo(far.dtype).tiny)
    return (ours - theirs).abs().sum(-1) > far - torch.exp(-share) * near
