"""The weights of a supergraph in training: what ENAS and DARTS have in common."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trautoml.classifier import borrowed_random_state
from trautoml.device import autocast
from trautoml.networks import SuperNetwork
from trautoml.task import Task
from trautoml.training import task_tensors

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Normalised images ``(N, C, H, W)`` and labels ``(N,)``."""

Choice: TypeAlias = Mapping[str, Any]
"""A structure or a mixture: see `SuperNetwork`."""

_BATCH_SIZES = 16, 64

_STEPS_PER_EPOCH = 64
"""Batches are smaller where there are few images, so that an epoch has so many steps."""

_MOST_STEPS = 256
"""Of an epoch: of a large task it sees a part, so that it is done in some minutes on a CPU."""

_MOMENTUM = 0.9

_LARGEST_GRADIENT = 5.0
"""Norm that gradients are clipped to, in ENAS and in DARTS."""

_STREAMS = {"train": 4, "val": 5}
"""Keep the orders of images apart from other draws with the same seed."""


class SharedWeights:
    """The weights of a supergraph in training. Owned by one thread.

    They are trained as in ENAS and DARTS: stochastic gradient descent with momentum 0.9, gradients
    clipped to a norm of 5, and the learning rate along half a cosine. Batches are of 16 to 64
    images: of 64, unless an epoch had less than 64 steps then. An epoch has 256 steps at most.

    Batch normalisation goes by the batch, in evaluations too: the running statistics of weights
    that all children share are those of none.

    Parameters
    ----------
    task : Task
        Its training images train the weights.
    nodes : int
        Nodes of a cell.
    epochs : int
        The learning rate falls to 0 over so many.
    learning_rate, weight_decay : float
        Of the weights.
    seed : int
        Draws initial weights and the order of images.
    device : torch.device
        Where.

    Attributes
    ----------
    supernet : SuperNetwork
        The weights.
    step : int
        Batches that they were trained on.
    """

    def __init__(
        self,
        task: Task,
        nodes: int,
        *,
        epochs: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._data = task_tensors(task, device)
        self._mean = self._data.mean.to(device)
        self._inverse_sd = self._data.inverse_sd.to(device)
        self._seed = seed
        self._learning_rate = learning_rate
        self._orders: dict[str, tuple[int, torch.Tensor]] = {}
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        least, most = _BATCH_SIZES
        n_train = len(self._data.labels["train"])
        self._batch = max(least, min(most, n_train // _STEPS_PER_EPOCH))
        self.device = device
        self.step = 0
        self.steps_per_epoch = min(_MOST_STEPS, self._n_batches("train"))
        self.steps = epochs * self.steps_per_epoch
        with borrowed_random_state() as generator:
            generator.manual_seed(seed)  # torch.manual_seed reseeds CUDA too
            supernet = SuperNetwork(nodes, task.image_shape, task.n_classes)
        self.supernet: SuperNetwork = supernet.to(device)
        self.supernet.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=learning_rate,
            momentum=_MOMENTUM,
            weight_decay=weight_decay,
        )

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self._learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    @property
    def diverged(self) -> bool:
        """Whether a loss became infinite or NaN."""
        return not bool(self._finite)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return self._data.chance

    def give_up(self) -> None:
        """Let the training count as diverged."""
        self._finite.fill_(False)

    def batch(self, split: str, index: int) -> Batch:
        """Give batch `index` of an endless sequence that goes through a split in random orders."""
        turn, position = divmod(index, self._n_batches(split))
        if self._orders.get(split, (-1,))[0] != turn:
            rng = np.random.default_rng([self._seed, _STREAMS[split], turn])
            order = torch.from_numpy(rng.permutation(len(self._data.labels[split])))
            self._orders[split] = turn, order.to(self.device)
        size = self._size(split)
        return self._rows(split, self._orders[split][1][position * size : (position + 1) * size])

    def batches(self, split: str, at_most: int) -> Iterator[Batch]:
        """Go through some images of a split, the same ones each time, in batches of 64 or more."""
        labels = self._data.labels[split]
        chosen = np.random.default_rng([self._seed, _STREAMS[split]]).permutation(len(labels))
        rows = torch.from_numpy(chosen[:at_most]).to(self.device)
        for part in rows.tensor_split(max(1, len(rows) // _BATCH_SIZES[1])):
            yield self._rows(split, part)

    def _rows(self, split: str, rows: torch.Tensor) -> Batch:
        images = self._data.images[split][rows].permute(0, 3, 1, 2).to(self._mean.dtype)
        return (images - self._mean) * self._inverse_sd, self._data.labels[split][rows]

    def _size(self, split: str) -> int:
        return min(self._batch, len(self._data.labels[split]))

    def _n_batches(self, split: str) -> int:
        return len(self._data.labels[split]) // self._size(split)

    def loss(
        self, choice: Choice, batch: Batch, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Cross-entropy of a child or a mixture, by these weights or by others in their place."""
        images, labels = batch
        with autocast(self.device):
            logits = torch.func.functional_call(
                self.supernet, dict(weights or {}), (images, choice)
            )
            return functional.cross_entropy(logits, labels)

    def update(self, loss: torch.Tensor) -> None:
        """Take one step down a loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.supernet.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        self._finite &= torch.isfinite(loss.detach())
        self.step += 1

    @torch.no_grad()
    def n_correct(self, choice: Choice, batch: Batch) -> int:
        """Count the images of a batch that a child classifies correctly."""
        images, labels = batch
        with autocast(self.device):
            return int((self.supernet(images, choice).argmax(1) == labels).sum())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give all that `load_state_dict` needs to go on as if there had been no break."""
        state = {f"model.{k}": v.contiguous() for k, v in self.supernet.state_dict().items()}
        for name, parameter in self.supernet.named_parameters():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:  # some weights may not have been trained yet
                state[f"momentum.{name}"] = buffer.contiguous()
        return state | {"step": torch.tensor(self.step), "finite": self._finite}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state_dict` of a training with the same parameters gave."""
        self.supernet.load_state_dict({k: state[f"model.{k}"] for k in self.supernet.state_dict()})
        for name, parameter in self.supernet.named_parameters():
            if f"momentum.{name}" in state:
                buffer = torch.empty_like(parameter)
                buffer.copy_(state[f"momentum.{name}"])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        self.step = int(state["step"])
        self._finite.copy_(state["finite"])
