"""Net2Net as a search: networks grow out of trained ones (Chen, Goodfellow & Shlens, ICLR 2016)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.jobs import Ancestor, TrainingResult
from trautoml.networks.chain import check_structure
from trautoml.networks.morphism import Structure, deepen, deepen_dense, widen, widen_dense
from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.search._candidates import draw_candidate
from trautoml.search._rounds import Rounds, training_record, trial_number
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task

_STREAM = 7
"""Keeps its draws apart from those of others with the same seed."""

_FIRST_SHARE, _CHILD_SHARE = 1 / 2, 2 / 3
"""Of the time: after so much there are no more random candidates, then no more children."""

_CHILD_EPOCHS = 1 / 3
"""Share of the epochs that a child is trained."""

_KERNELS = (3, 5)
"""Of the convolutions that are put in."""

# Nothing grows beyond twice what the chain space has.
_MAX_LAYERS, _MAX_CHANNELS = 8, 128
_MAX_DENSE, _MAX_UNITS = 4, 512
_MAX_COST = 76_800.0


def growths(structure: Structure) -> list[dict[str, Any]]:
    """Give all structures that a chain may grow to in one step.

    One layer becomes 1.5 or 2 times as wide, or an identity layer is put in: a convolution with a
    kernel of 3 or 5 after another one, or a dense layer after another one. Nothing grows beyond
    twice what `ChainSpace` has: 8 convolutions of 128 channels, 4 dense layers of 512 units, and,
    in the convolutions, 76,800 multiplications for each pixel of an image of 3 channels.

    Parameters
    ----------
    structure : Mapping
        See `build_chain`.

    Returns
    -------
    list of dict
        Each one morphism step from `structure`; two steps may lead to the same one.

    Raises
    ------
    SpecError
        If the structure is not a chain's.
    """
    check_structure(structure)
    grown: list[dict[str, Any]] = []
    for i, layer in enumerate(structure["layers"]):
        grown += [widen(structure, i, channels) for channels in _wider(layer["channels"])]
        grown += [deepen(structure, i, kernel) for kernel in _KERNELS]
    for i, units in enumerate(structure["dense"]):
        grown += [widen_dense(structure, i, more) for more in _wider(units)]
        grown.append(deepen_dense(structure, i))
    return [each for each in grown if _within_limits(each)]


def _wider(size: int) -> tuple[int, int]:
    return -(-3 * size // 2), 2 * size


def _within_limits(structure: Structure) -> bool:
    layers, dense = structure["layers"], structure["dense"]
    return (
        len(layers) <= _MAX_LAYERS
        and len(dense) <= _MAX_DENSE
        and all(layer["channels"] <= _MAX_CHANNELS for layer in layers)
        and all(units <= _MAX_UNITS for units in dense)
        and _cost(structure) <= _MAX_COST
    )


def _cost(structure: Structure) -> float:
    """Multiplications of the convolutions for each pixel of a large image of 3 channels."""
    cost, area, channels = 0.0, 1.0, 3
    for layer in structure["layers"]:
        area /= layer["stride"] ** 2
        cost += area * layer["kernel"] ** 2 * channels * layer["channels"]
        channels = layer["channels"]
        if layer["pool_kernel"] > 1:
            area /= layer["pool_stride"] ** 2
    return cost


class Net2NetSearcher(Searcher):
    """Larger and larger networks, each of which begins with what a smaller one has learned.

    First the warm starts are trained for all epochs, or random candidates if there are none, with
    half of the trials or of the time; beyond that only until a chain was trained that did not
    diverge. The best chain is the teacher. In each round `slots` children of it, which were not
    tried before, are trained: networks one random step larger (`growths`) that begin by computing
    the same function (`trautoml.networks.morphism`) and so need a third of the epochs. The best
    network so far is the teacher of the next round; when all its children are tried, the best that
    has others.

    Children owe their scores to their ancestors' training too, while final models are trained from
    scratch. So a third of the trials that the first ones left, and a third of the time, are kept
    for training the best children alone, for all epochs; the result is the best of all that were
    trained alone. A single trial that is left is a random candidate.

    The paper lets children begin with a tenth of the teacher's learning rate; here they begin with
    all of it, as in a training alone.

    Parameters
    ----------
    space : SearchSpace, optional
        Where the first teachers come from. Default: the chain space. Specs of other architectures
        than the chain are trained and can be the result, but don't grow.
    seed : int
        Draws teachers, steps and initial weights. Random candidate i is the same as Hyperband's.
    slots : int
        Candidates in a round. Default 4.

    Raises
    ------
    InputError
        If `slots` is below 1.
    """

    def __init__(self, space: SearchSpace | None = None, *, seed: int = 0, slots: int = 4) -> None:
        if slots < 1:
            raise InputError(f"expected slots >= 1, got {slots}")
        self.space = space or ChainSpace()
        self.seed = seed
        self.slots = slots

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
        allowed = max(budget.trials, len(warm_start))
        rounds = Rounds(task, budget, engine, callback, allowed=allowed, width=self.slots)
        run = _Run(self, rounds, list(warm_start))
        run.train_first()
        run.grow()
        return rounds.result()


class _Teacher(NamedTuple):
    score: float
    line: tuple[Ancestor, ...]
    """Its ancestors, and itself as the last."""


@dataclass
class _Run:
    """The state of one search."""

    searcher: Net2NetSearcher
    rounds: Rounds
    warm_start: list[ModelSpec]
    teachers: list[_Teacher] = field(default_factory=list)

    def train_first(self) -> None:
        """Train those that the first teacher is chosen from."""
        while candidates := self._first_candidates():
            share = _FIRST_SHARE if self.teachers else 1.0
            records = self.rounds.train(candidates, seed=self.searcher.seed, share=share)
            self._add_teachers(records, (), self.rounds.budget.epochs)
            if len(records) < len(candidates):  # the time is up
                return

    def grow(self) -> None:
        """Train children, round by round, and the best of all of them alone."""
        n_alone = -(-self._left // 3)
        while (n := min(self.searcher.slots, self._left - n_alone)) > 0:
            line, specs = self._children(n)
            records = self._train_children(line, specs)
            self._add_teachers(records, line, self._child_epochs)
            if not specs or len(records) < len(specs):
                break
        children = [r for r in self.rounds.history if not r.alone and not r.diverged]
        best = sorted(children, key=lambda record: -record.score)[:n_alone]
        numbers, specs = self._start(len(best)), [record.spec for record in best]
        self.rounds.train(list(zip(numbers, specs, strict=True)), seed=self.searcher.seed)

    @property
    def _left(self) -> int:
        return self.rounds.allowed - self.rounds.started

    @property
    def _child_epochs(self) -> int:
        return math.ceil(_CHILD_EPOCHS * self.rounds.budget.epochs)

    def _start(self, n: int) -> list[int]:
        """Count n candidates as started and give their numbers."""
        first = self.rounds.started
        self.rounds.started += n
        return [trial_number(i, len(self.warm_start)) for i in range(first, first + n)]

    def _first_candidates(self) -> list[tuple[int, ModelSpec]]:
        rounds, slots = self.rounds, self.searcher.slots
        if self.warm_start and not rounds.started:
            return list(zip(self._start(len(self.warm_start)), self.warm_start, strict=True))
        n = 0 if self.warm_start else rounds.allowed // 2 - rounds.started
        if n <= 0:
            n = 0 if self.teachers else slots
        if self._left == 1:  # a child would need a second one, to be trained alone
            n = 1
        space, seed = self.searcher.space, self.searcher.seed
        numbers = self._start(min(n, slots, self._left))
        return [(number, draw_candidate(space, seed, number)[1]) for number in numbers]

    def _children(self, n: int) -> tuple[tuple[Ancestor, ...], list[ModelSpec]]:
        """Draw up to n untried children of the best teacher that has any; give its line too."""
        tried = {record.spec for record in self.rounds.history}
        rng = np.random.default_rng([self.searcher.seed, _STREAM, self.rounds.started])
        for _, line in sorted(self.teachers, key=lambda teacher: -teacher.score):
            spec = line[-1].spec
            grown = [replace(spec, structure=structure) for structure in growths(spec.structure)]
            untried = [child for child in dict.fromkeys(grown) if child not in tried]
            if untried:
                return line, [untried[i] for i in rng.permutation(len(untried))[:n]]
        return (), []

    def _train_children(
        self, line: tuple[Ancestor, ...], specs: Sequence[ModelSpec]
    ) -> Mapping[int, TrialRecord]:
        numbers, epochs, seed = self._start(len(specs)), self._child_epochs, self.searcher.seed
        jobs = [
            self.rounds.training(spec, epochs=epochs, seed=seed, ancestors=line) for spec in specs
        ]

        def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
            return training_record(numbers[index], specs[index], result, seconds, alone=False)

        return self.rounds.run(jobs, record, epoch=epochs, share=_CHILD_SHARE)

    def _add_teachers(
        self, records: Mapping[int, TrialRecord], line: tuple[Ancestor, ...], epochs: int
    ) -> None:
        self.teachers += [
            _Teacher(record.score, (*line, Ancestor(record.spec, epochs)))
            for record in records.values()
            if record.spec.architecture == "chain" and not record.diverged
        ]
