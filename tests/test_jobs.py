"""Lines of trainings, each begun with the weights of the one before; jobs alone: test_training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trautoml.engine import SharedTask
from trautoml.errors import SpecError
from trautoml.jobs import Ancestor, TrainingJob, TrainingResult, resumable_job
from trautoml.networks.morphism import deepen, widen, widen_dense
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import Task
from trautoml.training import Trainer

LAYER = {"kernel": 3, "channels": 4, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
HYPER = Hyperparameters(
    learning_rate=0.05, momentum=0.9, weight_decay=1e-4, batch_size=16, init_sd=1.0
)
FIRST = ModelSpec("chain", {"layers": [LAYER], "dense": [8], "batch_norm": True}, HYPER)
WIDER = replace(FIRST, structure=widen(FIRST.structure, 0, 7))
DEEPER = replace(
    WIDER, structure=deepen(WIDER.structure, 0, 3), hyper=replace(HYPER, learning_rate=0.02)
)
LINE = (Ancestor(FIRST, 2.0), Ancestor(WIDER, 1.0))


def job(folder: Path, task: Task, spec: ModelSpec = DEEPER, **options: Any) -> TrainingJob:
    options = {"epochs": 2.0, "schedule_epochs": 2.0, "seed": 3, "ancestors": LINE, **options}
    shared = SharedTask(task.fingerprint, task=task)
    return resumable_job(folder, shared, spec, device="cpu", **options)


def parents(folder: Path, task: Task) -> tuple[TrainingJob, TrainingJob]:
    """Make the jobs of LINE."""
    return (
        job(folder, task, FIRST, epochs=2.0, ancestors=()),
        job(folder, task, WIDER, epochs=1.0, schedule_epochs=1.0, ancestors=LINE[:1]),
    )


def file_of(made: TrainingJob) -> Path:
    assert made.checkpoint is not None
    return made.checkpoint


def untimed(result: TrainingResult) -> TrainingResult:
    return replace(result, seconds=0.0)


def same(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- names ------------------------------------------------------------------------------------


def test_a_job_without_ancestors_keeps_the_names_that_stores_remember() -> None:
    layer = {**LAYER, "channels": 8}
    spec = replace(FIRST, structure={"layers": [layer], "dense": [16], "batch_norm": True})
    shared = SharedTask("fingerprint")
    plain = TrainingJob(shared, spec, 2)
    assert plain.key == "94fd55b6dedfe2c0cacffe2908560edce1ddd24071b4f3cd2aca837f3cde19a0"
    whole = replace(plain, schedule_epochs=4, seconds=5, seed=3, max_val=9, test=True)
    assert whole.key == "552f303e3e12aaee7e9725411143f1fb45bccd60e97cbf9f32db28e04ea4be37"
    made = resumable_job(Path("w"), shared, spec, epochs=1, schedule_epochs=9, seed=3, device="cpu")
    assert file_of(made) == Path("w/checkpoints/fingerprint/a36d00becad96d32-3-9.0.safetensors")


def test_the_line_of_ancestors_is_part_of_both_names(tiny_task: Task, tmp_path: Path) -> None:
    older, last = LINE
    lines: list[tuple[Ancestor, ...]] = [
        LINE, (), (older,), (last,), (last, older), (older, older, last),
        (older, replace(last, epochs=1.5)), (replace(older, epochs=1.0), last),
        (older, replace(last, spec=DEEPER)),
        (older, replace(last, spec=replace(WIDER, hyper=replace(HYPER, momentum=0.8)))),
    ]  # fmt: skip
    jobs = [job(tmp_path, tiny_task, ancestors=line) for line in lines]
    assert len({j.key for j in jobs}) == len({j.checkpoint for j in jobs}) == len(jobs)
    alike = tuple(Ancestor(ModelSpec.from_json(a.spec.to_json()), int(a.epochs)) for a in LINE)
    again = job(tmp_path, tiny_task, ancestors=alike)
    assert (again.key, again.checkpoint) == (jobs[0].key, jobs[0].checkpoint)
    assert job(tmp_path, tiny_task, epochs=1.0).checkpoint == jobs[0].checkpoint


# --- the result is a function of the fields ---------------------------------------------------


def test_a_line_comes_to_what_its_trainings_one_by_one_come_to(
    tiny_task: Task, tmp_path: Path
) -> None:
    file = tmp_path / "by hand" / "state"
    before: ModelSpec | None = None
    for spec, epochs in ((FIRST, 2.0), (WIDER, 1.0), (DEEPER, 2.0)):
        trainer = Trainer(tiny_task, spec, seed=3, device="cpu")
        if before is not None:
            trainer.inherit(file, before)
        trainer.train(epochs, schedule_epochs=epochs)
        trainer.save(file)
        before = spec
    made = job(tmp_path, tiny_task, test=True)
    result = made.run()
    assert same(file_of(made), file)
    assert result.score == trainer.evaluate("val")
    assert result.test_score == trainer.evaluate("test")
    assert result.epochs == 2
    scratch = job(tmp_path, tiny_task, ancestors=())
    scratch.run()
    assert not same(file_of(scratch), file)


def run_half(made: TrainingJob) -> None:
    replace(made, epochs=made.epochs / 2, schedule_epochs=made.schedule_epochs).run()


def run_and_forget_the_notes(made: TrainingJob) -> None:
    made.run()
    trainer = Trainer(made.task.load(), made.spec, seed=made.seed, device="cpu")
    assert trainer.load(file_of(made), at_most=made.epochs)
    trainer.save(file_of(made))


def run_and_damage(made: TrainingJob) -> None:
    made.run()
    file_of(made).write_bytes(file_of(made).read_bytes()[:100])


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(
    "left",
    [TrainingJob.run, run_half, run_and_forget_the_notes, run_and_damage],
    ids=["whole", "half", "without notes", "damaged"],
)
def test_what_is_left_of_the_ancestors_does_not_matter(
    tiny_task: Task, tmp_path: Path, left: Callable[[TrainingJob], object], index: int
) -> None:
    from_nothing = job(tmp_path / "nothing", tiny_task)
    expected = untimed(from_nothing.run())
    left(parents(tmp_path / "left", tiny_task)[index])
    made = job(tmp_path / "left", tiny_task)
    assert untimed(made.run()) == expected
    assert same(file_of(made), file_of(from_nothing))
    for ours, theirs in zip(
        parents(tmp_path / "nothing", tiny_task), parents(tmp_path / "left", tiny_task), strict=True
    ):
        if theirs.checkpoint_is_there:  # a whole parent needs no grandparent
            assert same(file_of(ours), file_of(theirs))


def test_without_a_checkpoint_nothing_is_left_and_the_result_is_the_same(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path / "kept", tiny_task)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert untimed(replace(made, checkpoint=None).run()) == untimed(made.run())
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_whole_parent_is_neither_trained_nor_written_again(
    tiny_task: Task, tmp_path: Path
) -> None:
    first, second = parents(tmp_path, tiny_task)
    second.run()
    file_of(first).unlink()
    written = file_of(second).read_bytes()  # with the time it took, which is never twice the same
    job(tmp_path, tiny_task).run()
    assert file_of(second).read_bytes() == written
    assert not first.checkpoint_is_there


@pytest.mark.parametrize("pieces", [(2.0,), (0.2, 2.0), (0.6, 1.0, 2.0)])
def test_a_killed_child_goes_on_from_its_own_checkpoint(
    tiny_task: Task, tmp_path: Path, pieces: tuple[float, ...]
) -> None:
    whole = job(tmp_path / "whole", tiny_task, test=True)
    expected = untimed(whole.run())
    for epochs in pieces:
        made = job(tmp_path / "pieces", tiny_task, epochs=epochs, test=epochs == 2.0)
        result = made.run()
        for parent in parents(tmp_path / "pieces", tiny_task):
            file_of(parent).unlink(missing_ok=True)
    assert untimed(result) == expected
    assert same(file_of(made), file_of(whole))
    assert untimed(made.run()) == expected  # killed before its result was recorded
    assert [path.name for path in file_of(made).parent.iterdir()] == [file_of(made).name]


def test_a_child_begins_where_its_parent_ended(tiny_task: Task, tmp_path: Path) -> None:
    _, parent = parents(tmp_path, tiny_task)
    score = parent.run().score
    # One step at a learning rate of almost nothing.
    spec = replace(DEEPER, hyper=replace(HYPER, learning_rate=1e-9))
    child = job(tmp_path, tiny_task, spec, epochs=0.01).run()
    assert child.score == pytest.approx(score, abs=2 / 45)  # training mode is all that differs
    assert score > 0.5


# --- lines that end -----------------------------------------------------------------------------


def test_what_descends_from_a_diverged_training_counts_as_diverged(
    tiny_task: Task, tmp_path: Path
) -> None:
    wild = replace(FIRST, hyper=replace(HYPER, init_sd=1e30))
    plain = replace(wild, structure={**FIRST.structure, "batch_norm": False})
    specs = [plain]
    for step in (lambda s: widen(s, 0, 7), lambda s: widen_dense(s, 0, 9)):
        specs.append(replace(FIRST, structure=step(specs[-1].structure)))
    line = tuple(Ancestor(spec, 2.0) for spec in specs[:-1])
    made = job(tmp_path, tiny_task, specs[-1], ancestors=line, test=True)
    result = made.run()
    assert result.diverged
    assert result.score == result.test_score == tiny_task.chance
    assert 0 < result.epochs < 2
    assert untimed(made.run()) == untimed(result)  # from its checkpoint
    file_of(made).unlink()
    assert untimed(made.run()) == untimed(result)  # from its parent's
    assert not job(tmp_path, tiny_task, specs[-1], ancestors=()).run().diverged


def test_memory_that_runs_out_on_an_ancestor_ends_the_line(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failed = Trainer._train_step, []

    def run_out(self: Trainer) -> torch.Tensor:
        if not failed:
            failed.append(True)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", run_out)
    result = job(tmp_path, tiny_task).run()
    assert result.diverged
    assert result.score == tiny_task.chance


def test_a_line_of_other_than_single_steps_is_a_spec_error(tiny_task: Task, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected structures one step apart"):
        job(tmp_path, tiny_task, DEEPER, ancestors=LINE[:1]).run()


def test_another_seed_is_another_line(tiny_task: Task, tmp_path: Path) -> None:
    made = [job(tmp_path, tiny_task, seed=seed) for seed in (0, 1)]
    for each in made:
        each.run()
    assert not same(*map(file_of, made))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 3
    weights = [load_file(file_of(each))["model.network.0.weight"].numpy() for each in made]
    assert not np.allclose(*weights)
