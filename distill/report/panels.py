"""What the W&B dashboard shows: sections of panels over the keys that runs record. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from distill.analysis.sparsity import LABELS


@dataclass(frozen=True)
class Lines:
    """A chart over steps of ``keys``, or of every key that begins with ``prefix``."""

    title: str
    keys: tuple[str, ...] = ()
    prefix: str | None = None


@dataclass(frozen=True)
class Media:
    """Pictures, histograms or tables, the newest first."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    name: str
    panels: tuple[Lines | Media, ...]


def _tolerances(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{label}" for label in LABELS)


def _one(*keys: str) -> tuple[Lines, ...]:
    """A chart for each key, which is also its title."""
    return tuple(Lines(key, (key,)) for key in keys)


def _beside_null(precision: str, label: str) -> Lines:
    shown = "exactly 0" if label == "0" else f"|Δ| ≤ {label}"
    return Lines(f"{precision}, {shown}", (f"sparsity/{precision}/{label}", f"sparsity_null/{precision}/{label}"))


def _spectral(measure: str) -> Lines:
    keys = tuple(f"geometry/bf16/{kind}{measure}.median" for kind in ("", "null_"))
    return Lines(f"{measure}, median over matrices, and its null", keys)


HEADLINE = (
    _beside_null("bf16", "1e-5"),
    Lines("fp32, |Δ| ≤ 1e-5", ("sparsity/fp32/1e-5", "sparsity_null/fp32/1e-5")),
    Lines("Relative norm of the update", ("update/relative_norm", "update/relative_norm_fp32")),
)
"""Where a sparsity is comparable only at a like relative norm, and means something only beside its null."""

SECTIONS = (
    Section(
        "Training", _one("loss", "grad_norm", "lr", "reverse_kl", "forward_kl", "ce", "student_entropy", "positions")
    ),
    Section(
        "Evaluation",
        (
            *_one("eval/accuracy", "eval/reverse_kl", "eval/forward_kl", "eval/perplexity", "eval/length"),
            *_one("eval/stopped", "eval/miou"),
        ),
    ),
    Section(
        "Sparsity by precision and tolerance",
        (Lines("bf16", _tolerances("sparsity/bf16")), Lines("fp32", _tolerances("sparsity/fp32"))),
    ),
    Section("Sparsity and its rounding null", (*HEADLINE, _beside_null("bf16", "0"), _beside_null("fp32", "1e-6"))),
    Section(
        "Groups",
        (
            Lines("Sparsity", prefix="sparsity/group/"),
            Lines("Its rounding null", prefix="sparsity_null/group/"),
            Lines("Share of the update's energy", prefix="update/energy/group/"),
            Lines("Relative norm", prefix="update/relative_norm/group/"),
        ),
    ),
    Section(
        "Layers",
        (
            Media("Layers and modules", ("sparsity_media/layers_and_modules",)),
            Media("Layers and modules, minus the null", ("sparsity_media/minus_null",)),
            Lines("Sparsity", prefix="sparsity/layer/"),
            Lines("Its rounding null", prefix="sparsity_null/layer/"),
            Lines("Share of the update's energy", prefix="update/energy/layer/"),
            Lines("Relative norm", prefix="update/relative_norm/layer/"),
            Media("Every part and tolerance", ("sparsity_media/table",)),
        ),
    ),
    Section(
        "Since the last measurement",
        (
            Lines("bf16", _tolerances("sparsity_since_last/bf16")),
            Lines("fp32", _tolerances("sparsity_since_last/fp32")),
            Lines("By group", prefix="sparsity_since_last/group/"),
            Lines("By layer", prefix="sparsity_since_last/layer/"),
            Lines("Relative norm", ("update_since_last/relative_norm", "update_since_last/relative_norm_fp32")),
            Media(
                "log10 |Δ| since the start", ("sparsity_media/log10_update/bf16", "sparsity_media/log10_update/fp32")
            ),
        ),
    ),
    Section(
        "Geometry",
        (
            *map(_spectral, ("rank_1e-5", "stable_rank", "spectral_energy_16")),
            *map(_spectral, ("projection_joint_0.1", "rotation_left_0.1", "spectral_drift")),
            Lines("Top directions: similarity to the last measurement", ("geometry/similarity_to_previous",)),
            Lines("Top directions: similarity to the final ones", prefix="geometry/similarity_to_final/"),
            *_one("optimizer/gradient_momentum_cosine", "optimizer/root_v_variation"),
            Lines(
                "Share of KD that gradient noise asks for",
                ("gradient_variance/lambda", "gradient_variance/lambda_mean", "gradient_variance/lambda_upper"),
            ),
            *_one("gradient_variance/reduction", "gradient_variance/cosine"),
        ),
    ),
    Section(
        "Cost",
        (
            Lines("Seconds of a step", ("time/step", "time/rollout")),
            Lines(
                "Seconds of a measurement",
                ("time/sparsity", "time/geometry", "time/optimizer_state", "time/gradient_variance"),
            ),
            *_one("tokens_per_second", "tokens"),
        ),
    ),
)
"""As they are shown, the first four open. A panel whose key a run does not record stays empty."""
OPEN = 4
