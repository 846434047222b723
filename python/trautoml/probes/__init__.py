"""Probes: a suite of small benchmark models, and the trials matrix they measure of a task."""

from trautoml.probes.pilot import pilot
from trautoml.probes.suite import Measurement, ProbeSuite

__all__ = ["Measurement", "ProbeSuite", "pilot"]
