"""The paper's fourteen tasks as one stream: decisions, groups, and what they cost and saved.

    python bench/paper/stream.py --data DIR [--store DIR] [--out bench/results]

First the stream, in a seeded order, as a user would run it; then, in a store of their own, the
searches that the reused tasks were spared, so that the time saved and the accuracy given up are
measured and not estimated. Stop it at any time: started again, it goes on where it stopped.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import conditions
from tasks import fourteen_tasks

from trautoml import SearchBudget, Store, Task, TransferAutoML
from trautoml.duration import duration
from trautoml.store import LogEntry
from trautoml.summary import summarise


@dataclass(frozen=True)
class Standalone:
    """What searching a task without any transfer came to."""

    seconds: float
    test_accuracy: float


def standalone(alone: TransferAutoML, task: Task, entry: LogEntry) -> Standalone:
    """Search a task by itself; one that was searched in the stream has been already."""
    if entry.searched:
        return Standalone(entry.standalone_seconds, entry.test_score)
    model = alone.search(task)
    return Standalone(model.search_seconds + model.training_seconds, model.test_score)


def report(log: list[LogEntry], alone: list[Standalone], automl: TransferAutoML) -> str:
    """Write the table as Markdown."""
    budget, workers = automl.budget, automl.engine.n_workers
    lines = [
        "# Fourteen tasks, one order, Hyperband",
        "",
        f"Command: `python bench/paper/stream.py --data DIR`. {conditions(workers)}.",
        "",
        (
            f"Search budget: {budget.trials} candidates, {budget.epochs} epochs. "
            "All times are worker seconds (summed over the workers). "
            "*Estimate*: what trautoml told the user a search would have cost; *alone*: what that "
            "search did cost, measured afterwards."
        ),
        "",
        (
            "| task | decision | group | posterior | p | probes | search | training | estimate "
            "| alone | test acc. | alone |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry, single in zip(log, alone, strict=True):
        decision, seconds = entry.decision, entry.seconds
        p = "" if decision.p_value is None else f"{decision.p_value:.2g}"
        estimate = "" if entry.searched else f"{entry.search_estimate:.0f}"
        lines.append(
            f"| {entry.name} | {decision.kind} | {decision.group} | {decision.posterior:.3f} | {p} "
            f"| {seconds['probes']:.0f} | {seconds['search']:.0f} | {seconds['training']:.0f} "
            f"| {estimate} | {single.seconds:.0f} | {entry.test_score:.3f} "
            f"| {single.test_accuracy:.3f} |"
        )
    return "\n".join([*lines, "", *totals(log, alone), ""])


def totals(log: list[LogEntry], alone: list[Standalone]) -> list[str]:
    """Sum up: groups, time, and the paper's total relative error (Eq. 17)."""
    groups: dict[int, list[str]] = {}
    for entry in log:
        groups.setdefault(entry.decision.group, []).append(entry.name)
    spent = {phase: sum(entry.seconds[phase] for entry in log) for phase in log[0].seconds}
    total, searched = sum(spent.values()), sum(single.seconds for single in alone)
    extra = [s.test_accuracy - e.test_score for e, s in zip(log, alone, strict=True)]
    errors = [1 - single.test_accuracy for single in alone]
    tre = np.mean([e / max(error, 0.01) for e, error in zip(extra, errors, strict=True)])
    reused = [
        entry.search_estimate / single.seconds
        for entry, single in zip(log, alone, strict=True)
        if not entry.searched
    ]
    return [
        *(f"- group {number}: {', '.join(members)}" for number, members in groups.items()),
        "",
        (
            f"- {sum(entry.searched for entry in log)} searches for {len(log)} tasks; elapsed "
            f"{duration(sum(entry.wall_seconds for entry in log))}"
        ),
        (
            f"- spent {duration(total)}: probes {duration(spent['probes'])} "
            f"({spent['probes'] / searched:.1%} of searching alone), search "
            f"{duration(spent['search'])}, training {duration(spent['training'])}"
        ),
        f"- searching every task alone: {duration(searched)}; ratio {total / searched:.2f}",
        (
            f"- total relative error (e* floored at 0.01) {tre:.3f}; mean extra error "
            f"{np.mean(extra):+.4f}"
        ),
        f"- estimate of the spared search over its measured cost: median "
        f"{np.median(reused):.2f}, from {min(reused):.2f} to {max(reused):.2f}"
        if reused
        else "- no task was reused",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py, derive.py")
    parser.add_argument("--store", type=Path, default=Path("build/fourteen"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--order", type=int, default=0, help="seed of the order")
    arguments = parser.parse_args()

    tasks = fourteen_tasks(arguments.data)
    order = np.random.default_rng(arguments.order).permutation(len(tasks))
    budget = SearchBudget()
    with Store(arguments.store) as store, TransferAutoML(store, budget=budget) as automl:
        for index in order:
            outcome = automl.fit(tasks[index])
            print(outcome.sentence, f"test accuracy {outcome.test_score:.3f}", flush=True)
        entries = {entry.fingerprint: entry for entry in store.log()}
    log = [entries[tasks[index].fingerprint] for index in order]
    alone = []
    with TransferAutoML(arguments.store / "alone", budget=budget) as searcher:
        for index, entry in zip(order, log, strict=True):
            alone.append(standalone(searcher, tasks[index], entry))
            print(entry.name, alone[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fourteen_tasks.md").write_text(report(log, alone, automl))
    data = summarise(log, automl.settings) | {"standalone": [vars(single) for single in alone]}
    (arguments.out / "fourteen_tasks.json").write_text(json.dumps(data, indent=1))
    print(report(log, alone, automl))


if __name__ == "__main__":
    main()
