"""The six demo tasks: scikit-learn's handwritten digits, plain, rotated and on photographs.

Rotated digits and digits on photographs follow Larochelle et al., "An empirical evaluation of deep
architectures on problems with many factors of variation", ICML 2007, with the 1,797 digits of
scikit-learn in place of MNIST and its two sample photographs as background. All of it is installed
with scikit-learn: nothing is downloaded.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from trautoml.images import Images
from trautoml.splits import Labels
from trautoml.task import Task

SIDE = 16
"""Height and width of the demo images, in pixels."""

MIN_TEXTURE = 20.0
"""Patches of a photograph whose grey levels (0..255) deviate less than this are drawn again."""


def digits(seed: int = 0) -> Task:
    """Handwritten digits, scaled up from 8 x 8 pixels.

    Parameters
    ----------
    seed : int, optional
        Seed of the splits.

    Returns
    -------
    Task
        1,797 grey images of 16 x 16 in 10 classes.
    """
    images, labels = _load_digits()
    return Task.from_arrays(images, labels, name="digits", seed=seed)


def digits_rotated(seed: int = 0) -> Task:
    """Handwritten digits, each turned by its own angle, uniform in [0, 2 pi).

    Parameters
    ----------
    seed : int, optional
        Seed of the angles and of the splits.

    Returns
    -------
    Task
        1,797 grey images of 16 x 16 in 10 classes.
    """
    images, labels = _load_digits()
    angles = np.random.default_rng(seed).uniform(0.0, 360.0, len(images))
    turned = [
        ndimage.rotate(image.astype(np.float64), angle, reshape=False, order=1)
        for image, angle in zip(images, angles, strict=True)
    ]
    return Task.from_arrays(_to_uint8(np.stack(turned)), labels, name="digits-rotated", seed=seed)


def digits_background(seed: int = 0) -> Task:
    """Handwritten digits, white, each laid on its own patch of a grey photograph.

    Parameters
    ----------
    seed : int, optional
        Seed of the patches and of the splits.

    Returns
    -------
    Task
        1,797 grey images of 16 x 16 in 10 classes.
    """
    images, labels = _load_digits()
    patches = _draw_patches(len(images), np.random.default_rng(seed))
    opacity = images / 255.0
    mixed = _to_uint8(255.0 * opacity + (1.0 - opacity) * patches)
    return Task.from_arrays(mixed, labels, name="digits-background", seed=seed)


DEMO_TASKS = {
    "digits": digits,
    "digits-rotated": digits_rotated,
    "digits-background": digits_background,
}
"""The functions that make the whole demo tasks, by name."""


def demo_tasks(seed: int = 0) -> list[Task]:
    """Make the six demo tasks: each of the three whole and halved.

    Parameters
    ----------
    seed : int, optional
        Seed of all of them.

    Returns
    -------
    list of Task, length 6
        Each whole task with its half after it.
    """
    whole = [make(seed) for make in DEMO_TASKS.values()]
    return [part for task in whole for part in (task, task.subset(0.5, seed=seed))]


def _to_uint8(values: npt.NDArray[np.float64]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _load_digits() -> tuple[Images, Labels]:
    """Return the digits, (1797, 16, 16), white (255) on black (0), and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    zoom = (1, SIDE // 8, SIDE // 8)
    scaled = ndimage.zoom(bunch.images, zoom, order=1, mode="nearest", grid_mode=True)
    return _to_uint8(scaled * (255.0 / 16.0)), bunch.target.astype(np.int64)


def _draw_patches(n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw n grey patches, (n, 16, 16) in 0..255, from photographs at half their size."""
    from sklearn.datasets import load_sample_images

    photos = np.stack([photo.mean(axis=2) for photo in load_sample_images().images])
    photos = ndimage.zoom(photos, (1, 0.5, 0.5), order=1, mode="nearest", grid_mode=True)
    patches = np.empty((n, SIDE, SIDE))
    todo = np.arange(n)
    while len(todo):
        which = rng.integers(len(photos), size=len(todo))
        rows = rng.integers(photos.shape[1] - SIDE + 1, size=len(todo))
        columns = rng.integers(photos.shape[2] - SIDE + 1, size=len(todo))
        for slot, photo, row, column in zip(todo, which, rows, columns, strict=True):
            patches[slot] = photos[photo, row : row + SIDE, column : column + SIDE]
        todo = todo[patches[todo].std(axis=(1, 2)) < MIN_TEXTURE]
    return patches
