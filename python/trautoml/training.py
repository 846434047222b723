"""Train a model spec on a task under a budget: device, precision, divergence, checkpoints."""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from trautoml.engine import SharedTask
from trautoml.errors import InputError
from trautoml.spec import ModelSpec
from trautoml.task import Task

_EVALUATION_FLOATS = 2**21
"""Input floats of one evaluation batch: bounds the memory that evaluation needs."""

_RANDOM_STATE = threading.Lock()
"""Held while torch's global random state is borrowed: trainings may run in several threads."""


@dataclass(frozen=True)
class TrainingResult:
    """What one training came to.

    Attributes
    ----------
    score : float
        Validation accuracy in [0, 1]; the task's chance level if the training diverged.
    test_score : float or None
        Test accuracy, where it was asked for.
    epochs : float
        Epochs trained in all; below what was asked for only if the time ran out, or if an earlier
        piece of the training diverged: nothing is trained after that.
    seconds : float
        Time of this piece of training and its evaluation, on one worker.
    diverged : bool
        Whether the loss or the outputs on validation images became infinite or NaN.
    """

    score: float
    test_score: float | None
    epochs: float
    seconds: float
    diverged: bool


@dataclass(frozen=True)
class TrainingJob:
    """One training, or the next piece of one, as an engine runs it.

    The result is a function of all fields but `checkpoint` and `device`: a checkpoint only saves
    the epochs that an earlier job of the same training has done.

    Parameters
    ----------
    task : SharedTask
        From `Engine.share`.
    spec : ModelSpec
        What to train.
    epochs : float
        Train until this many epochs are done; a fraction sees a random part of the images.
    schedule_epochs : float, optional
        The learning rate falls to 0 over this many epochs. Default: `epochs`.
    seconds : float, optional
        Stop earlier when this much time has passed.
    seed : int
        Draws initial weights and batch order.
    max_val : int, optional
        Score on at most this many validation images, the same ones for every training.
    test : bool
        Evaluate on the test split too.
    device : str
        ``"auto"`` (CUDA if present), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on.
    checkpoint : Path, optional
        File to go on from, if it is there, and to leave the state in.
    """

    task: SharedTask
    spec: ModelSpec
    epochs: float
    schedule_epochs: float | None = None
    seconds: float | None = None
    seed: int = 0
    max_val: int | None = None
    test: bool = False
    device: str = "auto"
    checkpoint: Path | None = None

    @property
    def key(self) -> str:
        """Name of the result: a hash of everything that determines it."""
        schedule = self.schedule_epochs or self.epochs
        content = [self.task.fingerprint, self.spec.to_json(), float(self.epochs), float(schedule)]
        seconds = None if self.seconds is None else float(self.seconds)
        content += [seconds, self.seed, self.max_val, self.test]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def checkpoint_is_there(self) -> bool:
        """Whether the file that the job leaves its state in exists."""
        return self.checkpoint is not None and self.checkpoint.is_file()

    def run(self) -> TrainingResult:
        """Train and evaluate."""
        started = time.perf_counter()
        trainer = Trainer(self.task.load(), self.spec, seed=self.seed, device=self.device)
        if self.checkpoint is not None:
            trainer.load(self.checkpoint, at_most=self.epochs)
        trainer.train(
            self.epochs, schedule_epochs=self.schedule_epochs or self.epochs, seconds=self.seconds
        )
        score = trainer.evaluate("val", self.max_val)
        diverged = trainer.diverged
        test_score = trainer.evaluate("test") if self.test else None
        if self.checkpoint is not None:
            trainer.save(self.checkpoint)
        return TrainingResult(
            score=score,
            test_score=test_score,
            epochs=trainer.epochs,
            seconds=time.perf_counter() - started,
            diverged=diverged,
        )


