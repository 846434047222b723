from typing import Any

import pytest

from trautoml.errors import InputError
from trautoml.networks.cells import check_cells
from trautoml.search.enas import Enas, EnasPolicy, EnasSearcher

Structure = dict[str, Any]


def operations(structure: Structure) -> list[str]:
    return [operation for cell in structure.values() for node in cell for operation, _ in node]


class Toy:
    """Shared weights with which a child is the more accurate, the more it has of one operation."""

    def __init__(self, good: str, steps: int) -> None:
        self.step, self.steps_per_epoch = 0, steps
        self.trained: list[Structure] = []
        self._good = good

    def batch(self, split: str, index: int) -> tuple[str, range]:
        return split, range(4)

    def loss(self, structure: Structure, batch: Any) -> Structure:
        assert batch[0] == "train"
        return structure

    def update(self, loss: Structure) -> None:
        self.step += 1
        self.trained.append(loss)

    def n_correct(self, structure: Structure, batch: Any) -> int:
        assert batch[0] == "val"
        return operations(structure).count(self._good)


def share(structures: list[Structure], good: str) -> float:
    drawn = [operation for structure in structures for operation in operations(structure)]
    return drawn.count(good) / len(drawn)


@pytest.mark.parametrize("good", ["sep_conv_5x5", "avg_pool_3x3"])
def test_the_controller_goes_for_the_operation_that_validates_better(good: str) -> None:
    toy = Toy(good, steps=80)
    policy = EnasPolicy(Enas(controller_rate=0.02), toy, 1, 0)  # type: ignore[arg-type]
    for _ in range(4):
        policy.train(policy._shared.steps_per_epoch)
    assert share(toy.trained[:80], good) < 0.3
    assert share(toy.trained[-80:], good) > 0.7
    assert share(policy.children(), good) > 0.7


def test_weights_are_trained_on_children_of_all_kinds() -> None:
    toy = Toy("skip_connect", steps=30)
    policy = EnasPolicy(Enas(), toy, 2, 0)  # type: ignore[arg-type]
    policy.train(policy._shared.steps_per_epoch)
    assert len(toy.trained) == 30
    assert len({str(structure) for structure in toy.trained}) == 30
    for structure in toy.trained:
        check_cells(structure)


def test_drawing_children_changes_nothing() -> None:
    one, other = (EnasPolicy(Enas(), Toy("skip_connect", 5), 1, 3) for _ in range(2))  # type: ignore[arg-type]
    assert one.children() == one.children()
    one.train(one._shared.steps_per_epoch)
    other.train(other._shared.steps_per_epoch)
    assert one.children() == other.children()


@pytest.mark.parametrize("options", [{"finalists": 0}, {"nodes": 0}])
def test_impossible_parameters_are_input_errors(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        EnasSearcher(**options)
