"""Bayesian optimisation by Optuna's samplers: a Gaussian process, or Parzen estimators."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import optuna
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from trautoml.device import one_thread
from trautoml.errors import InputError
from trautoml.search._candidates import draw_candidate
from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.search._study import open_study
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task

_STARTUP = 8
"""Random candidates, and known scores, before the first that is chosen by a model."""


class BayesianSearcher(ProposingSearcher):
    """Candidates that a model of the scores so far expects to do well.

    The first 8 are the random ones that `RandomSearcher` has too, and so are all of a round before
    which fewer than 8 scores were known. Warm starts whose choices in the space can be told are
    learned from like the others.

    Parameters
    ----------
    space : SearchSpace, optional
        Default: the chain space.
    model : {"gp", "tpe"}
        ``"gp"``: a Gaussian process with (log) expected improvement over the choices that all
        candidates share; those that depend on others are drawn at random. ``"tpe"``: the
        multivariate tree-structured Parzen estimator (Bergstra et al. 2011), of all choices.
    seed : int
        Draws candidates and initial weights.
    slots : int
        Candidates in a round. Default 4. Those of a round know of each other: the model expects
        of them what it knows already.
    storage : str, optional
        URL of the database for Optuna's records. Default: memory.

    Raises
    ------
    InputError
        If `model` is unknown or `slots` below 1.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        model: Literal["gp", "tpe"] = "gp",
        seed: int = 0,
        slots: int = 4,
        storage: str | None = None,
    ) -> None:
        super().__init__(seed=seed, slots=slots)
        if model not in {"gp", "tpe"}:
            raise InputError(f'expected model "gp" or "tpe", got {model!r}')
        self.space = space or ChainSpace()
        self.model = model
        self.storage = storage

    def proposer(self, task: Task) -> Proposer:
        """See `ProposingSearcher.proposer`."""
        return _OptunaProposer(self, f"{self.model} {task.fingerprint[:16]}")

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Make Optuna's sampler of the model."""
        if self.model == "gp":
            return optuna.samplers.GPSampler(
                seed=self.seed, n_startup_trials=_STARTUP, warn_independent_sampling=False
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=self.seed,
                n_startup_trials=_STARTUP,
                multivariate=True,
                group=True,
                constant_liar=True,
            )


class _OptunaProposer(Proposer):
    def __init__(self, searcher: BayesianSearcher, name: str) -> None:
        self._searcher = searcher
        self._drawn = 0
        self._observed = 0
        self._stack = ExitStack()
        self._study = self._stack.enter_context(
            open_study(name, storage=searcher.storage, sampler=searcher.sampler())
        )

    def propose(self, n: int, spent: float) -> list[Proposal]:  # noqa: ARG002
        proposals = []
        for _ in range(n):
            if min(self._drawn, self._observed) < _STARTUP:
                searcher = self._searcher
                params, _ = draw_candidate(searcher.space, searcher.seed, self._drawn)
                proposals.append(self._ask(params))
            else:
                proposals.append(self._ask())
            self._drawn += 1
        return proposals

    def adopt(self, spec: ModelSpec) -> Proposal:
        params = self._searcher.space.params_of(spec)
        return Proposal(spec) if params is None else self._ask(params)

    def _ask(self, params: dict[str, Any] | None = None) -> Proposal:
        if params is not None:
            self._study.enqueue_trial(params)
        # The Gaussian process is small: more threads make it slower, and its numbers theirs.
        with one_thread(torch.device("cpu")), threadpool_limits(1, user_api="blas"):
            trial = self._study.ask()
            spec = self._searcher.space.define(trial)
        trial.set_user_attr("spec", spec.to_json())
        return Proposal(spec, trial)

    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        self._observed += len(scored)
        for proposal, score in scored:
            self._study.tell(proposal.memo, score)

    def close(self) -> None:
        self._stack.close()
