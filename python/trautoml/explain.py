"""Decisions in words."""

import math
from collections.abc import Sequence

from trautoml.grouping import Decision
from trautoml.records import LogEntry


def explain(decision: Decision, log: Sequence[LogEntry], name: str) -> str:
    """Say a decision in one sentence that a person understands.

    Parameters
    ----------
    decision : Decision
        The decision on the task `name`.
    log : sequence of LogEntry
        The tasks before it.
    name : str
        The task.
    """
    if not log:
        return f"{name} is the first task: it opens group {decision.group}"
    if decision.kind == "joined":
        return (
            f"{name} is of the same kind as {_members(log, decision.group)}: it joins group "
            f"{decision.group} (probability {_probability(decision.posterior)}{_test(decision)})"
        )
    if decision.kind == "split":
        return (
            f"{name} looks like {_members(log, decision.tested_group)} (group "
            f"{decision.tested_group}), but the test finds their scores too different: it opens "
            f"group {decision.group} (probability before the test "
            f"{_probability(decision.posterior)}{_test(decision)})"
        )
    nearest = int(decision.log_posterior.argmax())
    alternative = _probability(math.exp(decision.log_posterior[nearest]))
    return (
        f"{name} is of a new kind: it opens group {decision.group} (nearest: "
        f"{_members(log, nearest)}, probability {alternative})"
    )


def _members(log: Sequence[LogEntry], group: int | None) -> str:
    names = [entry.name for entry in log if entry.decision.group == group]
    return (
        ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    )


def _probability(value: float) -> str:
    if value < 0.001:
        return "below 0.001"
    if value > 0.999:
        return "above 0.999"
    return f"{value:.3f}"


def _test(decision: Decision) -> str:
    return "" if decision.p_value is None else f", p = {decision.p_value:.2g}"
