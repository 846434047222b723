"""What a fit gives: the decision, the model and the price."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trautoml.backbones import BackboneClassifier, FrozenBackbone
from trautoml.classifier import Classifier, load_classifier
from trautoml.errors import StoreError
from trautoml.grouping import Decision
from trautoml.records import LogEntry
from trautoml.spec import ModelSpec


@dataclass(frozen=True)
class Outcome:
    """What `TransferAutoML.fit` gives for a task.

    Attributes
    ----------
    entry : LogEntry
        The record in the store: decision, spec, scores, seconds.
    sentence : str
        The decision in words.
    model_file : Path
        The weights, in safetensors format.
    restored : bool
        Whether the task had been fitted before and nothing was computed.
    backbone : Path or None
        Folder of the frozen backbone whose features the model takes; None if it takes the images.
    """

    entry: LogEntry
    sentence: str
    model_file: Path
    restored: bool
    backbone: Path | None = None

    @property
    def decision(self) -> Decision:
        """What the grouper decided."""
        return self.entry.decision

    @property
    def spec(self) -> ModelSpec:
        """The model: architecture and hyper-parameters."""
        return self.entry.spec

    @property
    def test_score(self) -> float:
        """Accuracy on the test split."""
        return self.entry.test_score

    @property
    def seconds(self) -> dict[str, float]:
        """Worker seconds of each phase; see `LogEntry`."""
        return self.entry.seconds

    @property
    def search_estimate(self) -> float:
        """Worker seconds of a search on this task: measured if there was one, else estimated."""
        return self.entry.search_estimate

    @property
    def saved_seconds(self) -> float:
        """Worker seconds less than a search; after a search, minus the cost of the probes."""
        return self.entry.saved_seconds

    @cached_property
    def model(self) -> Classifier:
        """The trained model from images to classes, on the CPU.

        Raises
        ------
        StoreError
            If its file, or that of its backbone, has gone.
        """
        entry = self.entry
        if not self.model_file.is_file():
            raise StoreError(
                f"the weights of {entry.name} are not at {self.model_file}: put the file back, or "
                "fit the task again in another store"
            )
        n_classes = len(entry.class_names)
        if self.backbone is None:
            return load_classifier(self.model_file, entry.spec, entry.image_shape, n_classes)
        frozen = FrozenBackbone.load(self.backbone)
        head = load_classifier(self.model_file, entry.spec, frozen.feature_shape, n_classes)
        return BackboneClassifier(frozen, head, entry.image_shape)

    def __repr__(self) -> str:
        return (
            f"<Outcome {self.entry.name}: {self.sentence}; test accuracy {self.test_score:.3f}, "
            f"model {self.spec.architecture} {self.spec.digest}>"
        )


@dataclass(frozen=True)
class FittedModel:
    """A spec with the model that was trained of it.

    Attributes
    ----------
    spec : ModelSpec
        What was trained.
    score, test_score : float
        Validation and test accuracy.
    diverged : bool
        Whether the training came to nothing.
    training_seconds : float
        Worker seconds of the training, after the search if there was one.
    checkpoint : Path
        The weights.
    searched : bool
        Whether the spec was searched for this task.
    search_seconds : float
        Worker seconds of that search.
    """

    spec: ModelSpec
    score: float
    test_score: float
    diverged: bool
    training_seconds: float
    checkpoint: Path
    searched: bool = False
    search_seconds: float = 0.0
