"""The contract suite of searchers: a sound one passes, and every check catches a broken one."""

import ast
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trautoml.testing
from trautoml.engine import Engine
from trautoml.errors import SearchError, SpecError
from trautoml.jobs import Ancestor, TrainingJob, TrainingResult
from trautoml.search import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.spaces import ChainSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task
from trautoml.testing import SearcherContract, by_merit


class Sound(Searcher):
    """Random candidates one after another, in as few lines as the contract allows."""

    failure: type[Exception] = AssertionError
    """What a check that catches it ends with."""

    def search(
        self,
        task: Task,
        *,
        budget: SearchBudget,
        engine: Engine,
        warm_start: Sequence[ModelSpec] = (),
        callback: Callable[[SearchProgress], None] | None = None,
    ) -> SearchResult:
        self.history: list[TrialRecord] = []
        self.task, self.budget, self.engine, self.callback = task, budget, engine, callback
        self.allowed = max(budget.trials, len(warm_start))
        for spec in self.candidates(warm_start):
            if self.time_is_up():
                break
            self.train(spec)
        return self.result()

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        yield from warm_start
        for number in range(self.allowed - len(warm_start)):
            yield self.draw(number)

    def draw(self, number: int) -> ModelSpec:
        return ChainSpace().sample(np.random.default_rng(number))

    def time_is_up(self) -> bool:
        limit = math.inf if self.budget.seconds is None else self.budget.seconds
        return bool(self.history) and self.seconds >= limit * self.engine.n_workers

    @property
    def seconds(self) -> float:
        return math.fsum(record.seconds for record in self.history)

    def job(self, spec: ModelSpec, **options: Any) -> TrainingJob:
        shared = self.engine.share(self.task)
        options = {"epochs": self.budget.epochs, "device": self.engine.device} | options
        return TrainingJob(shared, spec, **options)

    def train(self, spec: ModelSpec) -> None:
        for _, outcome in self.engine.run([self.job(spec)]):
            self.add(spec, outcome)

    def add(self, spec: ModelSpec, outcome: TrainingResult) -> None:
        self.history.append(self.record(spec, outcome))
        self.tell()

    def record(self, spec: ModelSpec, outcome: TrainingResult) -> TrialRecord:
        return TrialRecord(
            len(self.history), spec, outcome.epochs, outcome.score, outcome.seconds,
            outcome.diverged,
        )  # fmt: skip

    def tell(self) -> None:
        if self.callback is not None:
            self.callback(self.progress())

    def progress(self) -> SearchProgress:
        done, limit = len(self.history), self.budget.seconds
        return SearchProgress(
            started=done,
            allowed=self.allowed,
            round=done,
            done=1,
            trainings=1,
            epoch=self.budget.epochs,
            epochs=self.budget.epochs,
            best=max(self.history, key=lambda r: (not r.diverged, r.score)),
            seconds=self.seconds,
            allowed_seconds=None if limit is None else limit * self.engine.n_workers,
        )

    def result(self) -> SearchResult:
        diverged = {record.trial for record in self.history if record.diverged}
        sound = [record for record in self.history if record.trial not in diverged]
        if not sound:
            raise SearchError("all diverged", list(self.history))
        best = max(sound, key=lambda record: record.score)
        return SearchResult(best.spec, best.score, self.seconds, tuple(self.history))


# --- the broken ones --------------------------------------------------------------------------

BROKEN: list[tuple[type[Sound], str, str]] = []
"""Searchers, checks that must catch them, and what these say."""


def caught_by(**checks: str) -> Callable[[type[Sound]], type[Sound]]:
    def add(searcher: type[Sound]) -> type[Sound]:
        BROKEN.extend((searcher, f"test_{check}", says) for check, says in checks.items())
        return searcher

    return add


@caught_by(the_spec_builds_for_the_task="unknown architecture 'nowhere'")
class Unbuildable(Sound):
    failure = SpecError

    def result(self) -> SearchResult:
        spec = super().result().spec
        return replace(super().result(), spec=replace(spec, architecture="nowhere"))


@caught_by(the_spec_builds_for_the_task="expected a SearchResult, got ModelSpec")
class NoResult(Sound):
    def result(self) -> Any:
        return super().result().spec


