"""The paper's tasks, from a folder of data sets.

The folder holds ``load.py`` with ``load(file) -> dict`` of ``train_images``, ``train_labels``,
``test_images``, ``test_labels`` and ``class_names``; ``derive.py`` with ``rotated()`` and
``background_images()``, which derive two more from mnist; and the ``.npz`` files that they read.
"""

import sys
from pathlib import Path

from trautoml.task import Task

NAMES = (
    "mnist",
    "fashion_mnist",
    "cifar10",
    "stl10",
    "streetchars74k",
    "mnist-rotated",
    "mnist-background",
)


def named_task(folder: Path, name: str) -> Task:
    """One data set with its own test images; a fifth of the others is held out for validation."""
    sys.path.insert(0, str(folder))
    import derive
    from load import load

    derived = {"mnist-rotated": derive.rotated, "mnist-background": derive.background_images}
    data = derived[name]() if name in derived else load(f"{name}.npz")
    return Task.from_arrays(
        data["train_images"],
        data["train_labels"],
        test_images=data["test_images"],
        test_labels=data["test_labels"],
        class_names=data["class_names"].tolist(),
        name=name,
    )


def seven_tasks(folder: Path) -> list[Task]:
    """Seven data sets; streetchars74k stands in for SVHN, two are derived from mnist."""
    return [named_task(folder, name) for name in NAMES]


def fourteen_tasks(folder: Path) -> list[Task]:
    """Each of the seven whole and halved."""
    return [part for task in seven_tasks(folder) for part in (task, task.subset(0.5))]
