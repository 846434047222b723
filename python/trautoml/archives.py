"""NumPy archives: find images and labels in a ``.npz`` file under the usual names."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trautoml.errors import TaskError

_KEYS = (
    ("train_images", "train_labels", "{}_images", "{}_labels"),
    ("x_train", "y_train", "x_{}", "y_{}"),
    ("images", "labels", "{}_images", "{}_labels"),
    ("x", "y", "x_{}", "y_{}"),
)
"""Names of the training images and labels, and patterns for those of other splits."""


def read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of a ``.npz`` file that `trautoml.task.Task.from_arrays` wants.

    Parameters
    ----------
    path : Path
        The file. Pickled objects in it are not read.

    Returns
    -------
    dict
        Keyword arguments of `from_arrays`: ``images``, ``labels`` and what else there is of
        ``val_images``, ``val_labels``, ``test_images``, ``test_labels`` and ``class_names``.

    Raises
    ------
    TaskError
        If the file can't be read or has no images and labels under a usual name.
    """
    try:
        # An open file is handed over because NumPy leaves its own open where this fails.
        with path.open("rb") as file, zipfile.ZipFile(file):
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = _choose(archive.files)
                arrays = {argument: archive[key] for argument, key in names.items()}
                found = ", ".join(sorted(archive.files)) or "(none)"
    # What zipfile raises for broken, encrypted and exotically compressed members.
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise TaskError(
            f"{path} can't be read as a .npz archive of plain arrays "
            f"({' '.join(str(error).split())}); write it with numpy.savez"
        ) from error
    if not arrays:
        expected = ", or ".join(f"{images} and {labels}" for images, labels, *_ in _KEYS)
        raise TaskError(f"{path} has the arrays {found}; expected {expected}")
    return arrays


def _choose(found: list[str]) -> dict[str, str]:
    """Say which array of the archive is which argument; nothing if there are no images."""
    for images, labels, some_images, some_labels in _KEYS:
        if images in found and labels in found:
            wanted = {"images": images, "labels": labels, "class_names": "class_names"}
            for split in ("val", "test"):
                wanted[f"{split}_images"] = some_images.format(split)
                wanted[f"{split}_labels"] = some_labels.format(split)
            return {argument: key for argument, key in wanted.items() if key in found}
    return {}