@caught_by(
    the_result_is_the_best_of_the_history="the best of the history is",
    the_best_warm_start_wins="a warm start with the best score was not the result",
)
class Pessimist(Sound):
    def result(self) -> SearchResult:
        worst = min(self.history, key=lambda record: record.score)
        return replace(super().result(), spec=worst.spec, score=worst.score)


class Narrow(ModelSpec):
    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> torch.nn.Module:
        return super().build(image_shape, n_classes - 1)


@caught_by(the_spec_builds_for_the_task=r"gives torch.Size\(\[2, 2\]\)")
class MissesAClass(Sound):
    def draw(self, number: int) -> ModelSpec:
        spec = super().draw(number)
        return Narrow(spec.architecture, spec.structure, spec.hyper)


@caught_by(the_spec_builds_for_the_task="must be JSON")
class Unwritable(Sound):
    failure = SpecError

    def draw(self, number: int) -> ModelSpec:
        spec = super().draw(number)
        dict.__setitem__(spec.structure, "width", math.nan)  # type: ignore[arg-type]
        return spec


@caught_by(the_result_is_the_best_of_the_history="no record of the history is `alone`")
class Blank(Sound):
    def result(self) -> SearchResult:
        return replace(super().result(), history=())


@caught_by(
    the_result_is_the_best_of_the_history="the spec is not that of the record with the best score"
)
class WrongSpec(Sound):
    def result(self) -> SearchResult:
        worst = min(self.history, key=lambda record: record.score)
        return replace(super().result(), spec=worst.spec)


@caught_by(the_result_is_the_best_of_the_history=r"expected a score in \[0, 1\]")
class Percent(Sound):
    def record(self, spec: ModelSpec, outcome: TrainingResult) -> TrialRecord:
        return super().record(spec, replace(outcome, score=100 * outcome.score))


@caught_by(
    the_history_is_what_the_engine_has_run="5 are not in the history",
    if_all_diverge_it_says_so="5 are not in the history",
)
class Forgetful(Sound):
    def result(self) -> SearchResult:
        del self.history[1:]
        return super().result()


@caught_by(the_history_is_what_the_engine_has_run="6 records are of none")
class OnItsOwn(Sound):
    """Scores without an engine."""

    def train(self, spec: ModelSpec) -> None:
        self.add(spec, by_merit(self.job(spec)))


@caught_by(the_history_is_what_the_engine_has_run="the seconds of the history add up to")
class Timeless(Sound):
    def result(self) -> SearchResult:
        return replace(super().result(), seconds=0.0)


@caught_by(the_history_is_what_the_engine_has_run="jobs took")
class Cheap(Sound):
    def record(self, spec: ModelSpec, outcome: TrainingResult) -> TrialRecord:
        return super().record(spec, replace(outcome, seconds=0.5 * outcome.seconds))


class Heir(Sound):
    """Trains each candidate once more, with the weights that it has by then."""

    alone = False

    def train(self, spec: ModelSpec) -> None:
        super().train(spec)
        line = (Ancestor(spec, self.budget.epochs),)
        for _, outcome in self.engine.run([self.job(spec, ancestors=line)]):
            self.add(spec, outcome)
            self.history[-1] = replace(self.history[-1], alone=self.alone)


@caught_by(
    inherited_weights_never_win="the result's score was reached with inherited weights",
    the_result_is_the_best_of_the_history="the best of the history is",
)
class ProudHeir(Heir):
    """Lets the second training win."""


@caught_by(
    inherited_weights_never_win="the result's score was reached with inherited weights",
    the_history_is_what_the_engine_has_run="records are of none",
)
class SecretHeir(Heir):
    """Says that it was from scratch."""

    alone = True


@caught_by(
    the_history_is_what_the_engine_has_run="a training with inherited weights is not in the history"
)
class HeirWithoutHistory(Heir):
    def result(self) -> SearchResult:
        self.history = [record for record in self.history if record.alone]
        return super().result()


