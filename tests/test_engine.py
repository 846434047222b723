import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trautoml import engine as engine_module
from trautoml import spec as spec_module
from trautoml.engine import Engine, LocalEngine, SharedTask, WorkerEngine, make_engine
from trautoml.errors import EngineError, InputError
from trautoml.jobs import TrainingJob
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.task import Task

SPEC = ModelSpec(
    "chain",
    {
        "layers": [{"kernel": 3, "channels": 8, "stride": 2, "pool_kernel": 2, "pool_stride": 2}],
        "dense": [],
        "batch_norm": True,
    },
    Hyperparameters(
        learning_rate=0.05, momentum=0.9, weight_decay=1e-4, batch_size=16, init_sd=1.0
    ),
)
TICK = 0.05


@dataclass(frozen=True)
class Call:
    """A job that calls a function; both travel by value, so the tests need not be importable."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = field(default=())

    @property
    def key(self) -> str:
        return repr(self)

    def run(self) -> Any:
        return self.function(*self.arguments)


class AwkwardError(Exception):
    """Pickles, but can't be unpickled: the constructor wants two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


def fail(error: BaseException) -> None:
    raise error


def fail_awkwardly() -> None:
    raise AwkwardError("a", "b")


def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (ValueError("not to be read"),)


@pytest.fixture(autouse=True, scope="module")
def by_value() -> Iterator[None]:
    """Let this module's classes travel to workers, which can't import it, by value."""
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerEngine]:
    with WorkerEngine(2) as engine:
        yield engine


@pytest.fixture(scope="module")
def lone() -> Iterator[WorkerEngine]:
    """One worker, for what ends it: it is started again faster than two."""
    with WorkerEngine(1) as engine:
        yield engine


@pytest.fixture(params=["local", "lone"])
def either(request: pytest.FixtureRequest, lone: WorkerEngine) -> Iterator[Engine]:
    if request.param == "lone":
        yield lone
    else:
        with LocalEngine() as local:
            yield local


@pytest.fixture(params=["local", "workers"])
def engine(request: pytest.FixtureRequest, workers: WorkerEngine) -> Iterator[Engine]:
    if request.param == "workers":
        yield workers
    else:
        with LocalEngine() as local:
            yield local


def training(shared: SharedTask, seed: int, **options: Any) -> TrainingJob:
    return TrainingJob(shared, SPEC, 1.0, seed=seed, device="cpu", **options)


def run(engine: Engine, *jobs: Any) -> list[Any]:
    found = dict(engine.run(jobs))
    return [found[index] for index in range(len(jobs))]


def is_usable(engine: Engine) -> bool:
    return run(engine, *(Call(pow, (i, 2)) for i in range(4))) == [0, 1, 4, 9]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    try:  # one that nobody has waited for yet is as good as gone
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    pause = threading.Event()
    for _ in range(int(seconds / TICK)):
        if condition():
            return True
        pause.wait(TICK)
    return condition()


# --- results ----------------------------------------------------------------------------------


def test_both_engines_give_the_same_bits(tiny_task: Task, workers: WorkerEngine) -> None:
    with LocalEngine() as local:
        results = [
            run(engine, *(training(engine.share(tiny_task), seed, test=True) for seed in range(6)))
            for engine in (local, workers)
        ]
    here, there = ([replace(result, seconds=0.0) for result in found] for found in results)
    assert here == there
    assert len({result.score for result in here}) > 1


