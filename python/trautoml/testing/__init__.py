"""What plug-in authors test with: contract suites, and the task and the engine they run on.

Nothing here imports pytest: a suite is a class of plain methods and assertions.
"""

from trautoml.testing.engine import FakeEngine, by_merit
from trautoml.testing.searcher import SearcherContract
from trautoml.testing.tasks import tiny_task

__all__ = ["FakeEngine", "SearcherContract", "by_merit", "tiny_task"]
