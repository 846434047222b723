"""Groupers: they decide, task after task, which earlier tasks a new one is like."""

from trautoml.grouping._base import Decision, Grouper, as_trials
from trautoml.grouping.markov import KINDS, MarkovGrouper, Replay, replay

__all__ = ["KINDS", "Decision", "Grouper", "MarkovGrouper", "Replay", "as_trials", "replay"]