@caught_by(what_diverges_never_wins="the result diverged when it was trained for all epochs")
class Reckless(Sound):
    """Trains for one epoch first, and lets that score win although the next epoch diverges."""

    def train(self, spec: ModelSpec) -> None:
        for epochs in (1, self.budget.epochs):
            for _, outcome in self.engine.run([self.job(spec, epochs=epochs)]):
                self.add(spec, outcome)


@caught_by(what_diverges_never_wins="no record is marked as diverged")
class Sanguine(Sound):
    def record(self, spec: ModelSpec, outcome: TrainingResult) -> TrialRecord:
        return super().record(spec, replace(outcome, diverged=False))


@caught_by(if_all_diverge_it_says_so="expected a SearchError as all diverged")
class Optimist(Sound):
    def result(self) -> SearchResult:
        best = max(self.history, key=lambda record: record.score)
        return SearchResult(best.spec, best.score, self.seconds, tuple(self.history))


@caught_by(if_all_diverge_it_says_so="expected the history in the error")
class Silent(Sound):
    def result(self) -> SearchResult:
        try:
            return super().result()
        except SearchError as error:
            raise SearchError("all diverged") from error


@caught_by(
    no_more_candidates_than_trials="7 candidates were trained alone in 6 trials",
    progress_is_told_after_each_job="7 of 6 candidates started",
)
class Greedy(Sound):
    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        yield from super().candidates(warm_start)
        yield self.draw(99)


@caught_by(no_more_candidates_than_trials="99 candidates had shared weights in 6 trials")
class GreedyHeir(Sound):
    """Trains any number of candidates with shared weights."""

    def result(self) -> SearchResult:
        best = super().result()
        self.history += [
            TrialRecord(number, best.spec, 1.0, 0.5, 0.0, alone=False) for number in range(99)
        ]
        return replace(best, history=tuple(self.history))


@caught_by(no_more_candidates_than_trials="7 candidates were trained alone in 6 trials")
class GreedyWithWarmStarts(Sound):
    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        self.allowed = self.budget.trials + len(warm_start)
        return super().candidates(warm_start)


@caught_by(the_smallest_budget_is_enough="2 candidates were trained alone in a trial")
class Pairwise(Sound):
    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        yield from super().candidates(warm_start)
        if self.allowed == 1:
            yield self.draw(99)


@caught_by(no_more_epochs_than_allowed="trained for 3 epochs")
class Thorough(Sound):
    def job(self, spec: ModelSpec, **options: Any) -> TrainingJob:
        return super().job(spec, **{"epochs": self.budget.epochs + 1} | options)


@caught_by(the_smallest_budget_is_enough="expected two candidates at least")
class Choosy(Sound):
    failure = SearchError

    def result(self) -> SearchResult:
        if len(self.history) < 2:
            raise SearchError("expected two candidates at least")
        return super().result()


@caught_by(
    time_ends_the_search="work was begun after",
    in_no_time_one_candidate_is_trained="work was begun after",
)
class Unhurried(Sound):
    def time_is_up(self) -> bool:
        return False


@caught_by(time_ends_the_search="work was begun after")
class OneWorkersTime(Sound):
    """Takes the limit for worker seconds, and ends with those that it did not wait for."""

    def time_is_up(self) -> bool:
        return False

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        for spec in super().candidates(warm_start):
            yield spec
            if self.seconds >= (self.budget.seconds or math.inf) * self.engine.n_workers:
                yield self.draw(99)
                return


@caught_by(in_no_time_one_candidate_is_trained="all diverged")
class Hurried(Sound):
    failure = SearchError

    def time_is_up(self) -> bool:
        return self.budget.seconds is not None and self.budget.seconds < 0.1


@caught_by(time_ends_the_search="repeated, the search ran what it had not run before")
class Amnesiac(Sound):
    """Takes other candidates when it is repeated with a time limit."""

    def draw(self, number: int) -> ModelSpec:
        again = self.budget.seconds is not None and bool(self.engine.memory)  # type: ignore[attr-defined]
        return super().draw(number + (50 if again and not self.history else 0))


@caught_by(
    warm_starts_are_tried="2 of 2 warm starts were not tried",
    the_best_warm_start_wins="a warm start with the best score was not the result",
)
class Stubborn(Sound):
    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        return super().candidates(())


