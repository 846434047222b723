"""Tasks so small that tests can learn them."""

from typing import Any

import numpy as np

from trautoml.task import Task


def tiny_task(
    seed: int = 0, *, name: str = "stripes", n_train: int = 60, noise: float = 60.0
) -> Task:
    """Make a task of upright, level and slanted stripes on 8 x 8 grey pixels.

    A small network learns it in a few epochs of some milliseconds.

    Parameters
    ----------
    seed : int
        Draws noise and order; the three classes are the same.
    name : str
        Of the task.
    n_train : int
        Training images. Validation and test have half as many each.
    noise : float
        Standard deviation of the noise, in grey levels; the stripes differ by 130.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8]
    patterns = np.stack([columns % 4 < 2, rows % 4 < 2, (rows + columns) % 4 < 2])
    splits: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        size = n_train if split == "train" else n_train // 2
        labels = rng.permutation(np.arange(size) % 3)
        images = 60.0 + 130.0 * patterns[labels] + rng.normal(0, noise, (size, 8, 8))
        images = np.clip(images, 0, 255).astype(np.uint8)[..., None]
        splits |= {f"{split}_images": images, f"{split}_labels": labels}
    return Task(name=name, class_names=("upright", "level", "slanted"), **splits)
