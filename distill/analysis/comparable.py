"""When a sparsity may be set beside a published one."""

from __future__ import annotations

RELATIVE_NORM_RANGE = (3e-4, 1.5e-3)


def caveat(relative_norm: float) -> str | None:
    """Why the sparsity of an update of this ‖Δ‖/‖θ₀‖ (bf16) is not comparable, or None inside the usual range."""
    low, high = RELATIVE_NORM_RANGE
    if low <= relative_norm <= high:
        return None
    size, share = ("large", "0 %") if relative_norm > high else ("small", "100 %")
    shown = f"{relative_norm:.1e}".replace("e-0", "e-")
    return (
        f"The relative update norm {shown} is outside 3e-4…1.5e-3: the sparsity is not comparable to published tables. "
        f"With an update this {size} it tends to {share} whatever the method."
    )
