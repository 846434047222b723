"""A trained model as it is used: from uint8 images to class probabilities."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from trautoml.errors import InputError
from trautoml.spec import ModelSpec

_EVALUATION_FLOATS = 2**21
"""Input floats of one evaluation batch: bounds the memory that evaluation needs."""

_RANDOM_STATE = threading.Lock()
"""Held while torch's global random state is borrowed: trainings may run in several threads."""


class Classifier(nn.Module):
    """What maps uint8 images to logits.

    Parameters
    ----------
    image_shape : tuple of int
        ``(H, W, C)``.
    n_classes : int
        Number of classes.
    batch_size : int
        Images of one prediction batch.
    """

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, batch_size: int) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.n_classes = n_classes
        self._batch_size = batch_size

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
        device = next(self.parameters()).device
        batch = self._batch_size
        parts = [
            functional.softmax(self(torch.tensor(images[i : i + batch], device=device)), dim=1)
            for i in range(0, len(images), batch)
        ]
        return torch.cat(parts).cpu().numpy()


class ImageClassifier(Classifier):
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
        super().__init__(image_shape, n_classes, evaluation_batch(image_shape))
        self.network = spec.build(image_shape, n_classes)
        channels = (1, image_shape[2], 1, 1)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("inverse_sd", torch.ones(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, H, W, C)``, uint8 or features, to logits ``(N, n_classes)``."""
        # The permuted view of (N, H, W, C) is what torch calls channels-last: no copy is made.
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        logits: torch.Tensor = self.network((pixels - self.mean) * self.inverse_sd)
        return logits


def load_classifier(
    file: Path, spec: ModelSpec, image_shape: tuple[int, int, int], n_classes: int
) -> ImageClassifier:
    """Read the classifier that `Trainer.save` left, on the CPU and in evaluation mode."""
    with borrowed_random_state():
        classifier = ImageClassifier(spec, image_shape, n_classes)
    with safe_open(file, framework="pt") as stored:
        classifier.load_state_dict(
            {name: stored.get_tensor(f"model.{name}") for name in classifier.state_dict()}
        )
    return classifier.eval()


@contextmanager
def borrowed_random_state() -> Iterator[torch.Generator]:
    """Hand out torch's CPU generator, which building a network draws from, and restore it."""
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        yield torch.default_generator


def evaluation_batch(image_shape: tuple[int, ...] | torch.Size) -> int:
    """Images of one evaluation batch."""
    return max(16, min(512, _EVALUATION_FLOATS // math.prod(image_shape)))
