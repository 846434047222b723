"""The training of a supergraph as an engine runs it: how, until when, and what it came to."""

import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from trautoml.device import one_thread, resolve_device
from trautoml.engine import SharedTask
from trautoml.search._shared_weights import SharedWeights
from trautoml.tensor_files import write_tensors

_log = logging.getLogger(__name__)

_TIMED_STEPS = 2

_JUDGED = 512
"""Validation images, at most, that children are compared on after each epoch."""

Structure = dict[str, Any]
"""See `build_cells`."""


class Policy(ABC):
    """Chooses among the children of a supergraph, and learns to. Owned by one thread."""

    @abstractmethod
    def train(self, steps: int) -> None:
        """Train the weights for so many steps, and what chooses with them."""

    @abstractmethod
    def children(self) -> list[Structure]:
        """Choose some children, at least one; this changes nothing."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give what `load_state_dict` needs to go on; the weights are not part of it."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state_dict` of a policy with the same parameters gave."""


@dataclass(frozen=True)
class Method(ABC):
    """How a supergraph is trained: the parameters of a method. Pickled with its jobs.

    Parameters
    ----------
    learning_rate, weight_decay : float
        Of the shared weights.
    """

    learning_rate: float
    weight_decay: float

    @abstractmethod
    def policy(self, shared: SharedWeights, nodes: int, seed: int) -> Policy:
        """Begin."""


class Child(NamedTuple):
    """A child of a supergraph, and its accuracy on validation images with the shared weights."""

    structure: Structure
    score: float


@dataclass(frozen=True)
class SupernetResult:
    """What a supergraph came to after some epochs.

    Attributes
    ----------
    children : tuple of Child
        Those that it leads to, the best first; all at the chance level if the training diverged.
    seconds : float
        Time of this piece of training, on one worker; see `TrainingResult`.
    diverged : bool
        Whether a loss became infinite or NaN, or the memory of a CUDA device ran out.
    """

    children: tuple[Child, ...]
    seconds: float
    diverged: bool

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SupernetResult":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        children = tuple(Child(*child) for child in values.pop("children"))
        return cls(children, **values)


@dataclass(frozen=True)
class SupernetJob:
    """The training of a supergraph until some epoch, as an engine runs it.

    The result is a function of all fields but `folder` and `device`: a checkpoint only saves
    the epochs that an earlier job of the same training has done.

    Parameters
    ----------
    task : SharedTask
        From `Engine.share`.
    method : Method
        How to train.
    nodes : int
        Nodes of a cell.
    epoch : int
        Train until so many epochs are done.
    epochs : int
        The learning rate falls to 0 over so many.
    seed : int
        Draws everything that is drawn.
    device : str
        See `TrainingJob`.
    folder : Path, optional
        Where it looks for a checkpoint to go on from, and leaves its own.
    """

    result_type: ClassVar[type[SupernetResult]] = SupernetResult

    task: SharedTask
    method: Method
    nodes: int
    epoch: int
    epochs: int
    seed: int = 0
    device: str = "auto"
    folder: Path | None = None

    @property
    def key(self) -> str:
        """Name of the result: a hash of everything that determines it."""
        return _hash(["supernet", self._training, self.epoch])

    @property
    def checkpoint(self) -> Path | None:
        """File of the training, whichever piece of it a job runs."""
        if self.folder is None:
            return None
        return self.folder / f"supernet-{_hash(self._training)[:16]}.safetensors"

    @property
    def _training(self) -> list[Any]:
        method = [type(self.method).__name__, asdict(self.method)]
        return [self.task.fingerprint, method, self.nodes, self.epochs, self.seed]

    def run(self) -> SupernetResult:
        """Train and compare children.

        Raises
        ------
        InputError
            If the device is not possible, or has no room for the task.
        OSError
            If the checkpoint can't be written.
        """
        started = time.perf_counter()
        try:
            return self._run(started, resolve_device(self.device))
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            _log.warning("a supergraph ran out of memory and counts as diverged (%s)", reason)
        # Only now is nothing held any more by what was under way.
        torch.cuda.empty_cache()
        return self._run(started, torch.device("cpu"), give_up=True)

    def _run(
        self, started: float, device: torch.device, *, give_up: bool = False
    ) -> SupernetResult:
        shared = SharedWeights(
            self.task.load(),
            self.nodes,
            epochs=self.epochs,
            learning_rate=self.method.learning_rate,
            weight_decay=self.method.weight_decay,
            seed=self.seed,
            device=device,
        )
        with one_thread(device):
            policy = self.method.policy(shared, self.nodes, self.seed)
            if give_up:
                shared.give_up()
            else:
                started -= self._resume(shared, policy)
            while shared.epoch < self.epoch and not shared.diverged:
                policy.train(shared.steps_per_epoch)
            children = sorted(judge(shared, policy.children()), key=lambda child: -child.score)
        if not give_up:
            self._save(shared, policy, time.perf_counter() - started)
        return SupernetResult(tuple(children), time.perf_counter() - started, shared.diverged)

    def _resume(self, shared: SharedWeights, policy: Policy) -> float:
        """Go on from the checkpoint, if it is not too far; give seconds that are to be added."""
        if self.checkpoint is None:
            return 0.0
        try:
            with safe_open(self.checkpoint, framework="pt") as stored:
                notes = stored.metadata()
                if int(notes["epoch"]) > self.epoch:
                    return 0.0
                state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):  # none, or damaged: train from the start
            return 0.0
        for part, prefix in ((shared, "weights "), (policy, "policy ")):
            part.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        # Where this very job wrote it, it was killed before its result was recorded.
        return float(notes["seconds"]) if notes["job"] == self.key else 0.0

    def _save(self, shared: SharedWeights, policy: Policy, seconds: float) -> None:
        if self.checkpoint is not None:
            state = {f"weights {name}": tensor for name, tensor in shared.state_dict().items()}
            state |= {f"policy {name}": tensor for name, tensor in policy.state_dict().items()}
            notes = {"job": self.key, "epoch": str(self.epoch), "seconds": repr(seconds)}
            write_tensors(self.checkpoint, state, notes)