def test_both_engines_leave_the_same_weights(
    tiny_task: Task, workers: WorkerEngine, tmp_path: Path
) -> None:
    with LocalEngine() as local:
        for engine, name in ((local, "local"), (workers, "workers")):
            run(engine, training(engine.share(tiny_task), 3, checkpoint=tmp_path / name))
    here, there = (load_file(tmp_path / name) for name in ("local", "workers"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("n", [0, 1, 2, 37])
def test_every_job_is_answered_once(engine: Engine, n: int) -> None:
    results = list(engine.run([Call(pow, (i, 2)) for i in range(n)]))
    assert sorted(results) == [(i, i**2) for i in range(n)]


def test_equal_jobs_are_answered_each(engine: Engine) -> None:
    assert run(engine, *[Call(pow, (3, 2))] * 5) == [9] * 5


def test_the_same_job_object_may_run_again(tiny_task: Task, engine: Engine) -> None:
    job = training(engine.share(tiny_task), 0)
    first, second = run(engine, job), run(engine, job)
    assert replace(first[0], seconds=0.0) == replace(second[0], seconds=0.0)


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("k"), EngineError("expected a, got b")])
def test_an_exception_of_a_job_is_passed_on(either: Engine, error: Exception) -> None:
    jobs = [Call(pow, (2, 2)), Call(fail, (error,)), Call(pow, (2, 3))]
    with pytest.raises(type(error)) as caught:
        run(either, *jobs)
    assert caught.value.args == error.args
    assert is_usable(either)


@pytest.mark.parametrize(("how", "others"), [("exit", 0), ("kill", 8)])
def test_a_worker_that_dies_is_an_engine_error_with_a_remedy(
    workers: WorkerEngine, how: str, others: int
) -> None:
    jobs = [*(Call(pow, (i, 2)) for i in range(others)), Call(die, (how,))]
    found = []
    with pytest.raises(EngineError, match=r"a worker process died.*run again with fewer workers"):
        found.extend(workers.run(jobs))
    assert all(result == index**2 for index, result in found)
    assert is_usable(workers)


def test_a_worker_that_dies_between_runs_is_replaced(lone: WorkerEngine) -> None:
    (process,), pool = run(lone, Call(os.getpid)), lone._pool
    assert pool is not None
    os.kill(process, signal.SIGKILL)
    assert wait_until(lambda: pool._flags.broken is not None)
    assert is_usable(lone)


@pytest.mark.parametrize(
    "job",
    [Call(Unreadable), Call(len, (Unreadable(),)), Call(fail_awkwardly)],
    ids=["result", "argument", "exception"],
)
def test_what_does_not_survive_the_way_is_an_engine_error(lone: WorkerEngine, job: Call) -> None:
    with pytest.raises(EngineError, match="did not survive the way between processes"):
        run(lone, job, Call(pow, (2, 2)))
    assert is_usable(lone)


@pytest.mark.parametrize(
    "job", [Call(threading.Lock), Call(id, (threading.Lock(),))], ids=["result", "argument"]
)
def test_what_cannot_be_pickled_at_all_is_an_error(lone: WorkerEngine, job: Call) -> None:
    with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
        run(lone, job)
    assert is_usable(lone)


def test_a_run_left_midway_ends_its_jobs(either: Engine, tmp_path: Path) -> None:
    def touch_and_linger(file: Path) -> None:
        file.touch()
        if file.name != "0":
            threading.Event().wait(60)

    stream = either.run([Call(touch_and_linger, (tmp_path / str(i),)) for i in range(20)])
    assert next(stream) == (0, None)
    stream.close()  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) <= 4
    assert is_usable(either)


def test_an_interrupt_midway_ends_the_jobs(either: Engine) -> None:
    stream = either.run([Call(pow, (i, 2)) for i in range(3)])
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert list(stream) == []
    assert is_usable(either)


# --- sharing ----------------------------------------------------------------------------------


def test_a_shared_task_comes_back_whole(tiny_task: Task, engine: Engine) -> None:
    shared = engine.share(tiny_task)
    assert shared.fingerprint == tiny_task.fingerprint
    assert shared.load() == tiny_task
    for split in ("train", "val", "test"):
        for part in (f"{split}_images", f"{split}_labels"):
            assert np.array_equal(getattr(shared.load(), part), getattr(tiny_task, part))
    assert run(engine, Call(lambda s: s.load().fingerprint, (shared,))) == [tiny_task.fingerprint]


