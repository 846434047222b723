"""Tasks: labelled image datasets with their training, validation and test splits.

A `Task` is made from arrays, an ``.npz`` file, a folder of class folders or the name of a
torchvision dataset, and is the same plain thing from then on: uint8 images of one shape and labels
0..C-1. How they are brought to one shape is said in `trautoml.images` for arrays and in
`trautoml.image_files` for files; how splits are drawn, in `Task.from_arrays`. A `FeatureTask` has
maps of features in the place of the images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from trautoml.archives import read_npz
from trautoml.errors import TaskError
from trautoml.folders import scan_folder
from trautoml.image_files import DEFAULT_SIDE, EXTENSIONS, ImageSize, open_file, read_images
from trautoml.images import MAX_SIDE, MIN_SIDE, Images, as_images
from trautoml.splits import (
    Labels,
    check_counts,
    clean_labels,
    encode_labels,
    hold_out,
    name_classes,
    sample_classes,
    split_slices,
)
from trautoml.torchvision_data import find_dataset, read_dataset

SPLITS = ("train", "val", "test")
"""The three splits, in the order in which they are stored and fingerprinted."""

_ABOUT = "task.json"
"""The file of a saved task that is written last."""


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """One labelled image dataset with its train, validation and test split.

    Two tasks are equal if their fingerprints are. The arrays are read-only views of those that
    were given, where these are contiguous: don't change them afterwards.

    Parameters
    ----------
    name : str
        What the task is called in reports.
    train_images, val_images, test_images : ndarray of uint8, shape (N, H, W, C)
        Images, C is 1 or 3, H and W from 8 to 224. N may differ from split to split.
    train_labels, val_labels, test_labels : ndarray of int64, shape (N,)
        Classes, 0..n_classes-1; each class is in training at least once.
    class_names : tuple of str
        One name for each class, two or more.

    Raises
    ------
    TaskError
        If the arrays are not of these types, shapes and values.
    """

    name: str
    train_images: Images
    train_labels: Labels
    val_images: Images
    val_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]
    _loaded_from: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for split in SPLITS:
            images, labels = self._split(split)
            self._check_images(split, images)
            _check_split(split, images, labels, self.train_images.shape[1:], self.n_classes)
            for part, array in (("images", images), ("labels", labels)):
                view = np.ascontiguousarray(array).view()
                view.flags.writeable = False
                object.__setattr__(self, f"{split}_{part}", view)
        check_counts(self.train_labels, self.class_names, needed=1)

    @staticmethod
    def _check_images(split: str, images: npt.NDArray[np.generic]) -> None:
        """Check that the images of a split are of the kind that the class promises."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3}:
            raise TaskError(
                f"{split}_images: expected uint8 (N, H, W, C) with C = 1 or 3, got {images.dtype} "
                f"{images.shape}; Task.from_arrays converts other kinds"
            )
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in images.shape[1:3]):
            raise TaskError(
                f"{split}_images are {images.shape[1]} x {images.shape[2]} pixels; "
                f"expected {MIN_SIDE} to {MAX_SIDE} a side; resize them first"
            )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self) if field.init)

    def _split(self, split: str) -> tuple[Images, Labels]:
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def n_train(self) -> int:
        """Number of training images."""
        return len(self.train_images)

    @property
    def chance(self) -> float:
        """Validation accuracy of always guessing the class most frequent in training."""
        guess = np.bincount(self.train_labels, minlength=self.n_classes).argmax()
        return float((self.val_labels == guess).mean())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the shapes, images and labels of the three splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            images, labels = self._split(split)
            digest.update(f"{split} {images.shape} ".encode())
            digest.update(images.data)
            digest.update(labels.astype("<i8", copy=False).data)
        return digest.hexdigest()

    @property
    def folder(self) -> Path | None:
        """Folder that the task was loaded from, absolute, if that still holds it; else None."""
        if self._loaded_from is None:
            return None
        try:
            about = json.loads((self._loaded_from / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return self._loaded_from if about.get("fingerprint") == self.fingerprint else None

    def __eq__(self, other: object) -> bool:
        return self.fingerprint == other.fingerprint if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.image_shape)
        sizes = "/".join(str(len(self._split(split)[0])) for split in SPLITS)
        return (
            f"{type(self).__name__}({self.name!r}, {sizes} train/val/test images of {shape}, "
            f"{self.n_classes} classes)"
        )

    def subset(self, fraction: float, *, seed: int = 0) -> "Task":
        """Keep a share of the training and of the validation images, class by class.

        The test split is kept whole, so that errors can be compared. With one seed, the images
        of a smaller share are among those of a larger one.

        Parameters
        ----------
        fraction : float
            The share, in (0, 1], rounded to whole images; at least one image stays of each class
            of each split. 1 returns the task itself.
        seed : int, optional
            Seed of the draw.

        Returns
        -------
        Task
            Named ``"name@fraction"``.

        Raises
        ------
        TaskError
            If the fraction is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise TaskError(f"fraction {fraction!r}: expected a number above 0 and at most 1")
        if fraction == 1:
            return self
        rng = np.random.default_rng(seed)
        train = sample_classes(self.train_labels, fraction, rng)
        val = sample_classes(self.val_labels, fraction, rng)
        return replace(
            self,
            name=f"{self.name}@{fraction:g}",
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            val_images=self.val_images[val],
            val_labels=self.val_labels[val],
        )

    def save(self, folder: str | Path, *, images: bool = True) -> None:
        """Write the task as plain ``.npy`` files and a ``task.json``.

        Files are replaced one by one, never written in place: a process that has an older version
        of them mapped keeps what it has.

        Parameters
        ----------
        folder : str or Path
            Made if it isn't there.
        images : bool, optional
            False leaves the ``.npy`` files of the images alone, where they lie there already.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ABOUT).unlink(missing_ok=True)
        for split in SPLITS:
            parts: dict[str, npt.NDArray[np.generic]] = {"labels": self._split(split)[1]}
            if images:
                parts["images"] = self._split(split)[0]
            for part, array in parts.items():
                draft = folder / f"{split}_{part}.draft.npy"
                np.save(draft, array, allow_pickle=False)
                draft.replace(folder / f"{split}_{part}.npy")
        draft = folder / f"{_ABOUT}.draft"
        draft.write_text(json.dumps(self._about()), encoding="utf-8")
        draft.replace(folder / _ABOUT)

    def _about(self) -> dict[str, object]:
        """Give what ``task.json`` says of the task."""
        return {
            "name": self.name,
            "class_names": self.class_names,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def load(
        cls, folder: str | Path, mmap: bool = True, *, fingerprint: str | None = None
    ) -> "Task":
        """Read a task that `save` wrote.

        Parameters
        ----------
        folder : str or Path
            Where it was written.
        mmap : bool, optional
            Map the arrays read-only instead of copying them into memory: processes that load the
            same folder then share one copy.
        fingerprint : str, optional
            That of the task that was saved, where it is known. It is taken on trust, so that the
            images need not be read for it; by default it is computed when it is asked for.

        Returns
        -------
        Task
            A `FeatureTask` if that is what was saved.

        Raises
        ------
        TaskError
            If the folder holds no complete task.
        """
        folder = Path(folder).absolute()
        mode: Literal["r"] | None = "r" if mmap else None
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            arrays = {
                key: np.load(folder / f"{key}.npy", mmap_mode=mode, allow_pickle=False)
                for key in (f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))
            }
            options = {"name": about["name"], "class_names": tuple(about["class_names"]), **arrays}
            task = (
                FeatureTask(**options, origin=about["origin"])
                if "origin" in about
                else cls(**options)
            )
        except TaskError:
            raise
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise TaskError(
                f"{folder} holds no complete saved task ({error}); save it again"
            ) from error
        vars(task)["_loaded_from"] = folder
        if fingerprint is not None:
            vars(task)["fingerprint"] = fingerprint
        return task

    @classmethod
    def from_arrays(
        cls,
        images: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        test_images: npt.ArrayLike | None = None,
        test_labels: npt.ArrayLike | None = None,
        val_images: npt.ArrayLike | None = None,
        val_labels: npt.ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        seed: int = 0,
    ) -> "Task":
        """Make a task of arrays, drawing the splits that are not given.

        A missing test split takes 20 % of the images of each class, a missing validation split
        then 20 % of the rest; each rounded, and one image at least. So a class needs three images
        where both are missing, two where one is. The classes are the distinct `labels`, sorted
        and renumbered from 0. Given splits may lack some of them but not have others.

        Parameters
        ----------
        images, test_images, val_images : array_like
            Images of one shape: (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4 and
            sides from 8 to 224, of uint8, bool, uint16 (divided by 257) or floats in [0, 1]
            (times 255). A fourth channel is opacity over white. See `trautoml.images.as_images`.
        labels, test_labels, val_labels : array_like, shape (N,) or (N, 1)
            Integers or strings.
        class_names : sequence of str, optional
            A name for each class in sorted order; or more names, which integer labels index.
        name : str, optional
            What the task is called.
        seed : int, optional
            Seed of the splits.

        Returns
        -------
        Task
            With copies of the arrays.

        Raises
        ------
        TaskError
            If images or labels are not as described, a split has images without labels, there are
            fewer than two classes, or a class has too few images to split.
        """
        given = {"val": (val_images, val_labels), "test": (test_images, test_labels)}
        parts = {"train": _clean(images, labels, "train")}
        for split, (some_images, some_labels) in given.items():
            if (some_images is None) != (some_labels is None):
                lacking = "labels" if some_labels is None else "images"
                raise TaskError(f"the {split} split has no {lacking}; give both or neither")
            if some_images is not None and some_labels is not None:
                parts[split] = _clean(some_images, some_labels, split)
        return cls._from_parts(name, parts, class_names, seed, copy=True)

    @classmethod
    def _from_parts(
        cls,
        name: str,
        parts: Mapping[str, tuple[Images, npt.NDArray[np.generic]]],
        class_names: Sequence[str] | None,
        seed: int,
        *,
        copy: bool,
    ) -> "Task":
        """Renumber the classes and draw the missing splits."""
        classes = np.unique(parts["train"][1])
        names = name_classes(classes, class_names)
        encoded = {s: (x, encode_labels(y, classes, s)) for s, (x, y) in parts.items()}
        return cls._assemble(name, encoded, names, seed, copy=copy)

    @classmethod
    def _assemble(
        cls,
        name: str,
        parts: Mapping[str, tuple[Images, Labels]],
        class_names: tuple[str, ...],
        seed: int,
        *,
        copy: bool,
    ) -> "Task":
        """Draw the missing splits; with `copy`, given ones don't share memory with the task."""
        images, labels = parts["train"]
        check_counts(labels, class_names, needed=1 + ("val" not in parts) + ("test" not in parts))
        rng = np.random.default_rng(seed)
        split = {s: (x.copy() if copy and s != "train" else x, y) for s, (x, y) in parts.items()}
        train = np.arange(len(labels))
        for missing in ("test", "val"):
            if missing not in parts:
                kept, held_out = hold_out(labels[train], rng)
                split[missing] = images[train[held_out]], labels[train[held_out]]
                train = train[kept]
        if copy or len(train) < len(labels):
            split["train"] = images[train], labels[train]
        return cls(name, *split["train"], *split["val"], *split["test"], class_names)

    @classmethod
    def from_npz(cls, path: str | Path, *, name: str | None = None, seed: int = 0) -> "Task":
        """Make a task of a NumPy archive.

        Parameters
        ----------
        path : str or Path
            A ``.npz`` file with the arrays ``train_images`` and ``train_labels``, or ``x_train``
            and ``y_train``, or ``images`` and ``labels``, or ``x`` and ``y``; if it has them also
            ``test_images`` and ``test_labels``, ``val_images`` and ``val_labels`` (``x_test``,
            ``y_test``, ``x_val``, ``y_val``), and ``class_names``. Pickled objects are not read.
        name : str, optional
            What the task is called; the file's name without its ending by default.
        seed : int, optional
            Seed of the splits that are not given.

        Returns
        -------
        Task

        Raises
        ------
        TaskError
            If the file can't be read or lacks the arrays, and as in `from_arrays`.
        """
        path = Path(path).expanduser()
        return cls.from_arrays(**read_npz(path), name=name or path.stem, seed=seed)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        image_size: ImageSize | None = None,
        max_side: int = DEFAULT_SIDE,
        name: str | None = None,
        seed: int = 0,
    ) -> "Task":
        """Make a task of image files in class folders.

        Either the folder has one folder for each class, or it has ``train/`` and if need be
        ``val/`` (``valid/``) and ``test/``, each with class folders. Files are found at any depth
        in a class folder, by the endings in `trautoml.image_files.FORMATS`; hidden ones don't
        count. `trautoml.image_files.read_images` says how they are brought to one size and number
        of channels.

        Parameters
        ----------
        path : str or Path
            The folder.
        image_size : int or (int, int), optional
            Side, or height and width, from 8 to 224 pixels; by default the median size, scaled
            down to `max_side` at most.
        max_side : int, optional
            From 8 to 224 pixels. Default 64; more where a backbone is to see the images.
        name : str, optional
            What the task is called; the folder's name by default.
        seed : int, optional
            Seed of the splits that are not given.

        Returns
        -------
        Task

        Raises
        ------
        TaskError
            If there are no class folders, no images, fewer than two classes, or a class has too
            few images to split.

        Warns
        -----
        SkippedImageWarning
            Once, with the first ten files that could not be read and their number.
        """
        path = Path(path).expanduser()
        layout = scan_folder(path)
        found = [
            (split, label, file)
            for split, classes in layout.items()
            for label, files in classes.items()
            for file in files
        ]
        if not found:
            raise TaskError(
                f"no images in the class folders of {path}; "
                f"expected files ending in {', '.join(sorted(EXTENSIONS))}"
            )
        images, kept = read_images([file for _, _, file in found], open_file, image_size, max_side)
        classes = np.array(sorted(layout["train"]))
        labels = np.array([found[item][1] for item in kept], np.str_)
        rows = split_slices([found[item][0] for item in kept], layout)
        parts = {s: (images[at], encode_labels(labels[at], classes, s)) for s, at in rows.items()}
        names = tuple(classes.tolist())
        return cls._assemble(name or path.resolve().name, parts, names, seed, copy=False)

    @classmethod
    def from_torchvision(
        cls,
        name: str,
        *,
        root: str | Path,
        download: bool = True,
        image_size: ImageSize | None = None,
        max_side: int = DEFAULT_SIDE,
        seed: int = 0,
    ) -> "Task":
        """Make a task of a dataset in `torchvision.datasets`.

        Parameters
        ----------
        name : str
            The dataset, in letters of any case; for example ``"MNIST"``, ``"FashionMNIST"``,
            ``"KMNIST"``, ``"EMNIST"`` (its letters), ``"CIFAR10"``, ``"SVHN"``, ``"STL10"`` or
            ``"Flowers102"``. Splits that it doesn't have are drawn.
        root : str or Path
            Where the data lie or are downloaded to.
        download : bool, optional
            Download what is not there.
        image_size, max_side
            As in `from_folder`.
        seed : int, optional
            Seed of the splits that are not given.

        Returns
        -------
        Task

        Raises
        ------
        TaskError
            If there is no such dataset (the message lists names that come close), it can't be
            opened, or it is not one of images with a class each.
        """
        name = find_dataset(name)
        source = read_dataset(
            name, root=root, download=download, image_size=image_size, max_side=max_side
        )
        parts = {s: _clean(images, labels, s) for s, (images, labels) in source.parts.items()}
        return cls._from_parts(name, parts, source.class_names, seed, copy=False)


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTask(Task):
    """A task whose images are maps of features: what a frozen network makes of the images.

    Its fingerprint is not of the features, which differ by a rounding from machine to machine, but
    of what they were computed of and by.

    Parameters
    ----------
    train_images, val_images, test_images : ndarray of float16, shape (N, h, w, c)
        Finite features; h, w and c are 1 or more.
    origin : str
        Names the images and the network: equal origins mean equal features, but for roundings.

    The other parameters are those of `Task`.
    """

    origin: str

    @staticmethod
    def _check_images(split: str, images: npt.NDArray[np.generic]) -> None:
        if images.dtype != np.float16 or images.ndim != 4 or 0 in images.shape[1:]:
            raise TaskError(
                f"{split}_images: expected features as float16 (N, h, w, c) with sides and "
                f"channels of 1 or more, got {images.dtype} {images.shape}"
            )

    @staticmethod
    def fingerprint_of(origin: str) -> str:
        """SHA-256, in hex, of an origin."""
        return hashlib.sha256(origin.encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the origin."""
        return self.fingerprint_of(self.origin)

    def subset(self, fraction: float, *, seed: int = 0) -> "FeatureTask":
        """See `Task.subset`."""
        part = cast("FeatureTask", super().subset(fraction, seed=seed))
        if part is self:
            return self
        return replace(part, origin=f"{self.origin} subset {float(fraction)!r} {seed}")

    def _about(self) -> dict[str, object]:
        return {**super()._about(), "origin": self.origin}


def _clean(
    images: npt.ArrayLike, labels: npt.ArrayLike, split: str
) -> tuple[Images, npt.NDArray[np.generic]]:
    clean = as_images(images, split)
    return clean, clean_labels(labels, len(clean), split)


def _check_split(
    split: str, images: Images, labels: Labels, shape: tuple[int, ...], n_classes: int
) -> None:
    """Check one split against the promises of `Task`, whatever its images are."""
    if images.shape[1:] != shape:
        raise TaskError(
            f"{split}_images have shape {images.shape[1:]} but train_images {shape}; "
            "bring all splits to one shape"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise TaskError(
            f"{split}_labels: expected int64 {images.shape[:1]}, got {labels.dtype} {labels.shape}"
        )
    if len(labels) == 0:
        raise TaskError(f"the {split} split has no images; expected at least one")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise TaskError(
            f"{split}_labels: expected 0..{n_classes - 1}, got {labels.min()}..{labels.max()}; "
            "Task.from_arrays renumbers labels"
        )
