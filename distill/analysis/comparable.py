"""When a sparsity may be set beside a published one."""

from __future__ import annotations

RELATIVE_NORM_RANGE = (3e-4, 1.5e-3)
"""Usual ‖Δ‖/‖θ₀‖ of weights as they are stored (the fp32 row). Rounding two fp32 models to bf16 raises it, since what
moves moves by a whole step: a Gaussian update of 1.0e-3 measures 1.9e-3 in the bf16 row, at 71 % sparsity."""


def caveat(relative_norm: float) -> str | None:
    """Why the sparsity of an update of this fp32 ‖Δ‖/‖θ₀‖ is not comparable, or None inside the usual range."""
    low, high = RELATIVE_NORM_RANGE
    if low <= relative_norm <= high:
        return None
    size, share = ("large", "0 %") if relative_norm > high else ("small", "100 %")
    shown = f"{relative_norm:.1e}".replace("e-0", "e-")
    return (
        f"The relative update norm {shown} (fp32) is outside 3e-4…1.5e-3: the sparsity is not comparable to published "
        f"tables. With an update this {size} it tends to {share} whatever the method."
    )
