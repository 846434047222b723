import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from automl_support import SETTINGS, SUITE, cloud, stripes
from PIL import Image
from rich.console import Console

from trautoml import __version__, cli, demo_tasks
from trautoml.errors import EngineError
from trautoml.probes import Measurement, ProbeSuite
from trautoml.search import HyperbandSearcher, RandomSearcher, SearchBudget, SearchResult
from trautoml.spaces import CellSpace
from trautoml.store import Store
from trautoml.task import Task


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Trautoml = Callable[..., Ran]


@pytest.fixture
def trautoml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Trautoml:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        captured = capsys.readouterr()
        return Ran(left.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted probes and a searcher without Optuna's database, so that a run takes a moment."""

    def measure(_: ProbeSuite, task: Task, *__: object, **___: object) -> Measurement:
        trials = cloud(0.5, 0.6, seed=task.n_train)
        return Measurement(trials, np.full(trials.shape, 0.01))

    def search(_: HyperbandSearcher, task: Task, *, budget: SearchBudget, **__: object) -> object:
        budgets.append(budget)
        return SearchResult(SUITE.probes[0], 0.9, 5.0, ())

    budgets: list[SearchBudget] = []
    monkeypatch.setattr(ProbeSuite, "measure", measure)
    monkeypatch.setattr(HyperbandSearcher, "search", search)
    monkeypatch.setattr(sys.modules[__name__], "BUDGETS", budgets)


BUDGETS: list[SearchBudget] = []
"""What the searches of `quick` were given."""

QUICK = ("--workers", "0", "--epochs", "1", "--device", "cpu", "--probes", "2", "--trials", "4")


PREDEFINED = ("--setting", "predefined", "--backbone", "resnet18")


def new_store(folder: Path = Path("trautoml-store")) -> None:
    """Make a store with small probes, as a first run leaves it."""
    with Store(folder) as store:
        store.add_setting("suite", SUITE.to_json())


def write_npz(file: str, task: Task | None = None) -> str:
    task = task or stripes()
    np.savez(
        file,
        train_images=task.train_images,
        train_labels=task.train_labels,
        test_images=task.test_images,
        test_labels=task.test_labels,
    )
    return file


def write_folder(folder: str, classes: int = 3, images: int = 12) -> str:
    task = stripes()
    for label in range(classes):
        chosen = task.train_images[task.train_labels == label][:images]
        place = Path(folder) / f"class {label}"
        place.mkdir(parents=True)
        for number, image in enumerate(chosen):
            Image.fromarray(image[..., 0]).save(place / f"{number}.png")
    return folder


def only_line(ran: Ran) -> str:
    """The one line that a user sees of a mistake."""
    assert ran.err.endswith("\n")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    assert ran.out == ""
    return line


# --- run and show -----------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_run_on_npz_and_folder_then_show(trautoml: Trautoml) -> None:
    new_store()
    tasks = [write_npz("blobs.npz"), "blobs.npz@0.5", write_folder("pictures")]
    ran = trautoml("run", *tasks, *QUICK)
    assert ran.code == 0
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert "blobs: 48 training images 8×8×1, 3 classes" in lines
    assert "  blobs is the first task: it opens group 0" in lines
    assert "blobs@0.5: 24 training images 8×8×1, 3 classes" in lines
    assert any(line.startswith("pictures: ") for line in lines)
    assert "Decisions" in ran.out.split()
    assert lines[-1] == "Store: trautoml-store"
    assert "\x1b" not in ran.out

    shown = trautoml("show")
    assert shown.code == 0
    assert shown.out in ran.out + "\n"

    told = trautoml("show", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads(told.out, parse_constant=refuse)
    assert [task["name"] for task in summary["tasks"]] == ["blobs", "blobs@0.5", "pictures"]
    assert set(summary) == {"settings", "tasks", "groups", "totals"}
    assert summary["tasks"][0].keys() >= {
        "name",
        "group",
        "kind",
        "posterior",
        "p_value",
        "sentence",
        "searched",
        "spec",
        "test_accuracy",
        "validation_accuracy",
        "seconds",
        "saved_seconds",
    }
    assert summary["totals"].keys() >= {"spent_seconds", "saved_seconds", "standalone_seconds"}


@pytest.mark.usefixtures("quick")
def test_the_same_command_again_has_nothing_to_do(trautoml: Trautoml) -> None:
    new_store()
    write_npz("blobs.npz")
    assert trautoml("run", "blobs.npz", *QUICK).code == 0
    again = trautoml("run", "blobs.npz", *QUICK)
    assert again.code == 0
    assert "nothing to do" in again.out.splitlines()[0]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ((), SearchBudget(20, 1)),
        (("--budget", "7"), SearchBudget(7, 1)),
        (("--budget", " 7 "), SearchBudget(7, 1)),
        (("--budget", "90s"), SearchBudget(cli.UNLIMITED_TRIALS, 1, 90.0)),
        (("--budget", "10m"), SearchBudget(cli.UNLIMITED_TRIALS, 1, 600.0)),
        (("--budget", "1.5h"), SearchBudget(cli.UNLIMITED_TRIALS, 1, 5400.0)),
    ],
)
def test_budgets(trautoml: Trautoml, options: tuple[str, ...], budget: SearchBudget) -> None:
    new_store()
    write_npz("blobs.npz")
    ran = trautoml("run", "blobs.npz", *QUICK, *options)
    assert ran.code == 0
    assert budget == BUDGETS[0]


