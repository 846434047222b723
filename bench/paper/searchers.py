"""Every searcher on three tasks, next to random search at equal seconds.

    python bench/paper/searchers.py --data DIR [--store DIR] [--out bench/results]

5,000 training images each of mnist, fashion_mnist and cifar10. All that search chains get the same
time, and so do all that search cells, which are dearer. Stop it at any time: started again, it goes
on where it stopped. Nothing else should run on the machine.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from machine import conditions
from tasks import named_task

from trautoml import Callbacks, SearchBudget, Settings, Task, TransferAutoML
from trautoml.search import SearchProgress

TASKS = ("mnist", "fashion_mnist", "cifar10")
CHAINS = ("random", "hyperband", "gp", "tpe", "metaqnn", "nas-rl", "net2net")
CELLS = ("random", "enas", "darts")
N_TRAIN = 5000

SUPERGRAPH_EPOCHS = {"enas": 6, "darts": 1}
"""What two cores have the time for: a step of DARTS costs some ten times as much as one of ENAS."""


@dataclass(frozen=True)
class Run:
    """What one search came to; seconds are the workers'."""

    space: str
    searcher: str
    task: str
    validation_accuracy: float
    test_accuracy: float
    trials: int
    search_seconds: float
    architecture: str


class Last(Callbacks):
    """Keeps the last progress of a search."""

    progress: SearchProgress

    def search_progress(self, task: Task, progress: SearchProgress) -> None:  # noqa: ARG002
        self.progress = progress


def search(folder: Path, setting: str, searcher: str, task: Task, budget: SearchBudget) -> Run:
    """Search in a store of its own."""
    last = Last()
    with TransferAutoML(
        folder,
        settings=Settings(setting=setting),
        searcher=searcher,
        budget=budget,
        callbacks=[last],
    ) as automl:
        model = automl.search(task)
    return Run(
        space="cells" if setting == "cells" else "chains",
        searcher=searcher,
        task=task.name,
        validation_accuracy=model.score,
        test_accuracy=model.test_score,
        trials=last.progress.started,
        search_seconds=model.search_seconds,
        architecture=model.spec.to_json(),
    )


def report(runs: list[Run], seconds: dict[str, float], epochs: int, where: str) -> str:
    """Write the table as Markdown."""
    lines = [
        "# Every searcher at equal seconds",
        "",
        f"Command: `python bench/paper/searchers.py --data DIR`. {where}.",
        "",
        (
            f"{N_TRAIN} training images each, {epochs} epochs a final training. Searches of chains "
            f"had {seconds['chains']:.0f} s of both workers, of cells {seconds['cells']:.0f} s. "
            "A search ends with the training that passes the limit, so it may spend more: "
            "*seconds* are what it spent (worker seconds / 2). *Trials*: candidates started; of "
            "enas and darts, epochs of the supergraph and the trainings after it. One seed: "
            "differences of a point or so mean nothing."
        ),
    ]
    for space in ("chains", "cells"):
        lines += [
            "",
            f"## {space.capitalize()}",
            "",
            "| searcher | "
            + " | ".join(f"{task} val. | test | trials | seconds" for task in TASKS)
            + " |",
            "|---" * (1 + 4 * len(TASKS)) + "|",
        ]
        for searcher in dict.fromkeys(run.searcher for run in runs if run.space == space):
            cells = []
            for task in TASKS:
                (run,) = [
                    r for r in runs if (r.space, r.searcher, r.task) == (space, searcher, task)
                ]
                cells += [
                    f"{run.validation_accuracy:.3f}",
                    f"{run.test_accuracy:.3f}",
                    str(run.trials),
                    f"{run.search_seconds / 2:.0f}",
                ]
            lines.append(f"| {searcher} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py")
    parser.add_argument("--store", type=Path, default=Path("build/searchers"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--chain-seconds", type=float, default=45.0)
    parser.add_argument("--cell-seconds", type=float, default=120.0)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()

    seconds = {"chains": arguments.chain_seconds, "cells": arguments.cell_seconds}
    chains, cells = (
        SearchBudget(10**6, arguments.epochs, seconds[space]) for space in ("chains", "cells")
    )
    plan = [("scratch", name, chains) for name in CHAINS]
    plan += [
        ("cells", name, replace(cells, trials=SUPERGRAPH_EPOCHS.get(name, cells.trials)))
        for name in CELLS
    ]

    runs = []
    for name in TASKS:
        task = named_task(arguments.data, name)
        task = replace(task.subset(N_TRAIN / task.n_train), name=name)
        for setting, searcher, budget in plan:
            folder = arguments.store / f"{name}-{setting}-{searcher}"
            done = folder / "run.json"
            if not done.exists():
                run = search(folder, setting, searcher, task, budget)
                done.write_text(json.dumps(asdict(run)))
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                print(run, flush=True)
            runs.append(Run(**json.loads(done.read_text())))
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = report(runs, seconds, arguments.epochs, conditions(workers=2))
    (arguments.out / "searchers.md").write_text(text)
    (arguments.out / "searchers.json").write_text(
        json.dumps([asdict(run) for run in runs], indent=1)
    )
    print(text)


if __name__ == "__main__":
    main()
