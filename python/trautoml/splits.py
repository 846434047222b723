"""Labels and splits: remap labels to 0..C-1, hold out a share of each class, thin out a split.

All draws are stratified and seeded; the order in which images came is kept within every split.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from trautoml.errors import TaskError

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

HOLDOUT = 0.2
"""Share of the images that a missing test split, and then a missing validation split, takes."""


def clean_labels(labels: npt.ArrayLike, n_images: int, split: str) -> npt.NDArray[np.generic]:
    """Check the labels of one split.

    Parameters
    ----------
    labels : array_like, shape (N,) or (N, 1)
        Integers, booleans or strings.
    n_images : int
        The number of images that they label.
    split : str
        Name of the split, for messages.

    Returns
    -------
    ndarray, shape (N,)
        Integers or strings.

    Raises
    ------
    TaskError
        For another shape, another number or another kind of labels.
    """
    array = np.asarray(labels)
    if array.dtype == object and all(isinstance(label, str) for label in array.flat):
        array = array.astype(np.str_)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise TaskError(f"{split} labels: expected shape (N,), got {array.shape}")
    if len(array) != n_images:
        raise TaskError(
            f"{split} split: {n_images} images but {len(array)} labels; give one label an image"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuU":
        raise TaskError(
            f"{split} labels: expected integers or strings, got dtype {array.dtype}; "
            "convert them, for example with labels.astype(int)"
        )
    return array


def encode_labels(
    labels: npt.NDArray[np.generic], classes: npt.NDArray[np.generic], split: str
) -> Labels:
    """Give each label its position in the sorted `classes`.

    Parameters
    ----------
    labels : ndarray, shape (N,)
        Labels of one split.
    classes : ndarray, shape (C,)
        The distinct training labels, sorted.
    split : str
        Name of the split, for messages.

    Returns
    -------
    ndarray, shape (N,)
        int64 in 0..C-1.

    Raises
    ------
    TaskError
        If a label is not among the classes.
    """
    if (labels.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise TaskError(
            f"{split} labels are {labels.dtype} but training labels are {classes.dtype}; "
            "give both as integers or both as strings"
        )
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise TaskError(
            f"the {split} split has classes that training lacks: {_listed(unknown.tolist())}; "
            "add training images of them or take them out"
        )
    return np.searchsorted(classes, labels).astype(np.int64)


def name_classes(
    classes: npt.NDArray[np.generic], class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Name the classes.

    As many names as classes are taken in the sorted order of the labels. More names than classes
    are indexed by the integer labels (so names may be given for labels that do not occur).
    Without names a class is called by its label.

    Parameters
    ----------
    classes : ndarray, shape (C,)
        The distinct labels, sorted.
    class_names : sequence of str, optional
        The names.

    Returns
    -------
    tuple of str, length C

    Raises
    ------
    TaskError
        If the names fit neither way.
    """
    values = classes.tolist()
    if class_names is None:
        return tuple(str(value) for value in values)
    names: list[str] = np.asarray(class_names).astype(np.str_).ravel().tolist()
    if len(names) == len(values):
        return tuple(names)
    if classes.dtype.kind in "iu" and min(values) >= 0 and max(values) < len(names):
        return tuple(names[value] for value in values)
    raise TaskError(
        f"class_names: {len(names)} names for {len(values)} classes ({_listed(values)}); "
        "give one name a class, in the sorted order of the labels"
    )


def check_counts(labels: Labels, class_names: Sequence[str], needed: int) -> None:
    """Check that there are two classes or more, each with `needed` images or more.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Labels of the images that are to be split.
    class_names : sequence of str, length C
        Names of the classes, also of those that have no image.
    needed : int
        Images that a class must have to be split.

    Raises
    ------
    TaskError
        If there are no images, fewer than two classes, or a class with fewer images.
    """
    if len(labels) == 0:
        raise TaskError("no images: expected at least two classes of images to train on, got none")
    if len(class_names) < 2:
        raise TaskError(
            f"fewer than two classes: all {len(labels)} training images are of class "
            f"{class_names[0]!r}; a classification task needs two classes or more"
        )
    counts = np.bincount(labels, minlength=len(class_names))
    short = [f"{name!r} has {n}" for name, n in zip(class_names, counts, strict=True) if n < needed]
    if short:
        raise TaskError(
            f"too few images to split: class {_listed(short)}; every class needs {needed} or more "
            "here, one for each split that was not given and one to train on; "
            "add images or remove the class"
        )


def hold_out(labels: Labels, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split indices into the kept and the held out, one class at a time.

    Each class gives up 20 % of its images, rounded, and at least one.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Labels of the images.
    rng : numpy.random.Generator
        The source of chance.

    Returns
    -------
    kept, held_out : ndarray of int, sorted
    """
    held_out = sample_classes(labels, HOLDOUT, rng)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def split_slices(found: Sequence[str], splits: Iterable[str]) -> dict[str, slice]:
    """Say where the images of each split lie in an array that holds all splits, one by one.

    Parameters
    ----------
    found : sequence of str
        The split of each image.
    splits : iterable of str
        Names of all splits, in the order in which they lie.

    Returns
    -------
    dict of slice
        By split; empty slices for those without images.
    """
    rows, start = {}, 0
    for split in splits:
        rows[split] = slice(start, start + found.count(split))
        start = rows[split].stop
    return rows


def sample_classes(labels: Labels, fraction: float, rng: np.random.Generator) -> Indices:
    """Draw a share of each class.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,)
        Labels of the images.
    fraction : float
        The share of each class, rounded to whole images; at least one image of each class that
        occurs.
    rng : numpy.random.Generator
        The source of chance.

    Returns
    -------
    ndarray of int, sorted
    """
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        n = max(1, int(fraction * len(members) + 0.5))
        drawn.append(rng.permutation(members)[:n])
    return np.sort(np.concatenate(drawn))


def _listed(items: Sequence[object]) -> str:
    """Join items by commas, the first ten and a count of the rest."""
    shown = ", ".join(str(item) for item in items[:10])
    return shown if len(items) <= 10 else f"{shown} and {len(items) - 10} more"
