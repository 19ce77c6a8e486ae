"""The plan as text: one table, sorted by size, and a few lines."""

from __future__ import annotations

from distill.planning.plan import Plan

MIB, GIB = 2**20, 2**30


def render(plan: Plan) -> str:
    """Lines to print; sizes in GiB, below one in MiB."""
    machine, terms = plan.machine, plan.phases[plan.peak_phase]
    kind = "GPU" if machine.gpu else "CPU"
    lines = [f"{machine.ranks} × {kind}, one rank at its peak ({plan.peak_phase}):", ""]
    lines += [_line(name, size) for name, size in sorted(terms.items(), key=lambda item: -item[1]) if size >= MIB / 2]
    lines += [_line("sum", plan.peak), *_limit(plan), "", "peak of every phase:"]
    lines += [_line(name, sum(parts.values())) for name, parts in plan.phases.items()]
    if machine.gpu:
        lines += ["", _line("host memory per machine", plan.host)]
        lines.append("GPU terms follow from shapes; they have not been compared with a GPU yet.")
    lines += ["", "disk:", *(_line(name, size) for name, size in plan.disk.items())]
    lines += [_line("sum", sum(plan.disk.values())), "", "tokens:"]
    lines += [f"  {name:<26}{count:>14,}" for name, count in plan.tokens.items()]
    return "\n".join([*lines, "", *plan.advice])


def _limit(plan: Plan) -> list[str]:
    limit = plan.machine.limit
    if limit is None:
        return ["  no limit known: give plan.device_memory=80GiB"]
    verdict = "fits" if plan.fits else "does not fit"
    return [_line("limit", limit) + f"   {verdict}; largest micro_batch_size: {plan.largest_micro_batch_size}"]


def _line(name: str, size: int) -> str:
    shown = f"{size / MIB:>10.1f} MiB" if size < GIB else f"{size / GIB:>10.3f} GiB"
    return f"  {name:<26}{shown}"
