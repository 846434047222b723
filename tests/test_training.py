import gc
import math
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trautoml import device as device_module
from trautoml import training as training_module
from trautoml.classifier import ImageClassifier, load_classifier
from trautoml.device import autocast, resolve_device
from trautoml.engine import LocalEngine, SharedTask
from trautoml.errors import InputError, SpecError
from trautoml.jobs import (
    Ancestor,
    TrainingJob,
    TrainingResult,
    checkpoint_folder,
    resumable_job,
)
from trautoml.networks.morphism import deepen, deepen_dense, widen, widen_dense
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import Task
from trautoml.training import Trainer

LAYER = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
HYPER = Hyperparameters(
    learning_rate=0.05, momentum=0.9, weight_decay=1e-4, batch_size=16, init_sd=1.0
)
SPEC = ModelSpec("chain", {"layers": [LAYER], "dense": [16], "batch_norm": True}, HYPER)
PLAIN = replace(SPEC, structure={**SPEC.structure, "batch_norm": False})
STEPS = 90 // 16  # of one epoch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def with_hyper(spec: ModelSpec = SPEC, **changes: Any) -> ModelSpec:
    return replace(spec, hyper=replace(spec.hyper, **changes))


def job(task: Task, **options: Any) -> TrainingJob:
    options = {"spec": SPEC, "epochs": 2.0, "device": "cpu", **options}
    return TrainingJob(SharedTask(task.fingerprint, task=task), **options)


def untimed(result: TrainingResult) -> TrainingResult:
    return replace(result, seconds=0.0)


