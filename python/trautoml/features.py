"""Features of a task: computed once by a frozen backbone, kept on disk, trained on as a task."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from trautoml.backbones import BATCH, FrozenBackbone
from trautoml.engine import Engine, SharedTask
from trautoml.errors import EngineError, InputError, StoreError, TaskError
from trautoml.task import SPLITS, FeatureTask, Task
from trautoml.tensor_files import write_tensors

_log = logging.getLogger("trautoml")

_BLOCK = 8 * BATCH
"""Images of one job: what a kill costs at most. Whole batches, so that all blocks are alike."""

_ANNOUNCED = 10**9
"""Bytes on the disk above which features are announced."""

_SECONDS_FILE = "seconds.json"
"""The seconds that each finished split took, and the origin of the features."""

_Shapes = Mapping[str, tuple[int, ...]]
"""Of the features of each split: ``(N, h, w, c)``."""


@dataclass(frozen=True)
class Features:
    """The features of a task and their price.

    Attributes
    ----------
    task : FeatureTask
        Mapped from the disk, not held in memory.
    seconds : float
        Worker seconds that computing them took, in however many runs.
    """

    task: FeatureTask
    seconds: float


@dataclass(frozen=True)
class FeatureJob:
    """The features of some images of a split, as an engine computes them.

    Parameters
    ----------
    task : SharedTask
        The images.
    frozen : FrozenBackbone
        What is made of them.
    split : str
        ``"train"``, ``"val"`` or ``"test"``.
    start, stop : int
        The images of the split.
    folder : Path
        Gets the features, in a file of the job's own.
    device : str
        See `resolve_device`.
    """

    task: SharedTask
    frozen: FrozenBackbone
    split: str
    start: int
    stop: int
    folder: Path
    device: str = "auto"

    @property
    def key(self) -> str:
        """Name of the result: a hash of everything that determines it."""
        content = [self.task.fingerprint, self.frozen.digest, self.split, self.start, self.stop]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def file(self) -> Path:
        """Where the features are left, with the seconds that they took."""
        return self.folder / f"{self.key}.safetensors"

    @property
    def seconds(self) -> float | None:
        """Seconds that the features took; None if they are not there, or damaged."""
        try:
            with safe_open(self.file, framework="np") as stored:
                return float(stored.metadata()["seconds"])
        except (FileNotFoundError, SafetensorError):
            return None

    def run(self) -> float:
        """Compute the features and return the seconds that it took.

        Raises
        ------
        InputError
            If the device is not there.
        OSError
            If the file can't be written.
        """
        started = time.perf_counter()
        images = getattr(self.task.load(), f"{self.split}_images")[self.start : self.stop]
        features = torch.from_numpy(self.frozen.features(images, self.device))
        seconds = time.perf_counter() - started
        write_tensors(self.file, {"features": features}, {"seconds": repr(seconds)})
        return seconds


def compute_features(
    task: Task,
    frozen: FrozenBackbone,
    engine: Engine,
    folder: Path | str,
    callback: Callable[[int, int], None] | None = None,
) -> Features:
    """Compute the features of all images of a task, or load them where they are there already.

    A run that is killed goes on with the blocks of images that it had not finished. While the
    blocks are put together, the features take the disk of their largest split once more; above 1 GB
    the log says so before anything is computed.

    Parameters
    ----------
    task : Task
        The images. What the engine holds of them is released in the end.
    frozen : FrozenBackbone
        The network.
    engine : Engine
        Where to compute, on its device.
    folder : Path or str
        Of this task and backbone alone: gets the features as a saved task.
    callback : callable, optional
        Called with (images done, images in all) after each block.

    Returns
    -------
    Features
        Of the same labels and classes; its fingerprint is of the task's and the backbone's.

    Raises
    ------
    InputError
        If the folder has the features of something else.
    StoreError
        If the features in the folder are damaged.
    EngineError
        If the work could not be run; call again to go on.
    OSError
        If the features can't be written.
    """
    folder = Path(folder).expanduser().absolute()
    parts = folder / "parts"
    origin = _origin(task, frozen)
    shapes = {s: (len(getattr(task, f"{s}_labels")), *frozen.feature_shape) for s in SPLITS}
    if not (folder / "task.json").is_file():
        _announce(task, shapes, folder)
        seconds = _finished(folder, origin, shapes)
        jobs = _compute(task, frozen, engine, parts, seconds, callback)
        _assemble(jobs, shapes, origin, seconds, folder)
        _save(task, origin, folder)
    shutil.rmtree(parts, ignore_errors=True)
    engine.release(task)
    return _load(folder, origin, shapes)


def fingerprint_of_features(task: Task, frozen: FrozenBackbone) -> str:
    """Give the fingerprint of what `compute_features` makes of a task, without computing it."""
    return FeatureTask.fingerprint_of(_origin(task, frozen))


def _origin(task: Task, frozen: FrozenBackbone) -> str:
    return f"{task.fingerprint} {frozen.digest}"


def _announce(task: Task, shapes: _Shapes, folder: Path) -> None:
    """Log what the features take on the disk, if that is much."""
    sizes = [math.prod(shape) * np.dtype(np.float16).itemsize for shape in shapes.values()]
    if sum(sizes) > _ANNOUNCED:
        _log.info(
            "features of %s take %.1f GB in %s, and up to %.1f GB while they are put together",
            task.name,
            sum(sizes) / 1e9,
            folder,
            (sum(sizes) + max(sizes)) / 1e9,
        )


def _finished(folder: Path, origin: str, shapes: _Shapes) -> dict[str, float]:
    """Give the seconds of the splits whose features are in place; none if something is damaged."""
    try:
        about = json.loads((folder / _SECONDS_FILE).read_text(encoding="utf-8"))
        return {
            split: float(seconds)
            for split, seconds in about["seconds"].items()
            if about["origin"] == origin
            and np.load(_maps_file(folder, split), mmap_mode="r").shape == shapes[split]
        }
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _maps_file(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.npy"


def _compute(
    task: Task,
    frozen: FrozenBackbone,
    engine: Engine,
    parts: Path,
    finished: Container[str],
    callback: Callable[[int, int], None] | None,
) -> list[FeatureJob]:
    """Leave the features of each block of images, but of finished splits, in a file of its own."""
    shared = engine.share(task)
    jobs = [
        FeatureJob(shared, frozen, split, start, min(start + _BLOCK, n), parts, engine.device)
        for split in SPLITS
        for n in [len(getattr(task, f"{split}_labels"))]
        for start in range(0, n, _BLOCK)
    ]
    waiting = [job for job in jobs if job.split not in finished and job.seconds is None]
    in_all = _n_images(jobs)
    done = in_all - _n_images(waiting)
    for index, _ in engine.run(waiting):
        done += _n_images([waiting[index]])
        if callback is not None:
            callback(done, in_all)
    return jobs


def _n_images(jobs: Sequence[FeatureJob]) -> int:
    return sum(job.stop - job.start for job in jobs)


def _assemble(
    jobs: Sequence[FeatureJob],
    shapes: _Shapes,
    origin: str,
    finished: Mapping[str, float],
    folder: Path,
) -> None:
    """Put the blocks of each split together, and remove them once it is in place."""
    done = dict(finished)
    for split in SPLITS:
        if split in finished:
            continue
        parts = [job for job in jobs if job.split == split]
        spent = [seconds for job in parts if (seconds := job.seconds) is not None]
        if len(spent) < len(parts):
            raise EngineError("expected the features of all images: an engine must run every job")
        _join(parts, shapes[split], _maps_file(folder, split))
        done[split] = sum(spent)
        draft = folder / f"{_SECONDS_FILE}.draft"
        draft.write_text(json.dumps({"origin": origin, "seconds": done}), encoding="utf-8")
        draft.replace(folder / _SECONDS_FILE)
        for job in parts:
            job.file.unlink()


def _join(parts: Sequence[FeatureJob], shape: tuple[int, ...], file: Path) -> None:
    """Write the blocks one after another as an array, one in memory at a time."""
    draft = file.with_suffix(".draft.npy")
    with draft.open("wb") as whole:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(whole, header)
        for job in parts:
            whole.write(load_file(job.file)["features"].data)
    draft.replace(file)


def _save(task: Task, origin: str, folder: Path) -> None:
    """Make the features that are in place a saved task."""
    maps = {f"{s}_images": np.load(_maps_file(folder, s), mmap_mode="r") for s in SPLITS}
    FeatureTask(
        name=task.name,
        train_labels=task.train_labels,
        val_labels=task.val_labels,
        test_labels=task.test_labels,
        class_names=task.class_names,
        origin=origin,
        **maps,
    ).save(folder, images=False)


def _load(folder: Path, origin: str, shapes: _Shapes) -> Features:
    try:
        task = Task.load(folder)
    except TaskError as error:
        raise _damaged(folder, error) from error
    if getattr(task, "origin", None) != origin:
        raise InputError(
            f"{folder} has {task}, but not the features that were asked for: use another folder"
        )
    seconds = _finished(folder, origin, shapes)
    if len(seconds) < len(SPLITS):
        raise _damaged(folder, f"{_SECONDS_FILE} is not of all of them")
    return Features(cast("FeatureTask", task), sum(seconds.values()))


def _damaged(folder: Path, reason: object) -> StoreError:
    return StoreError(
        f"the features in {folder} are damaged ({reason}): remove the folder, and they are "
        "computed again"
    )