@pytest.mark.usefixtures("quick")
def test_the_demo_runs_its_tasks_in_a_store_of_its_own(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(Path("trautoml-demo"))
    tiny = [stripes("one"), stripes("other", seed=1)]
    monkeypatch.setattr(demo_tasks, "demo_tasks", lambda: tiny)
    ran = trautoml("demo", "--workers", "0", "--device", "cpu")
    assert ran.code == 0
    assert "one is the first task" in ran.out
    assert ran.out.splitlines()[-1] == "Store: trautoml-demo"
    assert len(Store("trautoml-demo").log()) == 2


@pytest.mark.usefixtures("quick")
def test_settings_stay_with_the_store(trautoml: Trautoml) -> None:
    new_store()
    write_npz("blobs.npz")
    assert trautoml("run", "blobs.npz", *QUICK, "--seed", "3", "--alpha", "0.01").code == 0
    without = trautoml("run", "blobs.npz", "--workers", "0")
    assert without.code == 0
    other = trautoml("run", "blobs.npz", *QUICK, "--seed", "4")
    assert other.code == 2
    assert "seed: 3 in the store, 4 wanted" in only_line(other)


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.npz"], "no task 'nowhere.npz'"),
        (["run", "some/where"], "no task 'some/where'"),
        (["run", "MINST"], "no task 'MINST'"),
        (["run", ""], "no task named"),
        (["run", "blobs.npz@0"], "the fraction must be above 0"),
        (["run", "blobs.npz@half"], "expected a number after '@'"),
        (["run", "empty"], "empty"),
        (["run", "one-class"], "class"),
        (["run", "letter.npz"], "letter.npz"),
        (["run", "blobs.npz", "--budget", "soon"], "expected a time such as 90s"),
        (["run", "blobs.npz", "--budget", "-5"], "expected a time such as 90s"),
        (["run", "blobs.npz", "--budget", "²"], "expected a time such as 90s"),
        (["run", "blobs.npz", "--budget", "0"], "at least one trial"),
        (["run", "blobs.npz", "--budget", "0s"], "expected a time such as 90s"),
        (["run", "blobs.npz", "--epochs", "0"], "one epoch"),
        (["run", "blobs.npz", "--device", "abacus"], "expected device"),
        (["run", "blobs.npz", "--workers", "-1"], "expected at least 1 worker"),
        (["run", "blobs.npz", "--workers", "many"], "--workers"),
        (["run", "blobs.npz", "--seed", "-1"], "expected seed >= 0"),
        (["run", "blobs.npz", "--probes", "8"], "more trials than probes"),
        (["run", "blobs.npz", "--trials", "0"], "expected trials >= 1"),
        (["run", "blobs.npz", "--alpha", "2"], "alpha"),
        (["run", "blobs.npz", "--searcher", "magic"], "no searcher 'magic': expected one of hyper"),
        (["run", "blobs.npz", "--searcher", "darts"], "take the setting cells"),
        (["run", "blobs.npz", "--setting", "cells", "--searcher", "net2net"], "searches chains"),
        (["run", "blobs.npz", "--setting", "clouds"], "scratch, predefined, cells"),
        (["run", "blobs.npz", "--backbone", "resnet18"], "belongs to the setting predefined"),
        (["run", "blobs.npz", *PREDEFINED, "--side", "0"], "side of a backbone"),
        (["run", "blobs.npz", *PREDEFINED, "--weights", "good.bin"], "weights of a backbone"),
        (
            ["run", "blobs.npz", *PREDEFINED, "--node", "layer3", "--weights", "gone.pth"],
            "gone.pth",
        ),
        (["run", "blobs.npz", *PREDEFINED, "--node", "layer9", "--weights", "none"], "layer9"),
        (["run", "blobs.npz", "--setting", "predefined", "--backbone", "resnet7"], "resnet7"),
        (["run", "folder", "--image-size", "4"], "4"),
        (["run", "blobs.npz", "--colour", "red"], "--colour"),
        (["run"], "TASK"),
        (["shwo"], "shwo"),
        (["show", "extra"], "extra"),
        (["show", "--store", "nowhere"], "there is no store in nowhere"),
        (["show"], "there is no store in trautoml-store"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    trautoml: Trautoml, arguments: list[str], words: str
) -> None:
    write_npz("blobs.npz")
    write_folder("folder", images=5)
    write_folder("one-class", classes=1)
    Path("empty").mkdir()
    Path("letter.npz").write_text("a letter to a friend")
    ran = trautoml(*arguments)
    assert words in only_line(ran)
    assert ran.code == 2


@pytest.mark.usefixtures("quick")
def test_setting_and_searcher_are_what_was_asked_for(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def search(self: RandomSearcher, *_: object, **__: object) -> SearchResult:
        made.append(self.space)
        return SearchResult(SUITE.probes[0], 0.9, 5.0, ())

    monkeypatch.setattr(RandomSearcher, "search", search)
    new_store()
    asked = ("--setting", "cells", "--searcher", "random")
    assert trautoml("run", write_npz("blobs.npz"), *QUICK, *asked).code == 0
    assert [type(space) for space in made] == [CellSpace]
    with Store("trautoml-store") as store:
        assert store.setting("settings")["setting"] == "cells"
    # The next run need not say it again, and may not say something else.
    assert trautoml("run", "blobs.npz@0.5", *QUICK, "--searcher", "random").code == 0
    # ... which shows before any task is read.
    ran = trautoml("run", "nowhere.npz", "--setting", "scratch")
    assert "setting: cells in the store, scratch wanted" in only_line(ran)
    assert ran.code == 2


@pytest.mark.parametrize("mistake", ["nowhere.npz", "blobs.npz@2", "--budget=soon", "--device=x"])
def test_a_mistake_at_the_end_costs_nothing(
    trautoml: Trautoml, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(ProbeSuite, "sample", worked)
    monkeypatch.setattr(ProbeSuite, "measure", worked)
    write_npz("blobs.npz")
    assert trautoml("run", "blobs.npz", mistake).code == 2
    assert not Path("trautoml-store").exists(), "nor does it leave a store with its settings"


def test_what_is_no_mistake_of_the_users_is_exit_code_1(trautoml: Trautoml) -> None:
    Path("trautoml-store").mkdir()
    Path("trautoml-store/trautoml.db").write_text("a letter to a friend " * 100)
    ran = trautoml("show")
    assert "file is not a database" in only_line(ran)
    assert ran.code == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EngineError("a worker\n died"), "error: a worker died"),
        (OSError(28, "No space left on device", "x.npy"), "error: x.npy: No space left on device"),
        (OSError("odd"), "error: the system: odd"),
    ],
)
def test_failures_of_the_machine_are_one_line(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    new_store()
    write_npz("blobs.npz")
    monkeypatch.setattr(ProbeSuite, "measure", fail)
    ran = trautoml("run", "blobs.npz", *QUICK)
    assert ran.code == 1
    assert ran.err.splitlines() == [words]


@pytest.mark.parametrize("phase", ["load", "measure"])
def test_ctrl_c_says_how_to_go_on(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    new_store()
    write_npz("blobs.npz")
    if phase == "load":
        monkeypatch.setattr(Task, "from_npz", interrupt)
    else:
        monkeypatch.setattr(ProbeSuite, "measure", interrupt)
    ran = trautoml("run", "blobs.npz", *QUICK)
    assert ran.code == 130
    assert ran.err.splitlines() == [
        "",
        "interrupted: run the same command again to go on from here",
    ]


def test_an_image_that_cannot_be_read_is_a_warning_in_one_line(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise EngineError("enough")

    new_store()
    write_folder("folder", images=6)
    (Path("folder") / "class 0" / "broken.png").write_text("no image")
    monkeypatch.setattr(ProbeSuite, "measure", stop)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        ran = trautoml("run", "folder", *QUICK)
    first, last = ran.err.splitlines()
    assert first.startswith("warning: 1 of 19 images could not be read")
    assert "broken.png" in first
    assert last == "error: enough"


# --- what the output looks like ---------------------------------------------------------------


def test_version(trautoml: Trautoml) -> None:
    assert trautoml("--version") == Ran(0, f"{__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["show", "--help"]])
def test_help(trautoml: Trautoml, arguments: list[str]) -> None:
    ran = trautoml(*arguments)
    assert ran.code == 0
    assert ran.out.startswith("Usage: ")
    assert ran.err == ""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("terminal", [False, True])
def test_names_from_outside_cannot_break_the_output(
    trautoml: Trautoml, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    def console() -> Console:
        return Console(width=200, force_terminal=terminal, color_system=None)

    monkeypatch.setattr(cli, "_console", console)
    new_store()
    file = write_npz("[red]x[red] \x1b[31m {y}\nz.npz")
    ran = trautoml("run", file, *QUICK)
    assert ran.code == 0
    assert "[red]x[red] ?[31m {y} z is the first task" in ran.out
    assert "\x1b[31m" not in ran.out
    assert ("\x1b" in ran.out) == terminal
    wrong = trautoml("run", "\x1b[31m\nno such task", *QUICK)
    assert "\x1b" not in wrong.err
    assert len(wrong.err.splitlines()) == 1


def test_log_lines_are_shown_plainly_and_only_during_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("trautoml")
    level, handlers = logger.level, list(logger.handlers)
    with cli._observed(Console(width=120)):
        logger.info("[red]%s[/red]", "a\nname \x1b[31m")
    assert capsys.readouterr().out.split() == ["[red]a", "name", "?[31m[/red]"]
    assert (logger.level, logger.handlers) == (level, handlers)


# --- as a process -----------------------------------------------------------------------------


def process(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trautoml.cli", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_a_mistake_as_a_process(tmp_path: Path) -> None:
    ran = process("show", folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("error: there is no store in trautoml-store")


def test_a_run_as_a_process_on_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    new_store(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        store.add_setting("settings", json.loads(json.dumps(vars(SETTINGS))))
    write_npz(str(tmp_path / "bläbs.npz"))
    ran = process(
        *("run", "bläbs.npz", "--store", "store", "--budget", "2", "--epochs", "1"),
        *("--workers", "0", "--device", "cpu"),
        folder=tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert "bl?bs: 48 training images 8?8?1, 3 classes" in ran.stdout
    assert "bl?bs is the first task" in ran.stdout
    assert "\x1b" not in ran.stdout
    with Store(tmp_path / "store") as store:
        assert [entry.name for entry in store.log()] == ["bläbs"]
