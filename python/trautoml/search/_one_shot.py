"""Searches in which one supergraph is trained for all, and then alone what it led to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.jobs import TrainingResult, checkpoint_folder
from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.search._rounds import Rounds, training_record
from trautoml.search._supernet import (
    Child,
    Method,
    SupernetJob,
    SupernetResult,
    SupernetTimingJob,
)
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import Task

_MOST_EPOCHS = 50
"""Of a supergraph, however many trials a budget has: those of the DARTS paper."""

_SHARE = 2 / 3
"""Of the time, at most, goes to the supergraph; the rest is for training what it led to."""

HYPER = Hyperparameters(
    learning_rate=0.1, momentum=0.9, weight_decay=3e-4, batch_size=32, init_sd=1.0
)
"""What the cells that are found are trained with: these searches find no hyper-parameters."""


class SupernetSearcher(Searcher):
    """Trains one supergraph epoch by epoch, then alone what it leads to.

    Each epoch of the supergraph counts as a trial of the budget, and its best child as a candidate.
    It is trained for as many epochs as the budget has trials, 50 at most. If the budget has a time
    limit, the supergraph gets two thirds of it: a few steps are timed first, and as many epochs are
    planned as there is time for, one at least. Then the warm starts and the best `finalists`
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
        finalists = min(self.finalists, max(1, budget.trials - len(warm_start)))
        budget = replace(budget, trials=self._planned_epochs(task, budget, engine))
        allowed = budget.trials + finalists + len(warm_start)
        rounds = Rounds(task, budget, engine, callback, allowed=allowed)
        children = self._train_supergraph(rounds)[:finalists]
        specs = [_spec(child) for child in children]
        first = rounds.started
        candidates = [*enumerate(specs, first), *((-1 - i, s) for i, s in enumerate(warm_start))]
        rounds.started += len(candidates)
        self._train_alone(rounds, candidates)
        return rounds.result()

    def _planned_epochs(self, task: Task, budget: SearchBudget, engine: Engine) -> int:
        """Plan for the time that there is, as learning rates fall along the plan."""
        epochs = min(budget.trials, _MOST_EPOCHS)
        if budget.seconds is None:
            return epochs
        job = SupernetTimingJob(engine.share(task), self.method, self.nodes, device=engine.device)
        ((_, timing),) = engine.run([job])
        return max(1, min(epochs, int(_SHARE * budget.seconds / timing.epoch_seconds)))

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