@caught_by(warm_starts_are_tried="1 of 7 warm starts were not tried")
class Impatient(Sound):
    """Drops the warm starts that are more than the trials."""

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        return super().candidates(warm_start[: self.budget.trials])


@caught_by(warm_starts_are_tried="1 of 2 warm starts were not tried")
class Provincial(Sound):
    """Tries warm starts of its own space only."""

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        known = [spec for spec in warm_start if ChainSpace().params_of(spec) is not None]
        return super().candidates(known)


@caught_by(the_best_warm_start_wins="a warm start with the best score was not the result")
class Ungrateful(Sound):
    """Tries warm starts, and lets its own candidates win."""

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        self.warm_start = warm_start
        return super().candidates(warm_start)

    def result(self) -> SearchResult:
        own = [r for r in self.history if r.spec not in self.warm_start]
        best = max(own, key=lambda record: record.score)
        return replace(super().result(), spec=best.spec, score=best.score)


@caught_by(progress_is_told_after_each_job="told after .3, 4, 5, 6. of 6 jobs")
class Secretive(Sound):
    def tell(self) -> None:
        if len(self.history) > 2:
            super().tell()


@caught_by(progress_is_told_after_each_job="seconds went down")
class Backward(Sound):
    def progress(self) -> SearchProgress:
        return replace(super().progress(), seconds=100.0 - self.seconds)


@caught_by(progress_is_told_after_each_job="s at the end")
class Late(Sound):
    def progress(self) -> SearchProgress:
        return replace(super().progress(), seconds=math.fsum(r.seconds for r in self.history[:-1]))


@caught_by(progress_is_told_after_each_job="2 of 1 trainings done")
class Miscounting(Sound):
    def progress(self) -> SearchProgress:
        return replace(super().progress(), done=len(self.history))


@caught_by(progress_is_told_after_each_job="the best that was told at the end is not the result")
class Boastful(Sound):
    def progress(self) -> SearchProgress:
        best = max(self.history, key=lambda record: record.score)
        return replace(super().progress(), best=replace(best, score=1.0))


@caught_by(progress_is_told_after_each_job="expected 2e6 worker seconds, got 1000000")
class Limitless(Sound):
    def progress(self) -> SearchProgress:
        return replace(super().progress(), allowed_seconds=self.budget.seconds)


