"""What a store amounts to: groups, decisions, time spent and saved; as a table and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from trautoml.duration import duration
from trautoml.explain import explain
from trautoml.plain import plain
from trautoml.records import LogEntry
from trautoml.settings import Settings
from trautoml.spec import ModelSpec

PHASES = ("features", "probes", "search", "training")
"""What worker seconds are spent in, in order; features only if there is a backbone."""


def summarise(log: Sequence[LogEntry], settings: Settings) -> dict[str, Any]:
    """Summarise a store as JSON values.

    Parameters
    ----------
    log : sequence of LogEntry
        All fitted tasks in order of arrival.
    settings : Settings
        Those of the store.

    Returns
    -------
    dict
        ``settings``, ``tasks`` (one entry each: name, group, decision with posterior and p-value,
        scores, seconds), ``groups`` (members and model) and ``totals`` in worker seconds.
    """
    groups: dict[int, dict[str, Any]] = {}
    for entry in log:
        group = groups.setdefault(
            entry.decision.group,
            {"group": entry.decision.group, "members": [], "spec": _spec(entry.spec)},
        )
        group["members"].append(entry.name)
    spent = sum(entry.spent_seconds for entry in log)
    standalone = sum(entry.standalone_seconds for entry in log)
    return {
        "settings": asdict(settings),
        "tasks": [_task(entry, log) for entry in log],
        "groups": [groups[group] for group in sorted(groups)],
        "totals": {
            "tasks": len(log),
            "groups": len(groups),
            "searches": sum(entry.searched for entry in log),
            "spent_seconds": spent,
            "standalone_seconds": standalone,
            "saved_seconds": standalone - spent,
        },
    }


def print_summary(
    log: Sequence[LogEntry], settings: Settings, console: Console, folder: str
) -> None:
    """Print the table of decisions, the groups, the time saved and the setting."""
    if not log:
        text = f"The store {plain(folder)} holds no fitted task yet."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    summary = summarise(log, settings)
    totals = summary["totals"]
    standalone = totals["standalone_seconds"]
    share = totals["saved_seconds"] / standalone if standalone else 0.0
    lines = [
        (
            f"{_count(totals['tasks'], 'task', 's')}, {_count(totals['groups'], 'group', 's')}, "
            f"{_count(totals['searches'], 'search', 'es')}."
        ),
        f"Spent {duration(totals['spent_seconds'])} of worker time; searching each task would have "
        f"cost about {duration(standalone)}: "
        + (f"{share:.0%} saved." if share >= 0 else f"{-share:.0%} more was spent than that."),
        f"Setting: {plain(_setting(settings))}",
        f"Store: {plain(folder)}",
    ]
    console.print(
        Group(_decisions(log), Text(), _groups(summary), Text(), *(Text(line) for line in lines))
    )


def _setting(settings: Settings) -> str:
    if not settings.backbone:
        return settings.setting
    return "{setting}, {name} at {node}, {side} pixels a side, weights {weights}".format(
        setting=settings.setting, **settings.backbone
    )


def _count(number: int, word: str, plural: str) -> str:
    return f"{number} {word}{'' if number == 1 else plural}"


def _task(entry: LogEntry, log: Sequence[LogEntry]) -> dict[str, Any]:
    decision = entry.decision
    return {
        "name": entry.name,
        "fingerprint": entry.fingerprint,
        "group": decision.group,
        "kind": decision.kind,
        "posterior": decision.posterior,
        "group_posteriors": [math.exp(value) for value in decision.log_posterior],
        "statistic": decision.statistic,
        "p_value": decision.p_value,
        "sentence": explain(decision, log[: entry.position], entry.name),
        "searched": entry.searched,
        "spec": _spec(entry.spec),
        "validation_accuracy": entry.score,
        "test_accuracy": entry.test_score,
        "seconds": entry.seconds,
        "search_estimate_seconds": entry.search_estimate,
        "saved_seconds": entry.saved_seconds,
        "wall_seconds": entry.wall_seconds,
    }


def _spec(spec: ModelSpec) -> dict[str, Any]:
    return {"digest": spec.digest, **json.loads(spec.to_json())}


def _decisions(log: Sequence[LogEntry]) -> Table:
    table = Table(title="Decisions", title_justify="left")
    for name in ("task", "decision", "group"):
        table.add_column(name)
    phases = [p for p in PHASES if p != "features" or any(p in entry.seconds for entry in log)]
    for name in ("posterior", "p-value", "test acc.", *phases, "saved"):
        table.add_column(name, justify="right")
    for entry in log:
        decision, seconds = entry.decision, entry.seconds
        table.add_row(
            Text(plain(entry.name)),
            decision.kind,
            str(decision.group),
            f"{decision.posterior:.3f}",
            "" if decision.p_value is None else f"{decision.p_value:.2g}",
            f"{entry.test_score:.3f}",
            *(duration(seconds[phase]) if seconds.get(phase) else "" for phase in phases),
            duration(entry.saved_seconds),
        )
    return table


def _groups(summary: dict[str, Any]) -> Table:
    table = Table(title="Groups", title_justify="left")
    table.add_column("group")
    table.add_column("members")
    table.add_column("model")
    for group in summary["groups"]:
        spec = group["spec"]
        model = f"{spec['architecture']} {spec['digest']}"
        table.add_row(str(group["group"]), Text(plain(", ".join(group["members"]))), model)
    return table
