"""Folders: find the image files of a folder of class folders, with or without split folders.

Hidden files and folders (a leading dot, and ``__MACOSX``) don't count. Links are followed; a folder
that is reached a second time, through a link, is not read again, so loops end.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from trautoml.errors import TaskError
from trautoml.image_files import EXTENSIONS

SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of split folders, in lower case, and the split each of them holds."""

Classes = dict[str, list[Path]]


def scan_folder(path: Path) -> dict[str, Classes]:
    """Find the image files of each class of each split.

    A folder is read as ``train/``, ``val/`` (or ``valid/``, ``validation/``) and ``test/`` if it
    has a ``train/`` that holds folders and no images; else its own folders are the classes. Images
    may lie at any depth in a class folder. Images beside the class folders have no class and
    don't count.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    dict of dict of list of Path
        Split, class, files in sorted order. Without split folders all is in ``"train"``. A class
        folder without images has an empty list.

    Raises
    ------
    TaskError
        If there is no such folder, it has no class folders, or what lies beside ``train/`` is not
        understood.
    """
    if not path.is_dir():
        raise TaskError(f"{path} is not a folder; expected a folder with one folder for each class")
    folders = _visible_folders(path)
    train = [folder for folder in folders if folder.name.lower() == "train"]
    if not (train and _visible_folders(train[0]) and not _has_images(train[0])):
        return {"train": _scan_classes(path)}
    layout: dict[str, Classes] = {}
    for folder in folders:
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None:
            raise TaskError(
                f"{path} has train/ with class folders and beside it {folder.name}/; expected only "
                f"{'/, '.join(SPLIT_FOLDERS)}/ there; move {folder.name}/ away, or, if these "
                "are class folders, move the images in train/ out of its inner folders"
            )
        if split in layout:
            raise TaskError(f"{path} has two folders for the {split} split; keep one")
        layout[split] = _scan_classes(folder)
    return layout


def _scan_classes(path: Path) -> Classes:
    folders = _visible_folders(path)
    if not folders:
        loose = " (there are images, but in no class folder)" if _has_images(path) else ""
        raise TaskError(f"{path} has no class folders{loose}; expected one folder for each class")
    return {folder.name: sorted(_image_files(folder)) for folder in folders}


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _visible_folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and _is_visible(child.name))


def _has_images(path: Path) -> bool:
    return any(_is_image(child.name) and not child.is_dir() for child in path.iterdir())


def _is_image(name: str) -> bool:
    return _is_visible(name) and Path(name).suffix.lower() in EXTENSIONS


def _image_files(path: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(path, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116 - os.walk gives strings
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if _is_visible(name))
        yield from (Path(folder, name) for name in files if _is_image(name))
