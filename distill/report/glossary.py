"""The terms of an analysis page, each in a sentence or two, and where their definitions are from."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "weights θ₀, update Δ": "θ₀ are the weights training started from, Δ is what it added to them. Tied tensors "
    "count once.",
    "bf16 and fp32": "bf16: both models are rounded to bfloat16 (8 bits of precision) and subtracted there, as in a "
    "released checkpoint. fp32: as the optimizer sees the weights, if they were stored that finely.",
    "sparsity": "The share of weights that moved by at most a tolerance; 1e-5 unless another is named. 0 means "
    "bit-identical.",
    "relative norm": "‖Δ‖/‖θ₀‖: how long the update is beside the weights. Between 3e-4 and 1.5e-3 sparsity can be "
    "set beside published tables; longer updates tend to 0 % and shorter ones to 100 %, whatever the method.",
    "energy": "ΣΔ², the squared length of the update. The share of a part says how much of all movement happened "
    "there.",
    "top energy": "The share of the energy in the 0.1, 1 or 5 % of the weights that moved most.",
    "null": "What rounding alone does: each tensor gets a random update without structure, of the same size as the "
    "real one, stored in the same format. It is drawn several times; shown are the mean and the standard deviation "
    "of the draws (±). Only what differs from the null is a finding about training.",
    "difference and z": "Observed minus the null's mean, and the same in standard deviations of the draws. As few "
    "draws of a large model differ very little, z is often huge for a difference that does not matter: read both.",
    "clear, negligible": "Clear: outside the range in which one more draw of the null falls with 95 % probability. "
    "Negligible: less than one percentage point of a share (less near 0 and 100 %), or 5 % of another quantity.",
    "singular values σ": "A matrix stretches each of its main directions by one of them; σ₁ is the largest. They "
    "tell how many directions an update really uses.",
    "rank": "The number of singular values above 1e-6, 1e-5 or 1e-4 of σ₁, as a share of the smaller side of the "
    "matrix.",
    "stable rank": "‖Δ‖²/σ₁²: 1 if a single direction holds all energy, large if many hold equally much.",
    "entropy rank": "exp of the entropy of σ/Σσ: the number of equally strong directions that would be as spread.",
    "spectral energy": "The share of the energy in the k strongest directions of the update.",
    "principal directions": "The top ρ of the source matrix' singular directions U and V: what the source does most "
    "strongly. Left are output directions, right are input directions.",
    "projection": "The share of the update's energy that lies inside the source's principal directions: on the left, "
    "on the right, or on both sides at once (joint).",
    "rotation": "How far the principal directions turned from the source to the trained matrix: 0 not at all, 1 at "
    "right angles (mean √(1−cos²θ)).",
    "spectral drift": "‖σ(W′)−σ(W)‖/‖σ(W)‖: how far the singular values themselves changed, also per length of the "
    "update.",
    "principal and small weights": "Principal: the ρ of the weights that are largest in the source's low-rank part. "
    "Small: the ρ with the smallest |θ₀|.",
    "coverage, enrichment": "Coverage: the share of the moved weights that are principal (or small). Enrichment: "
    "coverage over ρ, 1 when moving has nothing to do with it.",
    "overlap, Jaccard": "For two runs from one source: the share of one run's moved weights that the other moved "
    "too; Jaccard is moved in both over moved in either. Over chance: both, divided by what their numbers give by "
    "chance.",
    "median, mean": "Of matrices, each counting once, whatever its size.",
}
"""Term → explanation, in the order in which a reader meets them."""

SOURCES: dict[str, str] = {
    "2606.13657": "update sparsity, groups, spectral measures, subnetworks, in on-policy distillation",
    "2505.11711": "sparse updates in reinforcement learning",
    "2511.08567": "updates off the principal directions: masks, projections, rotation and drift",
    "2606.07082": "how early the subspaces of an update settle",
}
"""arXiv id → what is taken from it. The rounding null is this project's."""
