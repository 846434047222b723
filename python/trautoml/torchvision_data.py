"""Datasets of torchvision by name: which there are, and their images and labels.

torchvision is imported only when a dataset is asked for.
"""

import difflib
import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from trautoml.errors import TaskError
from trautoml.image_files import ImageSize, read_images
from trautoml.images import Images
from trautoml.splits import Labels, split_slices

_NAMES_OF_SPLIT = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
_FIXED_ARGUMENTS = {"EMNIST": {"split": "letters"}}
_BASES = {"VisionDataset", "DatasetFolder", "ImageFolder"}


class Source(NamedTuple):
    """A dataset that was read: images, and labels, of each split that it has."""

    parts: dict[str, tuple[Images, Labels]]
    class_names: list[str] | None


class _Entry(NamedTuple):
    """One image of an open dataset, named in messages by its split and index."""

    dataset: Any
    split: str
    row: int

    def __str__(self) -> str:
        return f"{type(self.dataset).__name__} {self.split}[{self.row}]"


def dataset_names() -> list[str]:
    """List the datasets that `read_dataset` can open.

    Returns
    -------
    list of str
        Names of the classes in `torchvision.datasets` that have targets and need no argument but
        ``root``.
    """
    from torchvision import datasets

    return sorted(
        name
        for name in datasets.__all__
        if name not in _BASES and _is_readable(name, getattr(datasets, name))
    )


def find_dataset(name: str) -> str:
    """Find a dataset's name, whatever the case of its letters.

    Parameters
    ----------
    name : str
        For example ``"mnist"``.

    Returns
    -------
    str
        For example ``"MNIST"``.

    Raises
    ------
    TaskError
        If there is none; the message lists names that come close.
    """
    known = {known.lower(): known for known in dataset_names()}
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=5)
    hint = (
        f"did you mean {', '.join(known[match] for match in close)}?"
        if close
        else "expected a name from torchvision.datasets, for example CIFAR10 or MNIST"
    )
    raise TaskError(f"torchvision has no image dataset {name!r}; {hint}")


def read_dataset(
    name: str,
    *,
    root: str | Path,
    download: bool,
    image_size: ImageSize | None,
    max_side: int,
) -> Source:
    """Open all splits of a dataset and bring its images to one shape.

    Parameters
    ----------
    name : str
        Exact name of a class in `torchvision.datasets`.
    root : str or Path
        Where the data lie or are downloaded to.
    download : bool
        Download what is not there.
    image_size, max_side
        As in `trautoml.image_files.read_images`.

    Returns
    -------
    Source
        Splits that the dataset lacks are missing from ``parts``.

    Raises
    ------
    TaskError
        If the data are not there and can't be downloaded, or are no labelled images.
    """
    opened = _open_splits(name, Path(root).expanduser(), download)
    entries = [
        _Entry(dataset, split, row)
        for split, dataset in opened.items()
        for row in range(len(dataset))
    ]
    labels: dict[tuple[str, int], int] = {}

    def open_entry(entry: _Entry) -> Image.Image:
        image, label = entry.dataset[entry.row]
        labels[entry.split, entry.row] = int(label)
        return cast("Image.Image", image)

    _check_kind(name, opened["train"])
    images, kept = read_images(entries, open_entry, image_size, max_side)
    read = [entries[item] for item in kept]
    kept_labels = np.array([labels[entry.split, entry.row] for entry in read], np.int64)
    rows = split_slices([entry.split for entry in read], opened)
    parts = {split: (images[at], kept_labels[at]) for split, at in rows.items()}
    names = [_as_name(label) for label in getattr(opened["train"], "classes", None) or ()]
    fits = min(labels.values()) >= 0 and max(labels.values()) < len(names)
    return Source(parts, names if fits else None)


def _as_name(label: object) -> str:
    return ", ".join(label) if isinstance(label, tuple) else str(label)


def _check_kind(name: str, dataset: Any) -> None:
    """Check that the first item is an image with a class."""
    item = dataset[0]
    kinds = [type(part).__name__ for part in item]
    if not (
        len(item) == 2
        and isinstance(item[0], Image.Image)
        and isinstance(item[1], int | np.integer)
    ):
        raise TaskError(
            f"{name} is no image classification dataset: its items are ({', '.join(kinds)}); "
            "expected an image and one class"
        )


def _parameters(kind: type) -> set[str]:
    """Name the parameters that a class takes, also those that it passes on to its parents."""
    builders = [
        vars(base)["__init__"]
        for base in kind.__mro__
        if "__init__" in vars(base) and base.__name__ != "VisionDataset"
    ]
    return {name for build in builders for name in inspect.signature(build).parameters}


def _is_readable(name: str, kind: object) -> bool:
    if not isinstance(kind, type) or "target_transform" not in _parameters(kind):
        return False
    known = {"root", *_FIXED_ARGUMENTS.get(name, ())}
    return all(
        parameter.name in known
        or parameter.default is not parameter.empty
        or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        for parameter in inspect.signature(kind).parameters.values()
    )


def _open_splits(name: str, root: Path, download: bool) -> dict[str, Any]:
    """Open the splits that a dataset has; one without splits is all training."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    taken = _parameters(kind)
    offered = {"root": str(root), "download": download, **_FIXED_ARGUMENTS.get(name, {})}
    build = partial(kind, **{key: value for key, value in offered.items() if key in taken})
    try:
        if "train" in taken:
            return {"train": build(train=True), "test": build(train=False)}
        if "split" in taken:
            return _open_named_splits(build)
        return {"train": build()}
    except Exception as error:
        raise TaskError(
            f"torchvision's {name} can't be opened in {root}: "
            f"{' '.join(str(error).split())}; check the network, "
            "or put its files there by hand"
        ) from error


def _open_named_splits(build: Callable[..., Any]) -> dict[str, Any]:
    opened: dict[str, Any] = {}
    for split, names in _NAMES_OF_SPLIT.items():
        for name in names:
            # torchvision raises ValueError for a split that a dataset doesn't have.
            with suppress(ValueError):
                opened[split] = build(split=name)
                break
    if "train" not in opened:
        raise LookupError("it has no split named train or trainval")
    return opened