def resumable_job(
    workspace: Path,
    task: SharedTask,
    spec: ModelSpec,
    *,
    epochs: float,
    schedule_epochs: float,
    seed: int,
    device: str,
    test: bool = False,
) -> TrainingJob:
    """Make a job that goes on from where the last one of the same training stopped."""
    name = f"{spec.digest}-{seed}-{float(schedule_epochs)!r}.safetensors"
    return TrainingJob(
        task,
        spec,
        epochs,
        schedule_epochs=schedule_epochs,
        seed=seed,
        test=test,
        device=device,
        checkpoint=checkpoint_folder(workspace, task.fingerprint) / name,
    )


def checkpoint_folder(workspace: Path, fingerprint: str) -> Path:
    """Where the checkpoints of a task's trainings lie."""
    return workspace / "checkpoints" / fingerprint


class ImageClassifier(nn.Module):
    """A network with the normalisation of its input.

    Parameters
    ----------
    spec : ModelSpec
        Builds the network.
    image_shape : tuple of int
        ``(H, W, C)``.
    n_classes : int
        Number of classes.
    """

    mean: torch.Tensor
    inverse_sd: torch.Tensor

    def __init__(self, spec: ModelSpec, image_shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.n_classes = n_classes
        self.network = spec.build(image_shape, n_classes)
        channels = (1, image_shape[2], 1, 1)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("inverse_sd", torch.ones(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images ``(N, H, W, C)`` to logits ``(N, n_classes)``."""
        # The permuted view of (N, H, W, C) is what torch calls channels-last: no copy is made.
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        logits: torch.Tensor = self.network((pixels - self.mean) * self.inverse_sd)
        return logits

    @torch.inference_mode()
    def predict_proba(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities ``(N, n_classes)`` of uint8 images ``(N, H, W, C)``.

        Raises
        ------
        InputError
            If the images are of another type or shape than those of the task.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise InputError(
                f"expected uint8 images (N, {', '.join(map(str, self.image_shape))}), "
                f"got {images.dtype} {images.shape}; bring them to the form of the task's images"
            )
        if len(images) == 0:
            return np.empty((0, self.n_classes), np.float32)
        self.eval()
        device = self.mean.device
        batch = _evaluation_batch(images.shape[1:])
        parts = [
            functional.softmax(self(torch.tensor(images[i : i + batch], device=device)), dim=1)
            for i in range(0, len(images), batch)
        ]
        return torch.cat(parts).cpu().numpy()


class Trainer:
    """One training in progress. Owned by one thread.

    Parameters
    ----------
    task : Task
        Its tensors are put on the device once and stay there for the next training.
    spec : ModelSpec
        What to train.
    seed : int
        Draws initial weights and batch order; on a CPU the same seed gives the same result,
        whether or not the training is interrupted in between.
    device : str
        See `TrainingJob`.
    """

    def __init__(self, task: Task, spec: ModelSpec, *, seed: int = 0, device: str = "auto") -> None:
        self._data = _tensors(task, resolve_device(device))
        self._device = self._data.device
        self._hyper = spec.hyper
        self._seed = seed
        self._loss_diverged = self._outputs_diverged = False
        self._step = 0
        n_train = len(self._data.labels["train"])
        self._batch = min(spec.hyper.batch_size, n_train)
        # A last, smaller batch is left out: batch normalisation fails on a batch of one.
        self._steps_per_epoch = n_train // self._batch

        with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds CUDA too
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
                # Gathered on the device; read once at the end, so CUDA never waits for the host.
                finite &= torch.isfinite(self._train_step())
                self._step += 1
                self._outputs_diverged = False
        self._loss_diverged = self._loss_diverged or not bool(finite)

    def _last_step(self, epochs: float) -> int:
        return max(1, round(epochs * self._steps_per_epoch))

    def _train_step(self) -> torch.Tensor:
        epoch, index = divmod(self._step, self._steps_per_epoch)
        rows = self._order(epoch)[index * self._batch : (index + 1) * self._batch]
        images, labels = self._data.images["train"][rows], self._data.labels["train"][rows]
        with _autocast(self._device):
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
        batch = _evaluation_batch(images.shape[1:])
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        finite = torch.ones((), dtype=torch.bool, device=self._device)
        with torch.inference_mode(), one_thread(self._device), _autocast(self._device):
            for i in range(0, len(labels), batch):
                logits = self.classifier(images[i : i + batch])
                correct += (logits.argmax(1) == labels[i : i + batch]).sum()
                finite &= torch.isfinite(logits).all()
        if not bool(finite):
            self._outputs_diverged = True
            return self._data.chance
        return int(correct) / len(labels)

    def save(self, file: Path) -> None:
        """Write weights, momentum and position to a safetensors file, all or nothing."""
        tensors = {f"model.{k}": v.contiguous() for k, v in self.classifier.state_dict().items()}
        for index, parameter in enumerate(self.classifier.parameters()):
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{index}"] = buffer.contiguous()
        position = {"step": str(self._step), "diverged": str(int(self._loss_diverged))}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata=position)
        partial.replace(file)

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
        return True


def load_classifier(
    file: Path, spec: ModelSpec, image_shape: tuple[int, int, int], n_classes: int
) -> ImageClassifier:
    """Read the classifier that `Trainer.save` left, on the CPU and in evaluation mode."""
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        classifier = ImageClassifier(spec, image_shape, n_classes)
    with safe_open(file, framework="pt") as stored:
        classifier.load_state_dict(
            {name: stored.get_tensor(f"model.{name}") for name in classifier.state_dict()}
        )
    return classifier.eval()


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"`` into CUDA where it is present, else the CPU.

    Raises
    ------
    InputError
        If the device is unknown or not present.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'expected device "auto", "cpu" or "cuda[:N]", got {device!r}') from error
    if found.type not in {"cpu", "cuda"}:
        raise InputError(f'expected device "auto", "cpu" or "cuda[:N]", got {device!r}')
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f'device {device!r} was asked for, but torch sees no CUDA; use "cpu"')
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} was asked for, but torch sees only {torch.cuda.device_count()}"
        )
    return found


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Use one torch thread on a CPU: faster for small networks, and the same result everywhere."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _autocast(device: torch.device) -> torch.autocast:
    # bfloat16 has the range of float32, so no loss scaling is needed.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@dataclass(frozen=True)
class _TaskTensors:
    device: torch.device
    images: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    mean: torch.Tensor
    inverse_sd: torch.Tensor
    chance: float


@lru_cache(maxsize=2)
def _tensors(task: Task, device: torch.device) -> _TaskTensors:
    """Put a task on a device; kept for the next training on the same task."""
    splits = {
        "train": (task.train_images, task.train_labels),
        "val": (task.val_images, task.val_labels),
        "test": (task.test_images, task.test_labels),
    }
    pixels = task.train_images.reshape(-1, task.image_shape[2])
    sd = np.maximum(pixels.std(0, dtype=np.float64), 1.0)  # a constant channel is left as it is
    channels = (1, -1, 1, 1)
    return _TaskTensors(
        device=device,
        images={name: torch.tensor(images, device=device) for name, (images, _) in splits.items()},
        labels={name: torch.tensor(labels, device=device) for name, (_, labels) in splits.items()},
        mean=torch.tensor(pixels.mean(0, dtype=np.float64), dtype=torch.float32).view(channels),
        inverse_sd=torch.tensor(1 / sd, dtype=torch.float32).view(channels),
        chance=task.chance,
    )


def _draw_weights(module: nn.Module, sd: float) -> None:
    """Draw weights from a normal of `sd` He units; biases start at 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, std=sd * math.sqrt(2 / fan_in))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _evaluation_batch(image_shape: tuple[int, ...] | torch.Size) -> int:
    return max(16, min(512, _EVALUATION_FLOATS // math.prod(image_shape)))