@dataclass(frozen=True)
class SupernetTiming:
    """How long an epoch of a supergraph takes.

    Attributes
    ----------
    epoch_seconds : float
        On one worker, once the weights are trained together with what chooses among them.
    seconds : float
        What finding out took.
    """

    epoch_seconds: float
    seconds: float

    def to_json(self) -> str:
        """Write it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SupernetTiming":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class SupernetTimingJob:
    """A few steps of a supergraph, to see how long they take; see `SupernetJob`."""

    result_type: ClassVar[type[SupernetTiming]] = SupernetTiming

    task: SharedTask
    method: Method
    nodes: int
    device: str = "auto"

    @property
    def key(self) -> str:
        """Name of the result. It is kept as it was measured first: plans depend on it."""
        method = [type(self.method).__name__, asdict(self.method)]
        return _hash(["supernet timing", self.task.fingerprint, method, self.nodes])

    def run(self) -> SupernetTiming:
        """Time the last steps of a training of one epoch, which leave nothing out.

        Raises
        ------
        InputError
            If the device is not possible, or has no room for the task.
        """
        started = time.perf_counter()
        device = resolve_device(self.device)
        shared = SharedWeights(
            self.task.load(),
            self.nodes,
            epochs=1,
            learning_rate=self.method.learning_rate,
            weight_decay=self.method.weight_decay,
            seed=0,
            device=device,
        )
        shared.step = max(0, shared.steps - 1 - _TIMED_STEPS)
        with one_thread(device):
            policy = self.method.policy(shared, self.nodes, seed=0)
            policy.train(1)  # the first is slower
            begun = time.perf_counter()
            policy.train(_TIMED_STEPS)
            ended = time.perf_counter()
        per_step = (ended - begun) / _TIMED_STEPS
        return SupernetTiming(per_step * shared.steps_per_epoch, ended - started)


def judge(shared: SharedWeights, structures: Sequence[Structure]) -> list[Child]:
    """Score children on validation images with the shared weights."""
    if shared.diverged:
        return [Child(structure, shared.chance) for structure in structures]
    batches = list(shared.batches("val", _JUDGED))
    n = sum(len(labels) for _, labels in batches)
    return [
        Child(structure, sum(shared.n_correct(structure, batch) for batch in batches) / n)
        for structure in structures
    ]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
