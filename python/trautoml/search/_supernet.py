"""Searches in which one supergraph is trained for all: their jobs, and the way they go."""

import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from trautoml.device import one_thread, resolve_device
from trautoml.engine import Engine, SharedTask
from trautoml.errors import InputError
from trautoml.jobs import TrainingResult, checkpoint_folder
from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.search._rounds import Rounds, training_record
from trautoml.search._shared_weights import SharedWeights
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import Task
from trautoml.tensor_files import write_tensors

_log = logging.getLogger(__name__)

_JUDGED = 512
"""Validation images, at most, that children are compared on after each epoch."""

_MOST_EPOCHS = 50
"""Of a supergraph, however many trials a budget has: those of the DARTS paper."""

_SHARE = 2 / 3
"""Of the time, at most, goes to the supergraph; the rest is for training what it led to."""

HYPER = Hyperparameters(
    learning_rate=0.1, momentum=0.9, weight_decay=3e-4, batch_size=32, init_sd=1.0
)
"""What the cells that are found are trained with: these searches find no hyper-parameters."""

Structure = dict[str, Any]
"""See `build_cells`."""


class Policy(ABC):
    """Chooses among the children of a supergraph, and learns to. Owned by one thread."""

    @abstractmethod
    def train_epoch(self) -> None:
        """Train the weights for one epoch, and what chooses with them."""

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
                policy.train_epoch()
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


class SupernetSearcher(Searcher):
    """Trains one supergraph epoch by epoch, then alone what it leads to.

    Each epoch of the supergraph counts as a trial of the budget, and its best child as a candidate;
    after 50 epochs it is done, even if the budget has more trials. If the budget has a time limit,
    the supergraph takes two thirds of it at most. Then the warm starts and the best `finalists`
    children of the last epoch (as many as the budget's trials leave room for beside the warm
    starts, but one at least) are trained from scratch for all epochs of the budget, and the best
    of these is the result.

    Cells are trained with fixed hyper-parameters: learning rate 0.1, momentum 0.9, weight decay
    3e-4, batches of 32, weights of He's standard deviation.

    Parameters
    ----------
    method : Method
        How the supergraph is trained.
    nodes : int
        Nodes of each cell.
    finalists : int
        Children that are trained alone, at most.
    seed : int
        Draws everything that is drawn.

    Raises
    ------
    InputError
        If `nodes` or `finalists` is below 1.
    """

    def __init__(self, method: Method, *, nodes: int, finalists: int, seed: int) -> None:
        if nodes < 1 or finalists < 1:
            raise InputError(f"expected nodes >= 1 and finalists >= 1, got {nodes} and {finalists}")
        self.method = method
        self.nodes = nodes
        self.finalists = finalists
        self.seed = seed

    def search(
        self,
        task: Task,
        *,
        budget: SearchBudget,
        engine: Engine,
        warm_start: Sequence[ModelSpec] = (),
        callback: Callable[[SearchProgress], None] | None = None,
    ) -> SearchResult:
        """See `Searcher.search`."""
        budget = replace(budget, trials=min(budget.trials, _MOST_EPOCHS))
        finalists = min(self.finalists, max(1, budget.trials - len(warm_start)))
        allowed = budget.trials + finalists + len(warm_start)
        rounds = Rounds(task, budget, engine, callback, allowed=allowed)
        children = self._train_supergraph(rounds)[:finalists]
        specs = [_spec(child) for child in children]
        first = rounds.started
        candidates = [*enumerate(specs, first), *((-1 - i, s) for i, s in enumerate(warm_start))]
        rounds.started += len(candidates)
        self._train_alone(rounds, candidates)
        return rounds.result()

    def _train_supergraph(self, rounds: Rounds) -> Sequence[Child]:
        """Train it as long as there is time; children of the last epoch, the best first."""
        children: Sequence[Child] = ()
        results: list[SupernetResult] = []

        def record(_: int, result: SupernetResult, seconds: float) -> TrialRecord:
            results.append(result)
            best = result.children[0]
            return TrialRecord(
                trial=rounds.started - 1,
                spec=_spec(best),
                epochs=rounds.started,
                score=best.score,
                seconds=seconds,
                diverged=result.diverged,
                alone=False,
            )

        # One epoch comes after another, so that of all workers one is at work.
        share = _SHARE / rounds.engine.n_workers
        while rounds.started < rounds.budget.trials:
            rounds.started += 1
            job = self._job(rounds)
            if not rounds.run([job], record, epoch=job.epoch, epochs=job.epochs, share=share):
                rounds.started -= 1
                break
            if results[-1].diverged:
                break
            children = results[-1].children
        return children

    def _job(self, rounds: Rounds) -> SupernetJob:
        task, engine = rounds.task, rounds.engine
        return SupernetJob(
            engine.share(task),
            self.method,
            self.nodes,
            epoch=rounds.started,
            epochs=rounds.budget.trials,
            seed=self.seed,
            device=engine.device,
            folder=checkpoint_folder(engine.workspace, task.fingerprint),
        )

    def _train_alone(self, rounds: Rounds, candidates: Sequence[tuple[int, ModelSpec]]) -> None:
        share = _SHARE / rounds.engine.n_workers + 1 - _SHARE
        limit = rounds.allowed_seconds
        if limit is not None and rounds.seconds >= share * limit:
            # The last epoch of the supergraph took too long: without a training alone, for nothing.
            candidates, share = candidates[:1], math.inf

        def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
            return training_record(*candidates[index], result, seconds)

        epochs = rounds.budget.epochs
        jobs = [rounds.training(spec, epochs=epochs, seed=self.seed) for _, spec in candidates]
        rounds.run(jobs, record, epoch=epochs, share=share)


def _spec(child: Child) -> ModelSpec:
    return ModelSpec("cells", child.structure, HYPER)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