@caught_by(a_search_leaves_no_trace="after other searches, the same instance has another result")
class Learned(Sound):
    """Goes on with its generator where the last search has stopped."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def draw(self, number: int) -> ModelSpec:
        return ChainSpace().sample(self.rng)


@caught_by(a_search_leaves_no_trace="two instances with the same seed have different results")
class Unique(Sound):
    """Differs from instance to instance."""

    made = 0

    def __init__(self) -> None:
        Unique.made += 1
        self.number = Unique.made

    def draw(self, number: int) -> ModelSpec:
        return super().draw(number + 10 * self.number)


@caught_by(neither_order_nor_workers_matter="another result with 1 workers")
class Racing(Sound):
    """Trains all at once, and of equal scores takes the first that is there."""

    def search(self, task: Task, **options: Any) -> SearchResult:
        self.all: list[ModelSpec] = []
        return super().search(task, **options)

    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        self.all = list(super().candidates(warm_start))
        yield self.all[0]

    def train(self, spec: ModelSpec) -> None:
        for index, outcome in self.engine.run([self.job(each) for each in self.all]):
            self.add(self.all[index], outcome)


@caught_by(neither_order_nor_workers_matter="another result with 2 workers")
class Crowded(Sound):
    """Asks for other candidates where there are more workers."""

    def draw(self, number: int) -> ModelSpec:
        return super().draw(number * self.engine.n_workers)


@caught_by(an_interrupted_search_goes_on="ran others than undisturbed")
class Restless(Sound):
    """Avoids what was trained already."""

    def draw(self, number: int) -> ModelSpec:
        spec = super().draw(number)
        if self.engine.remembers(self.job(spec)):
            return super().draw(number + 50)
        return spec


class Suspicious(Sound):
    """Treats what is remembered in another way."""

    def train(self, spec: ModelSpec) -> None:
        job = self.job(spec)
        known = self.engine.remembers(job)
        for _, outcome in self.engine.run([job]):
            self.add(spec, self.doubted(outcome) if known else outcome)

    def doubted(self, outcome: TrainingResult) -> TrainingResult:
        return replace(outcome, score=0.5 * outcome.score)


@caught_by(
    an_interrupted_search_goes_on="interrupted after 1 jobs and repeated",
    time_ends_the_search="repeated, the search has another result",
)
class Doubtful(Suspicious):
    """Believes half of it."""


@caught_by(an_interrupted_search_goes_on="seconds of remembered work count")
class Thrifty(Suspicious):
    """Takes it for free."""

    def doubted(self, outcome: TrainingResult) -> TrainingResult:
        return replace(outcome, seconds=0.0)


@caught_by(an_interrupted_search_goes_on="expected a KeyboardInterrupt")
class Unstoppable(Sound):
    def train(self, spec: ModelSpec) -> None:
        try:
            super().train(spec)
        except KeyboardInterrupt:
            self.history.append(TrialRecord(0, spec, 1.0, 0.0, 0.0))


@caught_by(arguments_are_not_changed="has changed the images or labels of the task")
class Vandal(Sound):
    def result(self) -> SearchResult:
        original = self.task.train_images.base
        assert original is not None
        original[0] = 0
        return super().result()


@caught_by(arguments_are_not_changed="has changed the list of warm starts")
class Consumer(Sound):
    def candidates(self, warm_start: Sequence[ModelSpec]) -> Iterator[ModelSpec]:
        assert isinstance(warm_start, Sequence)
        while warm_start:
            yield warm_start.pop()  # type: ignore[attr-defined]
        yield from super().candidates(())


class Disturbing(Sound):
    def draw(self, number: int) -> ModelSpec:
        self.disturb()
        return super().draw(number)

    def disturb(self) -> None: ...


@caught_by(global_random_states_are_left_alone="a global random state was changed")
class DisturbsPython(Disturbing):
    def disturb(self) -> None:
        random.random()  # noqa: S311


@caught_by(global_random_states_are_left_alone="a global random state was changed")
class DisturbsNumpy(Disturbing):
    def disturb(self) -> None:
        np.random.seed(0)  # noqa: NPY002


@caught_by(global_random_states_are_left_alone="a global random state was changed")
class DisturbsTorch(Disturbing):
    def disturb(self) -> None:
        torch.rand(1)


@caught_by(global_random_states_are_left_alone="the result depends on a global random state")
class Dependent(Sound):
    """Draws from a global generator and puts it back."""

    def draw(self, number: int) -> ModelSpec:
        state = random.getstate()
        seed = random.randrange(10**6)  # noqa: S311
        random.setstate(state)
        return super().draw(seed + number)


# --- the tests --------------------------------------------------------------------------------


def suite(make: type[Sound]) -> SearcherContract:
    class Suite(SearcherContract):
        def searcher(self) -> Searcher:
            return make()

    return Suite()


CHECKS = [name for name in dir(SearcherContract) if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_searcher_passes(check: str) -> None:
    getattr(suite(Sound), check)()


@pytest.mark.parametrize(
    ("broken", "check", "says"),
    BROKEN,
    ids=[f"{broken.__name__}-{check[5:]}" for broken, check, _ in BROKEN],
)
def test_a_broken_searcher_is_caught(broken: type[Sound], check: str, says: str) -> None:
    with pytest.raises(broken.failure, match=says):
        getattr(suite(broken), check)()


def test_every_check_catches_something_and_says_what() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)
    assert all(getattr(SearcherContract, check).__doc__ for check in CHECKS)


def test_a_suite_without_a_searcher_is_refused() -> None:
    with pytest.raises(TypeError, match="searcher"):
        SearcherContract()  # type: ignore[abstract]


def test_nothing_needs_pytest() -> None:
    for file in Path(trautoml.testing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            assert not any(
                name.startswith("pytest")
                for name in [*names, getattr(node, "module", None) or ""]
                if isinstance(name, str)
            )