def test_sharing_twice_writes_once(tiny_task: Task, tmp_path: Path) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        first = engine.share(tiny_task)
        assert first.folder is not None
        written = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
        assert engine.share(tiny_task) == first
        assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    with WorkerEngine(1, tmp_path) as another:
        assert another.share(tiny_task) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == written
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [tiny_task.fingerprint]


def test_a_shared_task_is_small_on_its_way_to_a_worker(tiny_task: Task, tmp_path: Path) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        assert len(pickle.dumps(engine.share(tiny_task))) < 1000


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(60)
    return process.pid


@pytest.mark.parametrize("whose", ["own", "ended", "running", "strange"])
def test_a_half_written_task_is_written_again(tiny_task: Task, tmp_path: Path, whose: str) -> None:
    process = {"own": os.getpid, "ended": ended_process, "running": os.getppid}.get(whose, str)()
    left = tmp_path / "tasks" / f"{tiny_task.fingerprint}.{process}.partial"
    left.mkdir(parents=True)
    (left / "train_images.npy").write_bytes(b"half")
    (left / "task.json").write_text("{")
    other = left.with_name(left.name.replace(tiny_task.fingerprint, "another"))
    other.mkdir()
    with WorkerEngine(1, tmp_path) as engine:
        assert engine.share(tiny_task).load() == tiny_task
    assert left.exists() == (whose in {"running", "strange"})
    assert other.exists()


@pytest.mark.parametrize("action", ["share", "release"])
def test_what_a_kill_left_is_removed_beside_a_whole_copy_too(
    tiny_task: Task, tmp_path: Path, action: str
) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        folder = engine.share(tiny_task).folder
        left = folder.with_name(f"{folder.name}.{ended_process()}.partial")
        left.mkdir()
        getattr(engine, action)(tiny_task)
        assert not left.exists()
        assert folder.exists() == (action == "share")


def test_a_copy_without_the_file_that_is_written_last_is_written_again(
    tiny_task: Task, tmp_path: Path
) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        folder = engine.share(tiny_task).folder
        (folder / "task.json").unlink()
        (folder / "val_images.npy").write_bytes(b"half")
        assert engine.share(tiny_task).load() == tiny_task
        assert np.array_equal(Task.load(folder).val_images, tiny_task.val_images)
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [tiny_task.fingerprint]


