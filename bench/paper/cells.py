"""Transfer of cells: searched on mnist and reused on fashion_mnist, against searching there.

    python bench/paper/cells.py --data DIR [--store DIR] [--out bench/results]

As in the paper's Table 5, sharing is forced: alpha = 0, and gamma so large that an empty cluster
has no prior. 5,000 training images each. Stop it at any time: started again, it goes on where it
stopped.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from machine import conditions
from tasks import named_task

from trautoml import SearchBudget, Settings, TransferAutoML

N_TRAIN = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py")
    parser.add_argument("--store", type=Path, default=Path("build/cells"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--searcher", default="enas")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=6)
    arguments = parser.parse_args()

    source, target = (named_task(arguments.data, name) for name in ("mnist", "fashion_mnist"))
    source, target = (
        replace(task.subset(N_TRAIN / task.n_train), name=task.name) for task in (source, target)
    )
    options = {
        "settings": Settings(
            setting="cells", probe_images=1000, grouping={"alpha": 0.0, "gamma": 1e6}
        ),
        "searcher": arguments.searcher,
        "budget": SearchBudget(arguments.trials, arguments.epochs, arguments.seconds),
    }
    with TransferAutoML(arguments.store / "shared", **options) as automl:
        searched = automl.fit(source)
        print(searched.sentence, searched.seconds, searched.test_score, flush=True)
        reused = automl.fit(target)
        print(reused.sentence, reused.seconds, reused.test_score, flush=True)
        workers = automl.engine.n_workers
    with TransferAutoML(arguments.store / "alone", **options) as automl:
        alone = automl.search(target)
    rows = {
        f"{source.name}: searched": (searched.test_score, searched.seconds),
        f"{target.name}: after {source.name}, {reused.decision.kind}": (
            reused.test_score,
            reused.seconds,
        ),
        f"{target.name}: searched": (
            alone.test_score,
            {"search": alone.search_seconds, "training": alone.training_seconds},
        ),
    }
    lines = [
        "# Cells searched on one task and reused on another",
        "",
        f"Command: `python bench/paper/cells.py --data DIR`. {conditions(workers)}.",
        "",
        (
            f"{arguments.searcher}, {N_TRAIN} training images each, at most "
            f"{arguments.seconds:.0f} s a search, {arguments.epochs} epochs a final training; "
            f"decision on {target.name}: {reused.decision.kind}. Times are worker seconds; a "
            "search that trains one supergraph keeps only one worker busy."
        ),
        "",
        "| task | test accuracy | probes | search | training | in all |",
        "|---|---|---|---|---|---|",
    ]
    for name, (accuracy, seconds) in rows.items():
        phases = " | ".join(f"{seconds.get(p, 0.0):.0f}" for p in ("probes", "search", "training"))
        lines.append(f"| {name} | {accuracy:.3f} | {phases} | {sum(seconds.values()):.0f} |")
    text = "\n".join([*lines, ""])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cells.md").write_text(text)
    data = {name: {"test_accuracy": a, "seconds": s} for name, (a, s) in rows.items()}
    (arguments.out / "cells.json").write_text(json.dumps(data, indent=1))
    print(text)


if __name__ == "__main__":
    main()
