"""Numbers as a reader sees them: shares in percent, differences in points, spreads with two digits."""

from __future__ import annotations

from distill.report.summary import count, number


def value(x: float | None, *, share: bool) -> str:
    """``78.1 %``, ``0.034 %``, ``99.97 %`` for a share; ``12.3``, ``4,096``, ``5.2e-4`` for anything else."""
    if x is None:
        return "–"
    if not share:
        return count(x) if abs(x) >= 100 else number(x)
    return f"{_digits(100 * x)} %"


def gap(x: float | None, *, share: bool) -> str:
    """A signed difference; of shares in percentage points."""
    if x is None:
        return "–"
    shown = _small(100 * x) if share else value(abs(x), share=False)
    sign = "−" if x < 0 else "+" if x > 0 else "±"
    return f"{sign}{shown.lstrip('-')}{' points' if share else ''}"


def spread(x: float | None, *, share: bool) -> str:
    """A standard deviation without its sign or unit, ``?`` where it is not known."""
    if x is None:
        return "?"
    if not share:
        return f"{x:.2g}" if x >= 0.01 else number(x)
    return "<0.01" if 0 < x < 1e-4 else _small(100 * x)


def deviations(z: float | None) -> str:
    """A difference in standard deviations. Beyond 100 of a few draws the number says nothing more."""
    if z is None:
        return "–"
    sign = "−" if z < 0 else "+"
    return f"{sign}{abs(z):.1f}" if abs(z) < 100 else f"beyond {sign}100"


def _digits(percent: float) -> str:
    """One decimal, more where the share is near 0 or 100 %."""
    edge = min(abs(percent), abs(100 - percent))
    if edge < 1e-10:
        return f"{percent:.0f}"
    if edge >= 1:
        return f"{percent:.1f}"
    if percent > 50:
        return f"{percent:.2f}" if edge >= 0.005 else f"{percent:.4f}" if edge >= 5e-5 else ">99.9999"
    return f"{percent:.2g}" if percent >= 0.01 else number(percent)


def _small(percent: float) -> str:
    """Percentage points: one decimal from 1 on, two from a hundredth on, digits below."""
    size = abs(percent)
    if size == 0:
        return "0"
    return f"{size:.1f}" if size >= 1 else f"{size:.2f}" if size >= 0.01 else number(size)
