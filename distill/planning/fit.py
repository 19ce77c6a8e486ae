"""The largest micro-batch that fits one rank."""

from __future__ import annotations

from distill.planning.plan import ROOM, Plan, Planner


def largest(planner: Planner, plan: Plan) -> int | None:
    """Rows per forward pass, at most those of one rank and step; 0 where not even one fits, None without a limit.

    Memory grows with the rows nearly in a line, so a few rehearsals find the place.
    """
    limit = plan.machine.limit
    if limit is None:
        return None
    room = ROOM * limit
    fixed = max((sum(terms.values()) for name, terms in plan.phases.items() if name != "training step"), default=0)
    if fixed > room:
        return 0
    known = {plan.work.micro_rows: sum(plan.phases["training step"].values())}

    def needs(rows: int) -> int:
        if rows not in known:
            phases = planner.phases(planner.work.with_micro_rows(rows), plan.gather or "model", only_step=True)[0]
            known[rows] = sum(phases["training step"].values())
        return known[rows]

    low, high = 0, plan.work.rows
    if needs(high) <= room:
        return high
    while high - low > 1:
        # Where the line between the two ends crosses the limit, but never one of the ends.
        below = needs(low) if low else plan.machine.baseline
        guess = low + int((high - low) * (room - below) / max(needs(high) - below, 1))
        middle = min(max(guess, low + 1), high - 1)
        low, high = (middle, high) if needs(middle) <= room else (low, middle)
    return low
