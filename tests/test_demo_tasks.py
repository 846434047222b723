import numpy as np
import pytest

from trautoml.demo_tasks import (
    MIN_TEXTURE,
    demo_tasks,
    digits,
    digits_background,
    digits_rotated,
)
from trautoml.task import Task


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return demo_tasks()


def test_six_tasks_each_whole_and_halved(tasks: list[Task]) -> None:
    whole = ["digits", "digits-rotated", "digits-background"]
    assert [task.name for task in tasks] == [n for w in whole for n in (w, f"{w}@0.5")]
    assert len({task.fingerprint for task in tasks}) == 6
    for full, half in zip(tasks[::2], tasks[1::2], strict=True):
        assert full.image_shape == half.image_shape == (16, 16, 1)
        assert full.n_classes == half.n_classes == 10
        assert full.n_train + len(full.val_labels) + len(full.test_labels) == 1797
        assert abs(half.n_train - full.n_train / 2) <= 5
        assert len(half.test_labels) == len(full.test_labels)


@pytest.mark.parametrize("make", [digits, digits_rotated, digits_background])
def test_one_seed_gives_one_task(make: object) -> None:
    assert make(seed=3) == make(seed=3)
    assert make(seed=3) != make(seed=4)


def test_all_three_have_the_same_labels_and_splits(tasks: list[Task]) -> None:
    for task in tasks[2::2]:
        assert (task.train_labels == tasks[0].train_labels).all()


def test_digits_use_the_whole_range_and_are_white_on_black(tasks: list[Task]) -> None:
    images = tasks[0].train_images
    assert images.min() == 0
    assert images.max() == 255
    assert images[:, :, 0].mean() < images[:, :, 7].mean()


def test_scaling_up_keeps_the_digit(tasks: list[Task]) -> None:
    from sklearn.datasets import load_digits

    blocks = tasks[0].train_images.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    originals = load_digits().images.reshape(1797, -1) * 255 / 16
    nearest = np.abs(originals[:, None] - blocks[:50].reshape(1, 50, -1)).mean(axis=2).min(axis=0)
    assert nearest.max() < 25


def test_rotated_digits_are_turned_but_keep_their_ink(tasks: list[Task]) -> None:
    plain, turned = tasks[0].train_images.astype(float), tasks[2].train_images.astype(float)
    moved = np.abs(plain - turned).mean(axis=(1, 2, 3))
    assert (moved > 10).mean() > 0.9
    ink = turned.sum() / plain.sum()
    assert 0.85 < ink < 1


def test_background_shows_where_there_is_no_ink(tasks: list[Task]) -> None:
    plain, mixed = tasks[0].train_images, tasks[4].train_images
    assert (mixed >= plain).all()
    assert (mixed[plain == 255] == 255).all()
    blank = plain == 0
    assert mixed[blank].std() > MIN_TEXTURE
