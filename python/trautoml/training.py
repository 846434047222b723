"""Train a model spec on a task under a budget: device, precision, divergence, checkpoints."""

import math
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from trautoml.classifier import (
    ImageClassifier,
    borrowed_random_state,
    evaluation_batch,
    load_classifier,
)
from trautoml.device import autocast, one_thread, resolve_device
from trautoml.errors import InputError, SpecError
from trautoml.networks.morphism import inherit
from trautoml.spec import ModelSpec
from trautoml.task import Task
from trautoml.tensor_files import write_tensors

_MOMENT_IMAGES = 5000
"""Training images, at most, that the mean and spread of the channels are taken from."""

_PART_PIXELS = 2**20
"""Pixels, or values of features, counted at a time: bounds the memory that the counting needs."""

_LEAST_SPREAD = 0.1
"""Least spread that a channel of features counts as having, as a share of the usual one."""


class Trainer:
    """One training in progress. Owned by one thread.

    Parameters
    ----------
    task : Task
        Its tensors are put on the device once and stay there for the next training on it. Images
        are normalised by mean and standard deviation of the channels, taken from the training
        images; where these are more than 5,000, from 5,000 evenly spaced ones.
    spec : ModelSpec
        What to train.
    seed : int
        Draws initial weights and batch order; on a CPU the same seed gives the same result,
        whether or not the training is interrupted in between.
    device : str
        See `resolve_device`.

    Attributes
    ----------
    notes : mapping of str to str
        What `save` was given with the checkpoint that was loaded; else empty.

    Raises
    ------
    InputError
        If the device is unknown, not present or has too little memory for the task.
    """

    def __init__(self, task: Task, spec: ModelSpec, *, seed: int = 0, device: str = "auto") -> None:
        self._data = task_tensors(task, resolve_device(device))
        self._device = self._data.device
        self._spec, self._hyper = spec, spec.hyper
        self._seed = seed
        self._loss_diverged = self._outputs_diverged = False
        self._step = 0
        self.notes: Mapping[str, str] = {}
        n_train = len(self._data.labels["train"])
        self._batch = min(spec.hyper.batch_size, n_train)
        # A last, smaller batch is left out: batch normalisation fails on a batch of one.
        self._steps_per_epoch = n_train // self._batch

        with borrowed_random_state() as generator:
            generator.manual_seed(seed)  # torch.manual_seed reseeds CUDA too
            classifier = ImageClassifier(spec, task.image_shape, task.n_classes)
            _draw_weights(classifier, spec.hyper.init_sd)
        classifier.mean.copy_(self._data.mean)
        classifier.inverse_sd.copy_(self._data.inverse_sd)
        self.classifier: ImageClassifier = classifier.to(self._device)
        self.classifier.network.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(
            self.classifier.parameters(),
            lr=spec.hyper.learning_rate,
            momentum=spec.hyper.momentum,
            weight_decay=spec.hyper.weight_decay,
            nesterov=spec.hyper.momentum > 0,
            fused=True,
        )

    @property
    def epochs(self) -> float:
        """Epochs done."""
        return self._step / self._steps_per_epoch

    @property
    def diverged(self) -> bool:
        """Whether the loss, or an output in an evaluation since, became infinite or NaN."""
        return self._loss_diverged or self._outputs_diverged

    def train(self, epochs: float, *, schedule_epochs: float, seconds: float | None = None) -> None:
        """Train on until `epochs` are done in all, or until `seconds` have passed.

        A training that diverges goes on to the end of the epoch at most.

        Raises
        ------
        InputError
            Unless 0 < `epochs` <= `schedule_epochs` < infinity.
        """
        if not 0 < epochs <= schedule_epochs < math.inf:
            raise InputError(
                "expected 0 < epochs <= schedule_epochs < infinity, "
                f"got {epochs} and {schedule_epochs}"
            )
        deadline = math.inf if seconds is None else time.perf_counter() + seconds
        last, schedule = self._last_step(epochs), self._last_step(schedule_epochs)
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        self.classifier.train()
        with one_thread(self._device):
            while not self._loss_diverged and self._step < last and time.perf_counter() < deadline:
                for group in self._optimizer.param_groups:
                    cosine = math.cos(math.pi * self._step / schedule)
                    group["lr"] = self._hyper.learning_rate * 0.5 * (1 + cosine)
                # Gathered on the device and read once an epoch: CUDA hardly waits for the host.
                finite &= torch.isfinite(self._train_step())
                self._step += 1
                self._outputs_diverged = False
                if self._step % self._steps_per_epoch == 0:
                    self._loss_diverged = not bool(finite)
        self._loss_diverged = self._loss_diverged or not bool(finite)

    def give_up(self) -> None:
        """Let the training count as diverged, at a step of which it did one at least."""
        self._loss_diverged, self._step = True, max(1, self._step)

    def _last_step(self, epochs: float) -> int:
        return max(1, round(epochs * self._steps_per_epoch))

    def _train_step(self) -> torch.Tensor:
        epoch, index = divmod(self._step, self._steps_per_epoch)
        rows = self._order(epoch)[index * self._batch : (index + 1) * self._batch]
        images, labels = self._data.images["train"][rows], self._data.labels["train"][rows]
        with autocast(self._device):
            loss = functional.cross_entropy(self.classifier(images), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def _order(self, epoch: int) -> torch.Tensor:
        if getattr(self, "_epoch", None) != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(len(self._data.labels["train"]))
            self._epoch, self._rows = epoch, torch.from_numpy(order).to(self._device)
        return self._rows

    def evaluate(self, split: str, at_most: int | None = None) -> float:
        """Accuracy on ``"val"`` or ``"test"``; the chance level if the training diverged.

        It doesn't change the training: outputs that overflow here make `diverged` true until
        the next step.

        Raises
        ------
        InputError
            If `at_most` is below 1.
        """
        if at_most is not None and at_most < 1:
            raise InputError(f"expected to evaluate at least 1 image, got at most {at_most}")
        images, labels = self._data.images[split], self._data.labels[split]
        if at_most is not None and len(labels) > at_most:
            chosen = np.random.default_rng(0).choice(len(labels), at_most, replace=False)
            rows = torch.from_numpy(np.sort(chosen)).to(self._device)
            images, labels = images[rows], labels[rows]
        if self.diverged:
            return self._data.chance
        self.classifier.eval()
        batch = evaluation_batch(images.shape[1:])
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        with torch.inference_mode(), one_thread(self._device), autocast(self._device):
            for i in range(0, len(labels), batch):
                logits = self.classifier(images[i : i + batch])
                correct += (logits.argmax(1) == labels[i : i + batch]).sum()
                finite &= torch.isfinite(logits).all()
        if not bool(finite):
            self._outputs_diverged = True
            return self._data.chance
        return int(correct) / len(labels)

    def save(self, file: Path, notes: Mapping[str, str] | None = None) -> None:
        """Write weights, momentum and position to a safetensors file, all or nothing.

        Parameters
        ----------
        file : Path
            Where to; its folder is made if it isn't there.
        notes : mapping of str to str, optional
            Kept with them, for the one who loads the file.

        Raises
        ------
        OSError
            If it can't be written.
        """
        tensors = {f"model.{k}": v.contiguous() for k, v in self.classifier.state_dict().items()}
        for index, parameter in enumerate(self.classifier.parameters()):
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{index}"] = buffer.contiguous()
        position = {"step": str(self._step), "diverged": str(int(self._loss_diverged))}
        write_tensors(file, tensors, {**(notes or {}), **position})

    def load(self, file: Path, *, at_most: float) -> bool:
        """Go on from a checkpoint, if there is a whole one that is not past `at_most` epochs.

        Returns
        -------
        bool
            Whether the checkpoint was taken; if not, nothing has changed.
        """
        try:
            opened = safe_open(file, framework="pt")
        except (FileNotFoundError, SafetensorError):  # none, or damaged: train from the start
            return False
        with opened as stored:
            if int(stored.metadata()["step"]) > self._last_step(at_most):
                return False
            names = set(stored.keys())
            state = {k: stored.get_tensor(f"model.{k}") for k in self.classifier.state_dict()}
            self.classifier.load_state_dict(state)
            for index, parameter in enumerate(self.classifier.parameters()):
                if f"momentum.{index}" in names:
                    buffer = torch.empty_like(parameter)
                    buffer.copy_(stored.get_tensor(f"momentum.{index}"))
                    self._optimizer.state[parameter]["momentum_buffer"] = buffer
            self._step = int(stored.metadata()["step"])
            self._loss_diverged = stored.metadata()["diverged"] == "1"
            self._outputs_diverged = False
            self.notes = stored.metadata()
        return True

    def inherit(self, parent: Path, parent_spec: ModelSpec) -> None:
        """Begin anew, with weights that compute what a trained smaller network does.

        A child of a training whose loss diverged counts as diverged.

        Parameters
        ----------
        parent : Path
            What `save` left of a training on the same task.
        parent_spec : ModelSpec
            What was trained; its structure is one morphism step before this trainer's.

        Raises
        ------
        SpecError
            If one of the two isn't a chain, or they are not one step apart.
        InputError
            If the file is no whole checkpoint of such a training.
        """
        for spec in (self._spec, parent_spec):
            if spec.architecture != "chain":
                raise SpecError(
                    f'expected architecture "chain", of parent and child, got {spec.architecture!r}'
                )
        try:
            with safe_open(parent, framework="pt") as stored:
                diverged = stored.metadata()["diverged"] == "1"
            shape, n_classes = self.classifier.image_shape, self.classifier.n_classes
            trained = load_classifier(parent, parent_spec, shape, n_classes)
        except (FileNotFoundError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"expected a checkpoint of the parent, got {parent} ({error}): train it first"
            ) from error
        # As many images as memory has room for: a batch of training, or one of evaluation.
        rows = self._order(0)[: max(self._batch, evaluation_batch(shape))]
        pixels = self._data.images["train"][rows].permute(0, 3, 1, 2).float()
        with one_thread(self._device):
            inherit(
                self.classifier.network,
                self._spec.structure,
                trained.network.to(self._device),
                parent_spec.structure,
                inputs=(pixels - self.classifier.mean) * self.classifier.inverse_sd,
                seed=self._seed,
            )
        self._optimizer.state.clear()
        self._step, self._loss_diverged, self._outputs_diverged = 0, False, False
        if diverged:
            self.give_up()


@dataclass(frozen=True)
class TaskTensors:
    """A task on a device.

    Attributes
    ----------
    device : torch.device
        Where.
    images : dict of str to torch.Tensor
        ``(N, H, W, C)`` of ``"train"``, ``"val"`` and ``"test"``.
    labels : dict of str to torch.Tensor
        ``(N,)`` of each.
    mean, inverse_sd : torch.Tensor
        What `ImageClassifier` normalises with, ``(1, C, 1, 1)``; on the CPU.
    chance : float
        Accuracy of guessing.
    """

    device: torch.device
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    mean: torch.Tensor
    inverse_sd: torch.Tensor
    chance: float


_kept: dict[tuple[str, torch.device], TaskTensors] = {}
"""The task that was put on a device last, by its fingerprint."""

_KEEPING = threading.Lock()


def task_tensors(task: Task, device: torch.device) -> TaskTensors:
    """Put a task on a device, in the place of the last one; kept for the next training on it."""
    key = task.fingerprint, device
    with _KEEPING:
        if key not in _kept:
            _kept.clear()  # first: a device need not have room for two
            try:
                _kept[key] = _put(task, device)
            except torch.cuda.OutOfMemoryError as error:
                raise InputError(
                    f"{task.name} doesn't fit into the memory of {device}: free some, "
                    'take a share of its images, or use device "cpu"'
                ) from error
        return _kept[key]


def _put(task: Task, device: torch.device) -> TaskTensors:
    splits = {
        "train": (task.train_images, task.train_labels),
        "val": (task.val_images, task.val_labels),
        "test": (task.test_images, task.test_labels),
    }
    moments = _feature_moments if task.train_images.dtype == np.float16 else _channel_moments
    mean, sd = moments(task.train_images)
    channels = (1, -1, 1, 1)
    return TaskTensors(
        device=device,
        images={name: _on(device, images) for name, (images, _) in splits.items()},
        labels={name: _on(device, labels) for name, (_, labels) in splits.items()},
        mean=torch.tensor(mean, dtype=torch.float32).view(channels),
        inverse_sd=torch.tensor(1 / sd, dtype=torch.float32).view(channels),
        chance=task.chance,
    )


def _on(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        # The array is read-only, of which torch warns; nobody writes to it. On a CPU no copy is
        # made, so that all workers read the one copy that is mapped from the disk.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array).to(device)


def _channel_moments(
    images: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel; a constant channel has 1.

    Of all images, or of 5,000 evenly spaced ones where there are more.
    """
    n, n_channels = min(len(images), _MOMENT_IMAGES), images.shape[3]
    rows = np.arange(n) * len(images) // n
    counts = np.zeros((n_channels, 256), dtype=np.int64)
    n_part = max(1, _PART_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, n, n_part):  # counted in parts: no copy of all pixels is made
        part = images[rows[start : start + n_part]]
        for channel in range(n_channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    levels = np.arange(256)
    n_pixels = counts[0].sum()
    mean = counts @ levels / n_pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / n_pixels
    return mean, np.maximum(np.sqrt(variance), 1.0)


def _feature_moments(
    features: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each channel of float16 maps, of the same rows.

    A channel that is hardly ever active is not blown up: a standard deviation is at least a tenth
    of the root of the mean variance; 1 where all channels are constant.
    """
    n = min(len(features), _MOMENT_IMAGES)
    rows = np.arange(n) * len(features) // n
    total, squares = np.zeros((2, features.shape[3]))
    n_part = max(1, _PART_PIXELS // features[0].size)
    for start in range(0, n, n_part):
        part = features[rows[start : start + n_part]].reshape(-1, features.shape[3])
        values = part.astype(np.float64)
        total += values.sum(0)
        squares += np.square(values).sum(0)  # the square of a float16 is exact in float64
    n_pixels = n * features.shape[1] * features.shape[2]
    mean = total / n_pixels
    variance = np.maximum(squares / n_pixels - mean**2, 0.0)
    sd = np.maximum(np.sqrt(variance), _LEAST_SPREAD * np.sqrt(variance.mean()))
    return mean, np.where(sd > 0, sd, 1.0)


def _draw_weights(module: nn.Module, sd: float) -> None:
    """Draw weights from a normal of `sd` He units; biases start at 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, std=sd * math.sqrt(2 / fan_in))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