def test_a_kill_during_release_leaves_no_half_a_task_in_its_place(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(path: Path, **_: Any) -> None:
        (path / "train_images.npy").unlink()
        raise KeyboardInterrupt

    with WorkerEngine(1, tmp_path) as engine:
        folder = engine.share(tiny_task).folder
        with monkeypatch.context() as patch:
            patch.setattr(engine_module.shutil, "rmtree", kill)
            with pytest.raises(KeyboardInterrupt):
                engine.release(tiny_task)
        assert not folder.exists()
        assert engine.share(tiny_task).load() == tiny_task
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [tiny_task.fingerprint]


def test_a_worker_does_not_read_all_images_for_the_fingerprint(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        shared = engine.share(tiny_task)
    with monkeypatch.context() as patch:
        patch.setattr("trautoml.task.hashlib", None)
        engine_module._load_mapped.cache_clear()
        assert shared.load().fingerprint == tiny_task.fingerprint
    assert Task.load(shared.folder).fingerprint == tiny_task.fingerprint


def test_a_task_that_another_process_wrote_meanwhile_is_taken(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Task.save

    def save_twice(task: Task, folder: Path) -> None:
        save(task, folder)
        save(task, tmp_path / "tasks" / task.fingerprint)

    monkeypatch.setattr(Task, "save", save_twice)
    with WorkerEngine(1, tmp_path) as engine:
        assert engine.share(tiny_task).load() == tiny_task
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == [tiny_task.fingerprint]


def test_a_task_that_cannot_be_put_in_its_place_is_an_error(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "refused", str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    with WorkerEngine(1, tmp_path) as engine, pytest.raises(PermissionError, match="refused"):
        engine.share(tiny_task)
    assert list((tmp_path / "tasks").iterdir()) == []


def test_a_shared_task_without_its_folder_says_so() -> None:
    with pytest.raises(EngineError, match=r"share it by Engine\.share"):
        SharedTask("f").load()


def test_different_tasks_do_not_mix(tiny_task: Task, engine: Engine) -> None:
    tasks = [tiny_task, *(tiny_task.subset(fraction) for fraction in (0.3, 0.5, 0.8))]
    shared = [engine.share(task) for task in tasks]
    jobs = [Call(lambda s: s.load().n_train, (s,)) for s in shared * 3]
    assert run(engine, *jobs) == [task.n_train for task in tasks] * 3


# --- workers ----------------------------------------------------------------------------------


def test_workers_have_one_torch_thread_and_stay(workers: WorkerEngine) -> None:
    threads = torch.get_num_threads()
    jobs = [Call(lambda: (os.getpid(), torch.get_num_threads())) for _ in range(8)]
    found = run(workers, *jobs) + run(workers, *jobs)
    assert {n for _, n in found} == {1}
    assert os.getpid() not in {process for process, _ in found}
    assert len({process for process, _ in found}) <= 2
    assert torch.get_num_threads() == threads


def test_both_workers_work_at_once(workers: WorkerEngine, tmp_path: Path) -> None:
    def meet(own: str, other: str) -> bool:
        (tmp_path / own).touch()
        return wait_until((tmp_path / other).exists)

    assert run(workers, Call(meet, ("a", "b")), Call(meet, ("b", "a"))) == [True, True]


def test_closing_ends_the_workers_and_may_be_repeated(tiny_task: Task) -> None:
    engine = WorkerEngine(2)
    processes = set(run(engine, *[Call(os.getpid)] * 6))
    engine.share(tiny_task)
    workspace = engine.workspace
    assert any(workspace.iterdir())
    engine.close()
    assert wait_until(lambda: not any(is_alive(process) for process in processes))
    assert not workspace.exists()
    engine.close()


@pytest.mark.parametrize("kind", [LocalEngine, lambda w: WorkerEngine(1, w)])
def test_a_workspace_that_was_given_stays(tmp_path: Path, kind: Callable[[Path], Engine]) -> None:
    with kind(tmp_path) as engine:
        assert engine.workspace == tmp_path
    assert tmp_path.is_dir()


def test_a_temporary_workspace_goes_even_after_an_error() -> None:
    engine = LocalEngine()
    assert engine.workspace.is_dir()
    with pytest.raises(RuntimeError), engine:
        raise RuntimeError
    assert not engine.workspace.exists()


def script(text: str, tmp_path: Path) -> list[str]:
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(text))
    return [sys.executable, "-W", "error", str(file)]


def environment() -> dict[str, str]:
    package = str(Path(engine_module.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package}


def test_a_plain_script_needs_no_guard_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = script(
        """
        from pathlib import Path
        from trautoml.engine import WorkerEngine

        with open("runs", "a") as runs:
            runs.write("run ")

        class Square:
            def __init__(self, n):
                self.n = n
            key = "square"
            def run(self):
                return self.n ** 2

        engine = WorkerEngine(2)
        print(sorted(engine.run([Square(n) for n in range(5)])))
        for index, result in engine.run([Square(n) for n in range(5)]):
            break  # left midway
        print(sorted(engine.run([Square(3)])))
        engine.close()
        """,
        tmp_path,
    )
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]\n[(0, 9)]\n"
    assert (tmp_path / "runs").read_text() == "run "  # the workers did not run the script again


def test_workers_know_the_architectures_that_the_caller_registered(
    tiny_task: Task, lone: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec_module, "_ARCHITECTURES", dict(spec_module._ARCHITECTURES))
    assert is_usable(lone)  # registered when the workers run already, and replaced then
    for width in (2, 3):
        spec_module._ARCHITECTURES.pop("pixels", None)

        @spec_module.register_architecture("pixels")
        def build(
            structure: Mapping[str, Any],
            image_shape: tuple[int, int, int],
            n_classes: int,
            width: int = width,
        ) -> torch.nn.Module:
            return torch.nn.Sequential(
                torch.nn.AdaptiveAvgPool2d(width),
                torch.nn.Flatten(),
                torch.nn.Linear(width**2 * image_shape[2], n_classes),
            )

        spec = replace(SPEC, architecture="pixels", structure={})
        jobs = [replace(training(SharedTask("f", task=tiny_task), seed), spec=spec)
                for seed in range(2)]  # fmt: skip
        with LocalEngine() as local:
            results = [[r.score for r in run(engine, *jobs)] for engine in (local, lone)]
        assert results[0] == results[1]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = script(
        """
        import os, threading
        from trautoml.engine import WorkerEngine

        class Linger:
            key = "linger"
            def run(self):
                print(os.getpid(), flush=True)
                threading.Event().wait(300)

        engine = WorkerEngine(2)
        for _ in engine.run([Linger(), Linger()]):
            pass
        """,
        tmp_path,
    )
    parent = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        processes = [int(parent.stdout.readline()) for _ in range(2)]
        assert len(set(processes)) == 2
        assert all(is_alive(process) for process in processes)
        parent.kill()
        parent.wait(60)
        assert wait_until(lambda: not any(is_alive(process) for process in processes))


# --- choosing ---------------------------------------------------------------------------------


def test_make_engine_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_usable_processors", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for has_cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        expected = {
            (None, "auto"): 0 if has_cuda else 5,
            (None, "cpu"): 5,
            (0, "auto"): 0,
            (0, "cpu"): 0,
            (3, "auto"): 3,
            (3, "cpu"): 3,
        }
        if has_cuda:
            expected |= {(None, "cuda"): 0, (None, "cuda:0"): 0, (2, "cuda"): 2}
        for (workers, device), n in expected.items():
            with make_engine(workers, device, tmp_path) as engine:
                assert type(engine) is (WorkerEngine if n else LocalEngine)
                assert engine.n_workers == max(n, 1)
                assert engine.workspace == tmp_path
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA"):
        make_engine(device="cuda")


@pytest.mark.parametrize("n", [-1, -7])
def test_a_negative_number_of_workers_is_an_input_error(n: int) -> None:
    with pytest.raises(InputError, match=f"at least 1 worker, got {n}"):
        make_engine(n)


def test_a_worker_engine_has_a_worker_or_more() -> None:
    with pytest.raises(InputError, match="at least 1 worker, got 0"):
        WorkerEngine(0)
    with WorkerEngine() as engine:
        assert engine.n_workers == engine_module._usable_processors() >= 1


def test_images_reach_a_worker_unchanged(workers: WorkerEngine, tiny_task: Task) -> None:
    def total(shared: SharedTask) -> tuple[int, bool]:
        images = shared.load().train_images
        return int(images.sum(dtype=np.int64)), images.flags.writeable

    shared = workers.share(tiny_task)
    assert run(workers, Call(total, (shared,))) == [(int(tiny_task.train_images.sum()), False)]


@pytest.mark.parametrize("named_by", ["task", "fingerprint", "shared"])
def test_a_released_task_leaves_nothing_and_can_be_shared_again(
    tiny_task: Task, tmp_path: Path, named_by: str
) -> None:
    with WorkerEngine(1, tmp_path) as engine:
        shared = engine.share(tiny_task)
        folder = shared.folder
        released = {
            "task": tiny_task, "fingerprint": SharedTask(tiny_task.fingerprint), "shared": shared
        }[named_by]  # fmt: skip
        engine.release(released)
        engine.release(released)
        assert not folder.exists()
        assert engine.share(tiny_task).load() == tiny_task
