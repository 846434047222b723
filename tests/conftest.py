import numpy as np
import pytest
from hypothesis import settings

from trautoml.task import Task

settings.register_profile("trautoml", derandomize=True, deadline=None)
settings.load_profile("trautoml")


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """Three colours of blob on noise, 12 x 12: 90 / 45 / 45 images, learnt in a few epochs."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:12, :12]
    colours = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200)])

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(n) % 3)
        centres = rng.uniform(3, 9, size=(n, 2, 1, 1))
        squared = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2
        blobs = np.exp(-squared / 8)[..., None] * colours[labels][:, None, None, :]
        noise = rng.normal(40, 25, size=blobs.shape)
        return np.clip(blobs + noise, 0, 255).astype(np.uint8), labels

    (train, val, test) = (draw(n) for n in (90, 45, 45))
    return Task.from_arrays(
        *train,
        val_images=val[0],
        val_labels=val[1],
        test_images=test[0],
        test_labels=test[1],
        class_names=("red", "green", "blue"),
        name="tiny",
    )
