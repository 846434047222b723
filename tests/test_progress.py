import io
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from automl_support import chain, make_automl, stripes
from rich.console import Console

from trautoml.grouping import Decision
from trautoml.progress import LiveCallbacks, LogCallbacks
from trautoml.reuse import ReusePolicy
from trautoml.search import SearchProgress, TrialRecord
from trautoml.spec import ModelSpec
from trautoml.store import Store

OPENED = Decision("opened", 0, 1.0, np.zeros(0))
BEST = TrialRecord(3, chain(), 3.0, 0.875, 1.0)
HOSTILE = "[red]x[/red] [/] {a} \x1b[2J\x07 two\nlines"
TAMED = "[red]x[/red] [/] {a} ?[2J? two lines"


def plain_console(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width)


def live_console(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def searching(done: int = 13, round_: int = 1, **options: float) -> SearchProgress:
    return SearchProgress(
        started=20,
        allowed=20,
        round=round_,
        done=done,
        trainings=20,
        epoch=3 ** (round_ - 1),
        epochs=9,
        best=BEST,
        seconds=30.0,
        **options,
    )


# --- plain lines ------------------------------------------------------------------------------


def test_a_run_as_plain_lines(tmp_path: Path) -> None:
    console = plain_console(width=40)
    with Store(tmp_path) as store:
        automl = make_automl(store, callbacks=[LogCallbacks(console)])
        first = automl.fit(stripes())
        automl.fit(stripes("renamed"))
    text = text_of(console)
    lines = text.splitlines()
    assert lines[0] == "stripes: 60 training images 8×8×1, 3 classes"
    assert "  probes 8/8" in lines
    assert "  stripes is the first task: it opens group 0" in lines
    assert any(line.startswith("  training epoch 2/2, validation accuracy 0.") for line in lines)
    assert lines[-2].startswith(f"  test accuracy {first.test_score:.3f}; probes ")
    assert ", search " in lines[-2]
    assert ", training " in lines[-2]
    assert lines[-1].startswith("stripes: fitted before, test accuracy ")
    assert lines[-1].endswith("; nothing to do")
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_line_every_ten_seconds(clock: list[float]) -> None:
    console = plain_console()
    log = LogCallbacks(console)
    task = stripes()
    for done in range(1, 48):
        log.probes_progress(task, done, 48)
        clock[0] += 1.0
    assert text_of(console).splitlines() == [f"  probes {done}/48" for done in (1, 11, 21, 31, 41)]


def test_the_end_of_a_phase_is_always_told(clock: list[float]) -> None:
    console = plain_console()
    log = LogCallbacks(console)
    log.probes_progress(stripes(), 1, 2)
    log.probes_progress(stripes(), 2, 2)
    log.training_progress(stripes(), 1, 2, 0.5)
    log.training_progress(stripes(), 2, 2, 0.75)
    assert text_of(console).splitlines() == [
        "  probes 1/2",
        "  probes 2/2",
        "  training epoch 2/2, validation accuracy 0.750",
    ]


def test_the_search_in_a_line(clock: list[float]) -> None:
    console = plain_console()
    log = LogCallbacks(console)
    log.search_progress(stripes(), searching())
    log.search_progress(stripes(), searching(19))
    log.search_progress(stripes(), searching(20))
    clock[0] += 60
    log.search_progress(stripes(), searching(allowed_seconds=1200.0, round_=2))
    assert text_of(console).splitlines() == [
        (
            f"  search: {done} of 20 trainings of round {where} of 9) done, {spent}best validation "
            "accuracy 0.875"
        )
        for done, where, spent in (
            (13, "1 (to epoch 1", ""),
            (20, "1 (to epoch 1", ""),
            (13, "2 (to epoch 3", "30 s of 20 min 00 s of worker time, "),
        )
    ]


def test_a_reused_task_tells_what_a_search_would_have_cost(tmp_path: Path) -> None:
    class Reuse(ReusePolicy):
        def choose(self, specs: Mapping[int, ModelSpec], *_: object) -> ModelSpec | None:
            return chain() if specs else None

    console = plain_console()
    with Store(tmp_path) as store:
        automl = make_automl(store, callbacks=[LogCallbacks(console)], policy=Reuse())
        automl.fit(stripes())
        searched = text_of(console).splitlines()[-1]
        automl.fit(stripes(seed=1))
    assert "a search would have cost" not in searched
    assert "; a search would have cost about " in text_of(console).splitlines()[-1]


def test_names_cannot_break_the_lines(clock: list[float]) -> None:
    console = plain_console()
    log = LogCallbacks(console)
    log.task_started(stripes(HOSTILE))
    log.decided(stripes(HOSTILE), OPENED, f"{HOSTILE} is the first task")
    assert text_of(console).splitlines() == [
        f"{TAMED}: 60 training images 8×8×1, 3 classes",
        f"  {TAMED} is the first task",
    ]


# --- on a terminal ----------------------------------------------------------------------------


def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    console = live_console()
    with Store(tmp_path) as store, LiveCallbacks(console) as live:
        make_automl(store, callbacks=[live]).fit(stripes())
    text = text_of(console)
    assert "stripes: 60 training images" in text
    assert "stripes is the first task: it opens group 0" in text
    assert "  test accuracy 0." in text
    assert text.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_bars_show_task_phase_count_and_best(clock: list[float]) -> None:
    console = live_console()
    with LiveCallbacks(console) as live:
        task = stripes()
        for call, expected in (
            (lambda: live.probes_progress(task, 5, 48), ["stripes: probes", "5/48", "left"]),
            (
                lambda: live.search_progress(task, searching()),
                ["stripes: search round 1", "13/20", "best 0.875"],
            ),
            (
                lambda: live.search_progress(task, searching(allowed_seconds=600.0)),
                ["stripes: search", "30/600", "seconds, round 1, best 0.875"],
            ),
            (
                lambda: live.training_progress(task, 2, 9, 0.5),
                ["stripes: training", "2/9", "accuracy 0.500"],
            ),
        ):
            call()
            live._progress.refresh()
            last = text_of(console).rpartition("\r")[2]
            for words in expected:
                assert words in last


def test_a_phase_ends_with_the_next(clock: list[float]) -> None:
    with LiveCallbacks(live_console()) as live:
        live.probes_progress(stripes(), 48, 48)
        live.decided(stripes(), OPENED, "a sentence")
        assert live._progress.tasks == []
        live.search_progress(stripes(), searching())
        live.training_progress(stripes(), 1, 9, 0.5)
        assert [bar.description for bar in live._progress.tasks] == ["stripes: training"]


def test_every_training_of_a_round_moves_the_bar_and_the_time_left(clock: list[float]) -> None:
    console = live_console()
    console.get_time = lambda: clock[0]
    with LiveCallbacks(console) as live:
        left = []
        for done in range(1, 20):
            live.search_progress(stripes(), searching(done))
            (bar,) = live._progress.tasks
            assert (bar.completed, bar.total) == (done, 20)
            left.append(bar.time_remaining)
            clock[0] += 2.0
        assert left[2:] == [2.0 * (20 - done) for done in range(3, 20)]
        live.search_progress(stripes(), searching(1, round_=2))
        (bar,) = live._progress.tasks
        assert (bar.description, bar.completed) == ("stripes: search round 2", 1)


def test_names_cannot_break_the_bars(clock: list[float]) -> None:
    console = live_console()
    with LiveCallbacks(console) as live:
        live.task_started(stripes(HOSTILE))
        live.probes_progress(stripes(HOSTILE), 1, 48)
        live._progress.refresh()
    text = text_of(console)
    assert f"{TAMED}: probes" in text
    assert f"{TAMED}: 60 training images" in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_the_terminal_is_given_back_after_an_error() -> None:
    console = live_console()
    with suppress(RuntimeError), LiveCallbacks(console) as live:
        live.probes_progress(stripes(), 1, 48)
        raise RuntimeError
    assert text_of(console).count("\x1b[?25h") == 1
