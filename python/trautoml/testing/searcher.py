"""What every searcher promises, as tests."""

import dataclasses
import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import torch

from trautoml.errors import SearchError
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.search import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.spec import ModelSpec
from trautoml.testing._checks import (
    RandomStates,
    check_history,
    essence,
    is_alone,
    keys,
    warm_starts,
)
from trautoml.testing.engine import FakeEngine, by_merit
from trautoml.testing.tasks import tiny_task


class SearcherContract(ABC):
    """The tests of a searcher. Subclass it, say how to make the searcher, and let pytest run it.

    Nearly all trainings are scored by a script instead of being run, so that the suite takes
    seconds. A searcher's own jobs, such as those that train a supergraph, are run.

    Attributes
    ----------
    budget : SearchBudget
        Of most searches. Default: 6 trials of 2 epochs, without a time limit. Take more where the
        searcher learns only from more, at least 3 trials, and 2 epochs.

    Examples
    --------
    ::

        from trautoml.testing import SearcherContract

        class TestMySearcher(SearcherContract):
            def searcher(self):
                return MySearcher(seed=0)
    """

    budget: ClassVar[SearchBudget] = SearchBudget(trials=6, epochs=2)

    @abstractmethod
    def searcher(self) -> Searcher:
        """Make a searcher: a fresh one at each call, all with the same parameters and seed."""

    def _search(
        self,
        engine: FakeEngine,
        searcher: Searcher | None = None,
        seed: int = 0,
        budget: SearchBudget | None = None,
        **options: Any,
    ) -> SearchResult:
        """Search on the tiny task of a seed, and close the engine."""
        with engine:
            return (searcher or self.searcher()).search(
                tiny_task(seed), budget=budget or self.budget, engine=engine, **options
            )

    # --- the result ---------------------------------------------------------------------------

    def test_the_spec_builds_for_the_task(self) -> None:
        """The result is a spec that builds for the task and survives its JSON."""
        result = self._search(FakeEngine())
        assert isinstance(result, SearchResult), f"expected a SearchResult, got {result!r}"
        again = ModelSpec.from_json(result.spec.to_json())
        assert again == result.spec, f"the JSON of the spec is read as {again}"
        task = tiny_task()
        network = result.spec.build(task.image_shape, task.n_classes).eval()
        height, width, channels = task.image_shape
        logits = network(torch.zeros(2, channels, height, width))
        assert logits.shape == (2, task.n_classes), f"the spec's network gives {logits.shape}"

    def test_the_result_is_the_best_of_the_history(self) -> None:
        """Spec and score are those of the best candidate that was trained alone."""
        result = self._search(FakeEngine())
        alone = [record for record in result.history if record.alone and not record.diverged]
        assert alone, "no record of the history is `alone` and not `diverged`"
        best = max(record.score for record in alone)
        assert result.score == best, f"the best of the history is {best}, got {result.score}"
        assert 0 <= result.score <= 1, f"expected a score in [0, 1], got {result.score}"
        winners = {record.spec for record in alone if record.score == best}
        assert result.spec in winners, "the spec is not that of the record with the best score"

    def test_the_history_is_what_the_engine_has_run(self) -> None:
        """Every training is in the history with its score and its seconds."""
        engine = FakeEngine()
        result = self._search(engine)
        check_history(result.history, engine)
        total = math.fsum(record.seconds for record in result.history)
        assert math.isclose(result.seconds, total), (
            f"the seconds of the history add up to {total}, got {result.seconds}"
        )

    def test_inherited_weights_never_win(self) -> None:
        """However good the score that was reached with them."""

        def script(job: TrainingJob) -> TrainingResult:
            score = 0.5 * by_merit(job).score + (0.5 if job.ancestors else 0.0)
            return dataclasses.replace(by_merit(job), score=score)

        result = self._search(FakeEngine(script))
        assert result.score < 0.5, "the result's score was reached with inherited weights"

    def test_what_diverges_never_wins(self) -> None:
        """Not even by the score that it had before."""
        warm = warm_starts(1)
        champion = self._search(FakeEngine(), warm_start=warm).spec

        def script(job: TrainingJob) -> TrainingResult:
            if job.spec != champion:
                return by_merit(job)
            late = job.epochs >= self.budget.epochs
            return dataclasses.replace(by_merit(job), score=0.999, diverged=late)

        result = self._search(FakeEngine(script), warm_start=warm)
        assert any(r.diverged for r in result.history), "no record is marked as diverged"
        assert result.spec != champion, "the result diverged when it was trained for all epochs"

    def test_if_all_diverge_it_says_so(self) -> None:
        """A SearchError carries everything that was paid for."""
        engine = FakeEngine(
            lambda job: dataclasses.replace(by_merit(job), score=1 / 3, diverged=True)
        )
        try:
            result = self._search(engine)
        except SearchError as error:
            records = [r for r in error.history if isinstance(r, TrialRecord)]
            assert records, "expected the history in the error"
            check_history(records, engine)
        else:
            raise AssertionError(f"expected a SearchError as all diverged, got {result}")

    # --- the budget ---------------------------------------------------------------------------

    def test_no_more_candidates_than_trials(self) -> None:
        """Of those trained alone, warm starts among them, and of those with shared weights."""
        for n_warm in (0, 1):
            engine = FakeEngine()
            result = self._search(engine, warm_start=warm_starts(n_warm))
            specs = {job.spec for job, _ in engine.executed if is_alone(job)}
            assert len(specs) <= self.budget.trials, (
                f"{len(specs)} candidates were trained alone in {self.budget.trials} trials"
            )
            shared = {record.trial for record in result.history if not record.alone}
            assert len(shared) <= self.budget.trials, (
                f"{len(shared)} candidates had shared weights in {self.budget.trials} trials"
            )

    def test_no_more_epochs_than_allowed(self) -> None:
        """No training goes beyond the epochs of the budget."""
        engine = FakeEngine()
        self._search(engine)
        epochs = [job.epochs for job, _ in engine.executed if isinstance(job, TrainingJob)]
        assert max(epochs, default=0) <= self.budget.epochs, f"trained for {max(epochs)} epochs"

    def test_the_smallest_budget_is_enough(self) -> None:
        """One trial of one epoch gives a result: that of one candidate."""
        engine = FakeEngine()
        self._search(engine, budget=SearchBudget(trials=1, epochs=1))
        specs = {job.spec for job, _ in engine.executed if is_alone(job)}
        assert len(specs) == 1, f"{len(specs)} candidates were trained alone in a trial"

    def test_time_ends_the_search(self) -> None:
        """Once the time is up nothing more is waited for; what is remembered is still taken."""
        half = self._search(FakeEngine()).seconds / 2
        for n_workers in (1, 2):
            self._check_time(half / n_workers, n_workers)

    def test_in_no_time_one_candidate_is_trained(self) -> None:
        """However little time there is, one training alone is waited for, and no more."""
        self._check_time(1e-9, n_workers=1)

    def _check_time(self, seconds: float, n_workers: int) -> None:
        budget = dataclasses.replace(self.budget, seconds=seconds)
        engine = FakeEngine(n_workers=n_workers)
        result = self._search(engine, budget=budget)
        spent = 0.0
        done = False
        for job, outcome in engine.executed:
            assert not (done and spent >= seconds * n_workers), (
                f"work was begun after {spent} of {seconds * n_workers} worker seconds"
            )
            spent += outcome.seconds
            done = done or is_alone(job)
        again = FakeEngine(n_workers=n_workers, memory=engine.memory)
        repeated = self._search(again, budget=budget)
        assert keys(again) <= keys(engine), "repeated, the search ran what it had not run before"
        assert essence(repeated) == essence(result), "repeated, the search has another result"

    # --- warm starts --------------------------------------------------------------------------

    def test_warm_starts_are_tried(self) -> None:
        """All of them, also if there are more than trials, and whatever space they come from."""
        for n_warm in (2, self.budget.trials + 1):
            warm = warm_starts(n_warm)
            engine = FakeEngine()
            result = self._search(engine, warm_start=warm)
            trained = {job.spec for job, _ in engine.executed if is_alone(job)}
            known = {record.spec for record in result.history if record.alone}
            missed = [spec for spec in warm if spec not in trained & known]
            assert not missed, f"{len(missed)} of {n_warm} warm starts were not tried"

    def test_the_best_warm_start_wins(self) -> None:
        """If it is better than all that the search finds."""
        warm = warm_starts(2)
        for champion in warm:

            def script(job: TrainingJob, champion: ModelSpec = champion) -> TrainingResult:
                wins = job.spec == champion and not job.ancestors
                score = 0.99 if wins else 0.5 * by_merit(job).score
                return dataclasses.replace(by_merit(job), score=score)

            result = self._search(FakeEngine(script), warm_start=warm)
            assert result.spec == champion, "a warm start with the best score was not the result"

    # --- progress -----------------------------------------------------------------------------

    def test_progress_is_told_after_each_job(self) -> None:
        """Truthfully, and never running backwards."""
        engine = FakeEngine(n_workers=2)
        told: list[SearchProgress] = []
        after: list[int] = []

        def callback(progress: SearchProgress) -> None:
            told.append(progress)
            after.append(len(engine.executed))

        budget = dataclasses.replace(self.budget, seconds=1e6)
        result = self._search(engine, budget=budget, callback=callback)
        # A job that comes before the first candidate, to see how long things take, goes untold.
        expected = list(range(min(after[0], 2), len(engine.executed) + 1))
        assert sorted(set(after)) == expected, f"told after {after} of {expected[-1]} jobs"
        for p in told:
            assert 1 <= p.started <= p.allowed, f"{p.started} of {p.allowed} candidates started"
            assert 1 <= p.done <= p.trainings, f"{p.done} of {p.trainings} trainings done"
            assert p.allowed_seconds == 2e6, f"expected 2e6 worker seconds, got {p.allowed_seconds}"
        for before, p in pairwise(told):
            for name in ("started", "round", "seconds"):
                assert getattr(before, name) <= getattr(p, name), f"{name} went down"
        last = told[-1]
        assert math.isclose(last.seconds, result.seconds), f"told {last.seconds} s at the end"
        assert (last.best.spec, last.best.score) == (result.spec, result.score), (
            "the best that was told at the end is not the result"
        )

    # --- the same search, the same result -----------------------------------------------------

    def test_a_search_leaves_no_trace(self) -> None:
        """An instance gives what a fresh one does, after other searches and broken-off ones."""
        engine = FakeEngine()
        expected = essence(self._search(engine))
        half = len(engine.executed) // 2
        searcher = self.searcher()
        assert essence(self._search(FakeEngine(), searcher)) == expected, (
            "two instances with the same seed have different results"
        )
        self._search(FakeEngine(), searcher, seed=1)
        self._interrupt(FakeEngine(interrupt_after=half), searcher, seed=0)
        assert essence(self._search(FakeEngine(), searcher)) == expected, (
            "after other searches, the same instance has another result"
        )

    def test_neither_order_nor_workers_matter(self) -> None:
        """Whichever worker is faster, and however many there are, the result is the same."""

        def alike(job: TrainingJob) -> TrainingResult:
            return dataclasses.replace(by_merit(job), score=0.5)

        for script in (by_merit, alike):
            expected = essence(self._search(FakeEngine(script)))
            for n_workers in (1, 2, 5):
                engine = FakeEngine(script, n_workers=n_workers, shuffle=n_workers)
                assert essence(self._search(engine)) == expected, (
                    f"another result with {n_workers} workers that finish in another order"
                )

    def test_an_interrupted_search_goes_on(self) -> None:
        """Repeated on an engine that remembers, it repeats no work and has the same result."""
        undisturbed = FakeEngine()
        expected = self._search(undisturbed)
        n_jobs = len(undisturbed.executed)
        for done in range(1, n_jobs, -(-n_jobs // 8)):
            first = FakeEngine(shuffle=done, interrupt_after=done)
            self._interrupt(first)
            second = FakeEngine(memory=first.memory)
            found = self._search(second)
            assert keys(first) | keys(second) == keys(undisturbed), (
                f"interrupted after {done} jobs, the search ran others than undisturbed"
            )
            assert essence(found) == essence(expected), (
                f"interrupted after {done} jobs and repeated, the search has another result"
            )
            assert math.isclose(found.seconds, expected.seconds), (
                f"seconds of remembered work count: expected {expected.seconds}, "
                f"got {found.seconds}"
            )

    def _interrupt(
        self, engine: FakeEngine, searcher: Searcher | None = None, seed: int = 0
    ) -> None:
        try:
            self._search(engine, searcher, seed)
        except KeyboardInterrupt:
            return
        raise AssertionError("expected a KeyboardInterrupt to end the search")

    # --- what it leaves alone -----------------------------------------------------------------

    def test_arguments_are_not_changed(self) -> None:
        """Neither the task nor the list of warm starts."""
        task, warm = tiny_task(), warm_starts(2)
        with FakeEngine() as engine:
            self.searcher().search(task, budget=self.budget, engine=engine, warm_start=warm)
        # A copy, as a task remembers its fingerprint.
        assert dataclasses.replace(task).fingerprint == tiny_task().fingerprint, (
            "the search has changed the images or labels of the task"
        )
        assert warm == warm_starts(2), "the search has changed the list of warm starts"

    def test_global_random_states_are_left_alone(self) -> None:
        """Those of Python, NumPy and torch are neither used nor changed. Here jobs are run."""
        before = RandomStates()
        results = []
        try:
            for seed in (1, 2):
                seeded = RandomStates.seeded(seed)
                results.append(essence(self._search(FakeEngine(None))))
                assert seeded.still_hold(), "a global random state was changed"
        finally:
            before.restore()
        assert results[0] == results[1], "the result depends on a global random state"