def trained(task: Task, epochs: float, spec: ModelSpec = SPEC, **options: Any) -> Trainer:
    schedule = options.pop("schedule_epochs", epochs)
    trainer = Trainer(task, spec, device="cpu", **options)
    trainer.train(epochs, schedule_epochs=schedule)
    return trainer


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy weights, running statistics and momentum."""
    weights = {k: v.clone() for k, v in trainer.classifier.state_dict().items()}
    for i, values in enumerate(trainer._optimizer.state.values()):
        if values.get("momentum_buffer") is not None:
            weights[f"momentum.{i}"] = values["momentum_buffer"].clone()
    return weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drawn(n_train: int, shape: tuple[int, int, int] = (8, 8, 1), n_classes: int = 2) -> Task:
    """Make a task of noise; validation and test have an image a class."""
    rng = np.random.default_rng(0)
    draws = [(rng.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % n_classes)
             for n in (n_train, n_classes, n_classes)]  # fmt: skip
    arrays = [array for pair in draws for array in pair]
    return Task("noise", *arrays, class_names=tuple(map(str, range(n_classes))))


# --- results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["batch norm", "plain"])
def test_training_learns(tiny_task: Task, spec: ModelSpec) -> None:
    result = job(tiny_task, spec=spec, epochs=8, test=True).run()
    assert result.score > 0.9
    assert result.test_score is not None
    assert result.test_score > 0.9
    assert result.epochs == 8
    assert not result.diverged
    assert result.seconds > 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_task: Task) -> None:
    first, again, other = (trained(tiny_task, 2, seed=seed) for seed in (3, 3, 4))
    assert same(state(first), state(again))
    assert not same(state(first), state(other))
    assert first.evaluate("val") == again.evaluate("val")


def test_the_seed_draws_both_the_weights_and_the_order(tiny_task: Task) -> None:
    first, other = (Trainer(tiny_task, SPEC, seed=seed, device="cpu") for seed in (0, 1))
    weight = "network.0.weight"
    assert not torch.equal(
        first.classifier.state_dict()[weight], other.classifier.state_dict()[weight]
    )
    other.classifier.load_state_dict(first.classifier.state_dict())
    for trainer in (first, other):
        trainer.train(1, schedule_epochs=1)
    assert not same(state(first), state(other))


def test_initial_weights_have_the_sd_of_the_spec(tiny_task: Task) -> None:
    dense = {**SPEC.structure, "dense": [256]}
    for sd in (0.3, 1.0, 2.0):
        spec = with_hyper(replace(SPEC, structure=dense), init_sd=sd)
        weights = Trainer(tiny_task, spec, device="cpu").classifier.state_dict()
        wide = weights["network.6.weight"]
        assert wide.shape == (256, 8 * 4 * 4)
        assert float(wide.std()) == pytest.approx(sd * math.sqrt(2 / 128), rel=0.03)
        assert all(not v.any() for k, v in weights.items() if k.endswith(("6.bias", "8.bias")))


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_changes_nothing_and_is_kept(tiny_task: Task) -> None:
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append(state(trained(tiny_task, 1)))
            assert torch.get_num_threads() == n
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_the_number_of_threads_is_kept_when_training_fails(tiny_task: Task) -> None:
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    trainer._train_step = lambda: 1 / 0  # type: ignore[assignment,return-value]
    with threads(2):
        with pytest.raises(ZeroDivisionError):
            trainer.train(1, schedule_epochs=1)
        assert torch.get_num_threads() == 2


def test_the_callers_random_states_and_arrays_are_not_touched(
    tiny_task: Task, tmp_path: Path
) -> None:
    arrays = {
        f"{split}_{part}": getattr(tiny_task, f"{split}_{part}").copy()
        for split in ("train", "val", "test")
        for part in ("images", "labels")
    }
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    trainer = trained(tiny_task, 1, seed=5)
    trainer.evaluate("val", 7)
    trainer.save(tmp_path / "state")
    load_classifier(tmp_path / "state", SPEC, tiny_task.image_shape, tiny_task.n_classes)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    for name, before in arrays.items():
        assert np.array_equal(getattr(tiny_task, name), before)


def test_the_callers_random_state_does_not_matter(tiny_task: Task) -> None:
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            results.append(state(trained(tiny_task, 1)))
    assert same(*results)


# --- sizes at the edge ------------------------------------------------------------------------


@pytest.mark.parametrize("n_train", [2, 3, 15, 16, 17])
@pytest.mark.parametrize("batch_size", [1, 2, 16, 1000])
@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["batch norm", "plain"])
def test_any_number_of_images_trains_with_any_batch(
    n_train: int, batch_size: int, spec: ModelSpec
) -> None:
    result = job(drawn(n_train), spec=with_hyper(spec, batch_size=batch_size), epochs=1.0).run()
    assert result.score in {0.0, 0.5, 1.0}
    assert result.epochs == 1
    assert not result.diverged


def test_a_batch_larger_than_the_task_is_the_whole_task(tiny_task: Task) -> None:
    whole, larger = (trained(tiny_task, 2, with_hyper(batch_size=size)) for size in (90, 4096))
    assert same(state(whole), state(larger))


def test_a_constant_channel_trains() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.arange(4) % 2
    task = Task("flat", *(images, labels) * 3, class_names=("a", "b"))
    result = job(task, epochs=3.0).run()
    assert result.score == 0.5
    assert not result.diverged


@pytest.mark.parametrize("epochs", [1e-9, 0.1, 0.5, 1.0, 1.3, 2.0])
def test_fractions_of_an_epoch_are_rounded_to_steps_and_one_step_is_the_least(
    tiny_task: Task, epochs: float
) -> None:
    result = job(tiny_task, epochs=epochs).run()
    assert result.epochs == max(1, round(epochs * STEPS)) / STEPS


@pytest.mark.parametrize(
    ("epochs", "schedule"),
    [(0, 1), (-1, 1), (2, 1), (math.nan, 1), (1, math.nan), (math.inf, math.inf), (1, math.inf)],
)
def test_an_impossible_budget_is_an_input_error(
    tiny_task: Task, epochs: float, schedule: float
) -> None:
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    with pytest.raises(InputError, match="expected 0 < epochs <= schedule_epochs < infinity"):
        trainer.train(epochs, schedule_epochs=schedule)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-6])
def test_a_budget_of_seconds_stops_early(tiny_task: Task, seconds: float) -> None:
    result = job(tiny_task, epochs=10_000.0, seconds=seconds, test=True).run()
    assert result.epochs < 100
    assert 0 <= result.score <= 1
    assert not result.diverged


def test_ample_seconds_change_nothing(tiny_task: Task) -> None:
    plain, timed = job(tiny_task).run(), job(tiny_task, seconds=1e6).run()
    assert untimed(plain) == untimed(timed)


# --- training in pieces -----------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.01, 2.9), max_size=4).map(sorted),
    st.sampled_from([0.0, 0.9]),
    st.booleans(),
)
def test_pieces_come_to_the_same_bits_as_one_go(
    tiny_task: Task,
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[float],
    momentum: float,
    batch_norm: bool,
) -> None:
    spec = with_hyper(SPEC if batch_norm else PLAIN, momentum=momentum)
    file = tmp_path_factory.mktemp("pieces") / "deep" / "state.safetensors"
    for cut in cuts:
        piece = job(tiny_task, spec=spec, epochs=cut, schedule_epochs=3.0, checkpoint=file, seed=7)
        piece.run()
        assert piece.checkpoint_is_there
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    last = job(tiny_task, spec=spec, epochs=3.0, checkpoint=file, seed=7, test=True)
    whole = job(tiny_task, spec=spec, epochs=3.0, seed=7, test=True)
    assert last.key == whole.key
    assert untimed(last.run()) == untimed(whole.run())
    resumed = Trainer(tiny_task, spec, seed=7, device="cpu")
    assert resumed.load(file, at_most=3.0)
    assert same(state(resumed), state(trained(tiny_task, 3.0, spec, seed=7)))


def test_a_finished_training_is_only_evaluated(tiny_task: Task, tmp_path: Path) -> None:
    first = job(tiny_task, checkpoint=tmp_path / "state")
    result, before = first.run(), load_file(tmp_path / "state")
    assert untimed(first.run()) == untimed(result)
    assert same(load_file(tmp_path / "state"), before)


def test_a_job_killed_after_its_checkpoint_tells_the_time_it_took(
    tiny_task: Task, tmp_path: Path
) -> None:
    first = job(tiny_task, epochs=8.0, schedule_epochs=9.0, checkpoint=tmp_path / "state")
    trained_for = first.run().seconds
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    assert trainer.load(tmp_path / "state", at_most=8)
    noted = float(trainer.notes["seconds"])
    assert 0 < noted <= trained_for
    for _ in range(2):  # killed once and once more
        again = first.run().seconds
        assert noted < again
        noted = again


def test_another_job_of_the_same_training_tells_its_own_time_only(
    tiny_task: Task, tmp_path: Path
) -> None:
    first = job(tiny_task, checkpoint=tmp_path / "state")
    first.run()
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    assert trainer.load(tmp_path / "state", at_most=2)
    trainer.save(tmp_path / "state", {**trainer.notes, "seconds": "1000.0"})
    assert replace(first, test=True).run().seconds < 1000


def test_a_checkpoint_without_notes_is_taken(tiny_task: Task, tmp_path: Path) -> None:
    trained(tiny_task, 2).save(tmp_path / "state")
    result = job(tiny_task, checkpoint=tmp_path / "state").run()
    assert untimed(result) == untimed(job(tiny_task).run())


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_is_an_os_error_that_names_the_file(tiny_task: Task, tmp_path: Path) -> None:
    import resource

    trainer = trained(tiny_task, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"can't be written .*state") as caught:
            trainer.save(tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "state")
    assert pickle.loads(pickle.dumps(caught.value)).filename == caught.value.filename  # noqa: S301
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_past_the_target_is_ignored(tiny_task: Task, tmp_path: Path) -> None:
    far = trained(tiny_task, 3, schedule_epochs=4)
    far.save(tmp_path / "far")
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    before = state(trainer)
    assert not trainer.load(tmp_path / "far", at_most=2.8)
    assert trainer.epochs == 0
    assert same(state(trainer), before)
    assert trainer.load(tmp_path / "far", at_most=3)
    with_it = job(tiny_task, schedule_epochs=4.0, checkpoint=tmp_path / "far").run()
    assert untimed(with_it) == untimed(job(tiny_task, schedule_epochs=4.0).run())


@pytest.mark.parametrize("content", [None, b"", b"text", "half", "longer"])
def test_a_missing_or_damaged_checkpoint_means_training_from_the_start(
    tiny_task: Task, tmp_path: Path, content: bytes | str | None
) -> None:
    file = tmp_path / "state"
    trained(tiny_task, 1, schedule_epochs=2).save(file)
    whole = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        damaged = {"half": whole[: len(whole) // 2], "longer": whole + b"x"}
        file.write_bytes(content if isinstance(content, bytes) else damaged[content])
    assert untimed(job(tiny_task, checkpoint=file).run()) == untimed(job(tiny_task).run())
    assert Trainer(tiny_task, SPEC, device="cpu").load(file, at_most=2)


def test_jobs_of_different_trainings_never_share_a_checkpoint(
    tiny_task: Task, tmp_path: Path
) -> None:
    shared = SharedTask(tiny_task.fingerprint, task=tiny_task)
    options: dict[str, Any] = {"epochs": 1, "schedule_epochs": 9, "seed": 0, "device": "cpu"}
    jobs = [
        resumable_job(tmp_path, shared, spec, **{**options, **change})
        for spec in (SPEC, PLAIN)
        for change in (
            {}, {"seed": 1}, {"schedule_epochs": 3}, {"schedule_epochs": 1 / 3, "epochs": 0.1},
            {"schedule_epochs": 0.333333, "epochs": 0.1}, {"schedule_epochs": 1_000_001},
            {"schedule_epochs": 1_000_002},
        )
    ]  # fmt: skip
    other = drawn(4)
    jobs.append(resumable_job(tmp_path, SharedTask(other.fingerprint, task=other), SPEC, **options))
    assert len({j.checkpoint for j in jobs}) == len(jobs) == len({j.key for j in jobs})
    same_training = [
        resumable_job(tmp_path, shared, SPEC, **{**options, **change})
        for change in ({"epochs": 2}, {"schedule_epochs": 9.0}, {"test": True}, {"device": "auto"})
    ]
    assert {j.checkpoint for j in same_training} == {jobs[0].checkpoint}
    assert jobs[0].checkpoint is not None
    assert jobs[0].checkpoint.parent == checkpoint_folder(tmp_path, tiny_task.fingerprint)
    assert not jobs[0].checkpoint_is_there


def test_trainings_of_several_schedules_side_by_side_do_not_mix(
    tiny_task: Task, tmp_path: Path
) -> None:
    shared = SharedTask(tiny_task.fingerprint, task=tiny_task)
    for epochs in (1, 2):
        for schedule in (2, 3):
            resumed = resumable_job(
                tmp_path,
                shared,
                SPEC,
                epochs=epochs,
                schedule_epochs=schedule,
                seed=0,
                device="cpu",
            )
            alone = replace(resumed, checkpoint=None)
            assert untimed(resumed.run()) == untimed(alone.run())


# --- the learning rate ------------------------------------------------------------------------


def test_the_learning_rate_falls_to_zero_along_half_a_cosine() -> None:
    # One dense layer on images all alike: the gradient hardly changes, so that the length of a
    # step shows the learning rate.
    labels = np.zeros(16, np.int64)
    labels[0] = 1
    images = np.full((16, 8, 8, 1), 100, np.uint8)
    images[:, 0, 0] = 200
    task = Task("alike", *(images, labels) * 3, class_names=("a", "b"))
    structure = {"layers": [], "dense": [], "batch_norm": False}
    spec = with_hyper(
        replace(SPEC, structure=structure), learning_rate=1e-5, momentum=0, weight_decay=0
    )
    trainer, lengths = Trainer(task, spec, device="cpu"), []
    before = state(trainer)
    for step in range(10):
        trainer.train(step + 1, schedule_epochs=10)
        after = state(trainer)
        moved = [(after[k].double() - before[k].double()).norm() for k in after if "network" in k]
        lengths.append(float(torch.stack(moved).norm()))
        before = after
    expected = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert np.array(lengths) / lengths[0] == pytest.approx(expected, rel=0.05, abs=0.01)


def test_a_longer_schedule_is_another_training(tiny_task: Task) -> None:
    short, long = (trained(tiny_task, 2, schedule_epochs=schedule) for schedule in (2, 20))
    assert not same(state(short), state(long))


# --- divergence -------------------------------------------------------------------------------


WILD = [
    with_hyper(PLAIN, learning_rate=1e6),
    with_hyper(PLAIN, learning_rate=1e6, init_sd=1e6),
    with_hyper(PLAIN, init_sd=1e30),
    with_hyper(SPEC, learning_rate=1e30, init_sd=1e10),
    with_hyper(PLAIN, learning_rate=1e300),
    with_hyper(PLAIN, weight_decay=1e30),
]


@pytest.mark.parametrize("spec", WILD)
def test_a_diverged_training_scores_chance(tiny_task: Task, spec: ModelSpec) -> None:
    result = job(tiny_task, spec=spec, epochs=6, test=True).run()
    assert result.diverged
    assert result.score == tiny_task.chance
    assert result.test_score == tiny_task.chance


@pytest.mark.parametrize("pieces", [(6,), (0.1, 6), (1, 2, 6)])
def test_a_training_that_diverges_stops_at_the_end_of_its_epoch(
    tiny_task: Task, tmp_path: Path, pieces: tuple[float, ...]
) -> None:
    for epochs in pieces:
        options = {"epochs": epochs, "schedule_epochs": 6, "checkpoint": tmp_path / "state"}
        result = job(tiny_task, spec=WILD[2], **options).run()
        assert result.diverged
        assert result.epochs == min(1, max(1 / STEPS, pieces[0]))


def test_a_training_that_diverges_late_stops_then(tiny_task: Task) -> None:
    trainer = Trainer(tiny_task, SPEC, device="cpu")
    step = trainer._train_step
    trainer._train_step = lambda: (
        step()
        * (  # type: ignore[method-assign]
            math.inf if trainer._step == 2 * STEPS + 1 else 1
        )
    )
    trainer.train(6, schedule_epochs=6)
    assert trainer.diverged
    assert trainer.epochs == 3


@pytest.mark.parametrize("method", ["__init__", "_train_step", "evaluate"])
def test_memory_that_runs_out_is_a_divergence(
    tiny_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    whole = getattr(Trainer, method)
    failed: list[weakref.ref[Trainer]] = []

    def run_out(self: Trainer, *arguments: Any, **options: Any) -> Any:
        if not failed:
            failed.append(weakref.ref(self))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *arguments, **options)

    def empty() -> None:
        gc.collect()
        assert failed[0]() is None  # else there would be little to free

    monkeypatch.setattr(Trainer, method, run_out)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    torn = job(tiny_task, test=True, checkpoint=tmp_path / "state")
    result = torn.run()
    assert result.diverged
    assert result.score == result.test_score == tiny_task.chance
    assert 0 < result.epochs < 2
    assert "ran out of memory" in caplog.text
    assert untimed(torn.run()) == untimed(result)  # it goes on from the checkpoint


def test_a_task_that_does_not_fit_on_the_device_is_an_input_error(
    tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    training_module._kept.clear()
    monkeypatch.setattr(training_module, "_put", run_out)
    with pytest.raises(InputError, match="tiny doesn't fit into the memory of cpu"):
        job(tiny_task).run()


@pytest.mark.parametrize("spec", WILD)
def test_training_on_after_a_divergence_does_nothing(
    tiny_task: Task, tmp_path: Path, spec: ModelSpec
) -> None:
    trainer = trained(tiny_task, 4, spec, schedule_epochs=8)
    assert trainer.diverged
    before, epochs = state(trainer), trainer.epochs
    trainer.train(8, schedule_epochs=8)
    assert trainer.epochs == epochs
    after = state(trainer)
    assert all(torch.equal(after[k].nan_to_num(), before[k].nan_to_num()) for k in before)
    trainer.save(tmp_path / "state")
    again = Trainer(tiny_task, spec, device="cpu")
    assert again.load(tmp_path / "state", at_most=8)
    assert again.diverged
    again.train(8, schedule_epochs=8)
    assert again.epochs == epochs
    assert again.evaluate("val") == tiny_task.chance


@settings(max_examples=40)
@given(st.floats(-3, 38), st.floats(-10, 38), st.floats(-6, 30), st.booleans(), st.integers(1, 15))
def test_no_hyperparameter_crashes_the_caller(
    tiny_task: Task, log_rate: float, log_sd: float, log_decay: float, batch_norm: bool, steps: int
) -> None:
    spec = with_hyper(
        SPEC if batch_norm else PLAIN,
        learning_rate=10**log_rate,
        init_sd=10**log_sd,
        weight_decay=10**log_decay,
    )
    result = job(tiny_task, spec=spec, epochs=steps / STEPS, test=True).run()
    assert 0 <= result.score <= 1
    assert result.test_score is not None
    assert not result.diverged or result.score == tiny_task.chance


def test_outputs_that_overflow_are_a_divergence_and_evaluating_changes_nothing(
    tiny_task: Task, tmp_path: Path
) -> None:
    trainer = trained(tiny_task, 1, schedule_epochs=2)
    with torch.no_grad():
        trainer.classifier.network[-1].bias[0] = math.inf
    assert not trainer.diverged
    assert trainer.evaluate("val") == tiny_task.chance
    assert trainer.diverged
    with torch.no_grad():  # as weight decay might do in the next steps
        trainer.classifier.network[-1].bias[0] = 0.0
    trainer.save(tmp_path / "state")
    resumed = Trainer(tiny_task, SPEC, device="cpu")
    assert resumed.load(tmp_path / "state", at_most=2)
    for going_on in (trainer, resumed):
        going_on.train(2, schedule_epochs=2)
        assert not going_on.diverged
    assert same(state(trainer), state(resumed))


# --- inherited weights ------------------------------------------------------------------------


STEPS_UP = [
    lambda s: widen(s, 0, 13),
    lambda s: deepen(s, 0, 3),
    lambda s: widen_dense(s, 0, 20),
    lambda s: deepen_dense(s, 0),
]


def grown(spec: ModelSpec, step: Any = STEPS_UP[0], **changes: Any) -> ModelSpec:
    return with_hyper(replace(spec, structure=step(spec.structure)), **changes)


@pytest.mark.parametrize("step", STEPS_UP, ids=["widen", "deepen", "widen dense", "deepen dense"])
@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["batch norm", "plain"])
def test_a_child_begins_with_its_parents_outputs_and_trains_on(
    tiny_task: Task, tmp_path: Path, spec: ModelSpec, step: Any
) -> None:
    parent = trained(tiny_task, 1.4, spec)
    parent.save(tmp_path / "state")
    child = Trainer(tiny_task, grown(spec, step, batch_size=8), seed=5, device="cpu")
    child.inherit(tmp_path / "state", spec)
    expected = parent.classifier.predict_proba(tiny_task.val_images)
    assert child.classifier.predict_proba(tiny_task.val_images) == pytest.approx(expected, abs=1e-6)
    assert child.evaluate("val") == parent.evaluate("val")
    assert child.epochs == 0
    assert not child.diverged
    before = state(child)
    assert not any(name.startswith("momentum") for name in before)
    child.train(6, schedule_epochs=6)
    assert child.evaluate("val") > 0.9
    assert not any(torch.equal(before[k], v) for k, v in state(child).items() if ".weight" in k)


def test_inheriting_is_a_function_of_parent_spec_and_seed(tiny_task: Task, tmp_path: Path) -> None:
    trained(tiny_task, 1).save(tmp_path / "state")
    states, random_state = [], torch.get_rng_state()
    for seed, epochs, n in ((0, None, 1), (0, 1.0, 3), (1, None, 1)):
        child = Trainer(tiny_task, grown(SPEC), seed=seed, device="cpu")
        if epochs:  # forgotten when it begins anew
            child.train(epochs, schedule_epochs=2)
        with threads(n):
            child.inherit(tmp_path / "state", SPEC)
        states.append(state(child))
        child.train(1, schedule_epochs=2)
        states.append(state(child))
    assert same(states[0], states[2])
    assert same(states[1], states[3])
    assert not same(states[0], states[4])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_identity_layer_is_made_with_the_first_images_of_the_first_epoch(
    tmp_path: Path,
) -> None:
    task = drawn(600)
    parent = trained(task, 0.2)
    parent.save(tmp_path / "state")
    child = Trainer(task, grown(SPEC, STEPS_UP[1]), seed=5, device="cpu")
    child.inherit(tmp_path / "state", SPEC)
    rows = np.random.default_rng([5, 0]).permutation(600)[:512]
    network, pixels = parent.classifier.network[:4].train(), task.train_images
    normalised = (pixels[rows] - pixels.mean()) / pixels.std()
    with torch.no_grad():
        maps = network(torch.from_numpy(normalised).float().permute(0, 3, 1, 2))
    expected = maps.mean((0, 2, 3)).numpy()
    assert child.classifier.network[5].running_mean.numpy() == pytest.approx(expected, abs=1e-5)


def test_a_child_of_a_diverged_training_counts_as_diverged(tiny_task: Task, tmp_path: Path) -> None:
    trained(tiny_task, 1, WILD[2]).save(tmp_path / "state")
    child = Trainer(tiny_task, grown(PLAIN), device="cpu")
    child.inherit(tmp_path / "state", WILD[2])
    assert child.diverged
    child.train(2, schedule_epochs=2)
    assert child.epochs == 1 / STEPS
    assert child.evaluate("val") == tiny_task.chance


def test_what_can_not_be_inherited_is_refused_and_changes_nothing(
    tiny_task: Task, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    trained(tiny_task, 1).save(file)
    (tmp_path / "half").write_bytes(file.read_bytes()[:999])
    child = Trainer(tiny_task, grown(SPEC), device="cpu")
    before = state(child)
    two_steps = grown(grown(SPEC, STEPS_UP[2]), STEPS_UP[3])
    for spec, other, error, message in (
        (SPEC, tmp_path / "none", InputError, "expected a checkpoint of the parent.*none"),
        (SPEC, tmp_path / "half", InputError, "expected a checkpoint of the parent.*half"),
        (PLAIN, file, InputError, "expected a checkpoint of the parent"),
        (grown(SPEC, STEPS_UP[2]), file, InputError, "expected a checkpoint of the parent"),
        (replace(SPEC, architecture="other"), file, SpecError, "architecture \"chain\".*'other'"),
    ):
        with pytest.raises(error, match=message):
            child.inherit(other, spec)
    with pytest.raises(SpecError, match="one step apart"):
        Trainer(tiny_task, two_steps, device="cpu").inherit(file, SPEC)
    assert same(state(child), before)


# --- evaluation -------------------------------------------------------------------------------


def test_max_val_takes_the_same_images_for_every_training(tiny_task: Task) -> None:
    chosen: list[set[bytes]] = []
    for seed in range(3):
        trainer = Trainer(tiny_task, SPEC, seed=seed, device="cpu")
        seen: list[torch.Tensor] = []
        trainer.classifier.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        trainer.evaluate("val", 20)
        chosen.append({image.numpy().tobytes() for image in torch.cat(seen)})
        assert len(torch.cat(seen)) == 20
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[0] <= {image.tobytes() for image in tiny_task.val_images}


def test_max_val_beyond_the_split_is_the_whole_split(tiny_task: Task) -> None:
    trainer = trained(tiny_task, 1)
    assert trainer.evaluate("val", 45) == trainer.evaluate("val") == trainer.evaluate("val", 10**9)
    for nothing in (0, -1):
        with pytest.raises(InputError, match="at least 1 image"):
            trainer.evaluate("val", nothing)


def test_the_test_split_is_evaluated_where_it_is_asked_for(tiny_task: Task) -> None:
    without, with_test = job(tiny_task).run(), job(tiny_task, test=True).run()
    assert without.test_score is None
    assert with_test.test_score == trained(tiny_task, 2).evaluate("test")
    assert without.score == with_test.score


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_counts_what_the_classifier_predicts(tiny_task: Task, split: str) -> None:
    trainer = trained(tiny_task, 0.6)
    images, labels = getattr(tiny_task, f"{split}_images"), getattr(tiny_task, f"{split}_labels")
    probabilities = trainer.classifier.predict_proba(images)
    assert probabilities.shape == (45, 3)
    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    assert probabilities.sum(1) == pytest.approx(np.ones(45), abs=1e-5)
    accuracy = trainer.evaluate(split)
    assert (probabilities.argmax(1) == labels).mean() == accuracy
    assert 1 / 3 < accuracy < 1  # neither lost nor finished: the comparison means something


def test_predictions_do_not_depend_on_what_else_is_in_the_call(tiny_task: Task) -> None:
    classifier = trained(tiny_task, 1).classifier
    whole = classifier.predict_proba(tiny_task.test_images)
    parts = [classifier.predict_proba(tiny_task.test_images[i : i + 7]) for i in range(0, 45, 7)]
    assert np.concatenate(parts) == pytest.approx(whole, abs=1e-6)
    repeated = classifier.predict_proba(np.concatenate([tiny_task.test_images] * 120))  # 11 batches
    assert repeated == pytest.approx(np.concatenate([whole] * 120), abs=1e-6)


def test_no_images_have_no_predictions(tiny_task: Task) -> None:
    classifier = trained(tiny_task, 1).classifier
    assert classifier.predict_proba(np.zeros((0, 12, 12, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 12, 12, 3), np.float32), np.zeros((2, 12, 12, 1), np.uint8),
     np.zeros((12, 12, 3), np.uint8), np.zeros((2, 3, 12, 12), np.uint8),
     np.zeros((2, 24, 24, 3), np.uint8)],
)  # fmt: skip
def test_images_of_another_form_are_refused(tiny_task: Task, images: np.ndarray) -> None:
    classifier = ImageClassifier(SPEC, tiny_task.image_shape, tiny_task.n_classes)
    with pytest.raises(InputError, match=r"expected uint8 images \(N, 12, 12, 3\), got "):
        classifier.predict_proba(images)


@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["batch norm", "plain"])
def test_a_saved_classifier_predicts_the_same_bits(
    tiny_task: Task, tmp_path: Path, spec: ModelSpec
) -> None:
    trainer = trained(tiny_task, 2, spec)
    trainer.save(tmp_path / "model.safetensors")
    loaded = load_classifier(tmp_path / "model.safetensors", spec, (12, 12, 3), 3)
    assert not loaded.training
    expected = trainer.classifier.predict_proba(tiny_task.test_images)
    assert np.array_equal(loaded.predict_proba(tiny_task.test_images), expected)
    pixels = tiny_task.train_images.reshape(-1, 3)
    assert loaded.mean.flatten().numpy() == pytest.approx(pixels.mean(0))
    assert 1 / loaded.inverse_sd.flatten().numpy() == pytest.approx(pixels.std(0))


# --- jobs -------------------------------------------------------------------------------------


def test_the_key_names_what_determines_the_result(tiny_task: Task, tmp_path: Path) -> None:
    base = job(tiny_task, schedule_epochs=4.0, seconds=5.0, max_val=9)
    other = drawn(4)
    different = [
        replace(base, task=SharedTask(other.fingerprint, task=other)),
        replace(base, spec=PLAIN),
        replace(base, epochs=3.0),
        replace(base, schedule_epochs=5.0),
        replace(base, schedule_epochs=None),
        replace(base, seconds=6.0),
        replace(base, seconds=None),
        replace(base, seed=1),
        replace(base, max_val=10),
        replace(base, max_val=None),
        replace(base, test=True),
        replace(base, ancestors=(Ancestor(PLAIN, 2.0),)),
    ]
    assert len({j.key for j in (base, *different)}) == 1 + len(different)
    alike = [
        replace(base, device="auto"),
        replace(base, checkpoint=tmp_path / "state"),
        replace(base, epochs=2, schedule_epochs=4, seconds=5),
        replace(base, task=SharedTask(tiny_task.fingerprint, folder=tmp_path)),
        replace(base, spec=ModelSpec.from_json(SPEC.to_json())),
    ]
    assert {j.key for j in alike} == {base.key}
    assert job(tiny_task, schedule_epochs=2.0).key == job(tiny_task).key


def test_every_field_of_a_job_is_judged_above() -> None:
    fields = {"task", "spec", "epochs", "schedule_epochs", "seconds", "seed", "max_val", "test"}
    fields |= {"ancestors"}
    assert set(TrainingJob.__dataclass_fields__) == fields | {"device", "checkpoint"}


def test_a_task_read_back_from_disk_trains_to_the_same_bits(
    tiny_task: Task, tmp_path: Path
) -> None:
    tiny_task.save(tmp_path / "task")
    mapped = SharedTask(tiny_task.fingerprint, folder=tmp_path / "task")
    assert untimed(replace(job(tiny_task), task=mapped).run()) == untimed(job(tiny_task).run())


def test_an_engine_shares_the_task_with_its_jobs(tiny_task: Task) -> None:
    with LocalEngine() as engine:
        shared = engine.share(tiny_task)
        jobs = [TrainingJob(shared, SPEC, 1.0, seed=seed, device="cpu") for seed in range(3)]
        results = dict(engine.run(jobs))
    assert [untimed(results[i]) for i in range(3)] == [untimed(j.run()) for j in jobs]


def test_trainings_in_threads_do_not_disturb_each_other(tiny_task: Task) -> None:
    expected = [untimed(job(tiny_task, seed=seed).run()) for seed in range(4)]
    found: dict[int, TrainingResult] = {}

    def train(seed: int) -> None:
        found[seed] = untimed(job(tiny_task, seed=seed).run())

    workers = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[seed] for seed in range(4)] == expected


# --- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "mps", "meta", "xpu", "cpu:cpu"])
def test_an_unknown_device_is_an_input_error(tiny_task: Task, device: str) -> None:
    with pytest.raises(InputError, match='expected device "auto", "cpu" or "cuda'):
        resolve_device(device)
    with pytest.raises(InputError):
        job(tiny_task, device=device).run()


def test_cuda_that_is_not_there_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for device in ("cuda", "cuda:0", "cuda:1"):
        with pytest.raises(InputError, match=rf"'{device}' was asked for.*use \"cpu\""):
            resolve_device(device)


def test_a_cuda_device_beyond_the_last_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="'cuda:2' was asked for, but torch sees only 2"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_used_only_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    class Autocast:
        def __init__(self, kind: str, dtype: torch.dtype, enabled: bool) -> None:
            self.kind, self.enabled = kind, enabled

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch, "autocast", Autocast)
    device_module._has_bfloat16.cache_clear()
    on = autocast(torch.device("cuda", 1))
    device_module._has_bfloat16.cache_clear()
    assert (on.kind, on.enabled) == ("cuda", native)  # type: ignore[attr-defined]
    assert not autocast(torch.device("cpu")).enabled  # type: ignore[attr-defined]


def test_one_task_is_kept_on_the_device_at_a_time(
    tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, kept = training_module._put, []

    def put_counting(task: Task, device: torch.device) -> Any:
        assert not training_module._kept  # the last one is gone before
        kept.append(task.name)
        return put(task, device)

    monkeypatch.setattr(training_module, "_put", put_counting)
    training_module._kept.clear()
    other = drawn(9)
    for task in (tiny_task, tiny_task, other, other, tiny_task):
        job(task, epochs=0.1).run()
        assert len(training_module._kept) == 1
    assert kept == ["tiny", "noise", "tiny"]


@pytest.mark.cuda
@needs_cuda
def test_cuda_scores_as_the_cpu_does(tiny_task: Task, tmp_path: Path) -> None:
    before = torch.cuda.get_rng_state()
    cpu = job(tiny_task, epochs=8, test=True).run()
    cuda = job(tiny_task, epochs=8, test=True, device="cuda", checkpoint=tmp_path / "state").run()
    assert cuda.score == pytest.approx(cpu.score, abs=0.1)
    assert cuda.test_score == pytest.approx(cpu.test_score, abs=0.1)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    loaded = load_classifier(tmp_path / "state", SPEC, (12, 12, 3), 3)
    accuracy = (
        loaded.predict_proba(tiny_task.test_images).argmax(1) == tiny_task.test_labels
    ).mean()
    assert accuracy == pytest.approx(cuda.test_score, abs=0.1)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("step", STEPS_UP)
def test_a_child_on_cuda_begins_with_its_parents_outputs(
    tiny_task: Task, tmp_path: Path, step: Any
) -> None:
    parent = trained(tiny_task, 2)
    parent.save(tmp_path / "state")
    child = Trainer(tiny_task, grown(SPEC, step), device="cuda")
    child.inherit(tmp_path / "state", SPEC)
    expected = parent.classifier.predict_proba(tiny_task.val_images)
    assert child.classifier.predict_proba(tiny_task.val_images) == pytest.approx(expected, abs=1e-2)
    child.train(6, schedule_epochs=6)
    assert child.evaluate("val") > 0.9


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("spec", WILD[:3])
def test_a_divergence_on_cuda_scores_chance(tiny_task: Task, spec: ModelSpec) -> None:
    result = job(tiny_task, spec=spec, epochs=6, device="cuda").run()
    assert result.diverged
    assert result.score == tiny_task.chance


def test_the_classifier_takes_away_the_mean_and_spread_of_the_training_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(2100, 8, 9, 3), dtype=np.uint8)
    images[..., 1] = 7  # a constant channel is only moved to 0
    labels = np.arange(len(images)) % 2
    task = Task.from_arrays(images, labels, val_images=images[:9], val_labels=labels[:9])
    classifier = Trainer(task, SPEC, device="cpu").classifier
    pixels = task.train_images.reshape(-1, 3)
    sd = pixels.std(0)
    assert classifier.mean.flatten().numpy() == pytest.approx(pixels.mean(0), rel=1e-6)
    expected = [1 / sd[0], 1, 1 / sd[2]]
    assert classifier.inverse_sd.flatten().numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [5, 4999, 5000, 5001, 12_345])
def test_moments_are_exact_up_to_5000_images_and_of_evenly_spaced_ones_beyond(n: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(n, 8, 9, 3), dtype=np.uint8)
    images[:, :, :, 2] = (np.arange(n) * 255 // n)[:, None, None]  # sorted: a part would mislead
    mean, sd = training_module._channel_moments(images)
    sample = images if n <= 5000 else images[[i * n // 5000 for i in range(5000)]]
    assert len(sample) == min(n, 5000)
    assert mean == pytest.approx(sample.reshape(-1, 3).mean(0), rel=1e-12)
    assert sd == pytest.approx(sample.reshape(-1, 3).std(0), rel=1e-12)
    assert mean == pytest.approx(images.reshape(-1, 3).mean(0), rel=2e-3)
