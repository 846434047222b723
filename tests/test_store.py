import json
import math
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from automl_support import add_entry, chain, scored, stripes
from sqlalchemy import create_engine, inspect

import trautoml
from trautoml.engine import SharedTask
from trautoml.errors import InputError, StoreError
from trautoml.grouping import Decision
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.records import LogEntry
from trautoml.search import HyperbandSearcher, SearchBudget
from trautoml.store import SCHEMA_VERSION, Store
from trautoml.task import Task

OPENED = Decision("opened", 0, 1.0, np.empty(0))
JOINED = Decision("joined", 1, 0.75, np.array([-math.inf, math.log(0.75)]), 3.5, 1e-310, 1)
SPLIT = Decision("split", 2, 0.5, np.log([0.5, 0.25]), 1e9, 0.0, 0)
UNTESTED = Decision("joined", 0, 0.9, np.array([math.log(0.9)]), None, None, None)
SECONDS = {"probes": 1.5, "search": 0.0, "training": 0.1 + 0.2}


def add(store: Store, task: Task, decision: Decision = OPENED, **options: object) -> LogEntry:
    fixed = {"test_score": 1 / 3, "seconds": SECONDS, "search_estimate": 12.25}
    return add_entry(store, task, decision, **fixed | {"wall_seconds": 7.0} | options)


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) > 20
    return text


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", [OPENED, JOINED, SPLIT, UNTESTED])
@pytest.mark.parametrize("searched", [True, False])
def test_every_field_of_an_outcome_comes_back(
    tmp_path: Path, decision: Decision, searched: bool
) -> None:
    task = stripes()
    trials = np.array([[0.1 + 0.2, 1e-17], [1 / 3, 1.0]])
    with Store(tmp_path / "store") as store:
        entry = add(store, task, decision, trials=trials, searched=searched)
    with Store(tmp_path / "store") as store:
        (again,) = store.log()
    for found in (entry, again):
        assert found.decision == decision
        assert found.trials.dtype == np.float64
        assert found.trials.tobytes() == trials.tobytes()
        assert found.spec == chain()
        assert found.searched is searched
        assert (found.score, found.test_score) == (0.9, 1 / 3)
        assert found.seconds == SECONDS
        assert (found.search_estimate, found.wall_seconds) == (12.25, 7.0)
        assert (found.position, found.fingerprint, found.name) == (0, task.fingerprint, "stripes")
        assert (found.n_train, found.image_shape) == (60, (8, 8, 1))
        assert found.class_names == ("upright", "level", "slanted")


@pytest.mark.parametrize("test_score", [None, 0.25])
@pytest.mark.parametrize("diverged", [True, False])
def test_a_training_comes_back(tmp_path: Path, test_score: float | None, diverged: bool) -> None:
    job = TrainingJob(SharedTask("fingerprint"), chain(), 2, seed=2**32 - 1)
    result = TrainingResult(1 / 3, test_score, 0.1 + 0.2, 2.5, diverged)
    with Store(tmp_path / "store") as store:
        assert store.training(job.key) is None
        store.add_training(job, result)
    with Store(tmp_path / "store") as store:
        assert store.training(job.key) == result
        assert store.n_trainings() == 1


def test_the_first_result_of_a_training_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        job = TrainingJob(SharedTask("fingerprint"), chain(), 1)
        store.add_training(job, scored(0.5, 1))
        store.add_training(job, scored(0.7, 1))
        assert store.training(job.key) == scored(0.5, 1)
        assert store.n_trainings() == 1


@pytest.mark.parametrize("value", [0, "", [], {"a": [1, None, "ü"]}, 0.1 + 0.2])
def test_a_setting_comes_back_and_is_fixed(tmp_path: Path, value: object) -> None:
    with Store(tmp_path / "store") as store:
        assert store.setting("name") is None
        store.add_setting("name", value)
        with pytest.raises(StoreError):
            store.add_setting("name", "another")
    with Store(tmp_path / "store") as store:
        assert store.setting("name") == value


@pytest.mark.parametrize(
    "name", ["[bold]x[/bold]", "naïve 画像", "a'; DROP TABLE x; --", "\x1b[31mred", "a\nb", ""]
)
def test_any_name_is_kept(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / "store") as store:
        assert add(store, stripes(name)).name == name


def test_bytes_of_a_file_name_that_are_no_text_do_not_lose_the_outcome(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        assert add(store, stripes("data\udcff")).name == "data?"


def test_the_log_is_in_order_of_arrival(tmp_path: Path) -> None:
    names = [f"task {seed}" for seed in (3, 1, 2, 0)]
    with Store(tmp_path / "store") as store:
        for position, name in enumerate(names):
            assert add(store, stripes(name, seed=int(name[-1]))).position == position
        assert [entry.name for entry in store.log()] == names


def test_a_task_is_fitted_once(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        add(store, stripes())
        with pytest.raises(StoreError):
            add(store, stripes("renamed"))
        assert [entry.name for entry in store.log()] == ["stripes"]


def test_times(tmp_path: Path) -> None:
    seconds = {"probes": 2.0, "search": 10.0, "training": 1.0}
    with Store(tmp_path / "store") as store:
        searched = add(store, stripes(), seconds=seconds, search_estimate=10.0)
        reused = add(
            store,
            stripes(seed=1),
            seconds={**seconds, "search": 0.0},
            search_estimate=20.0,
            searched=False,
        )
    assert (searched.spent_seconds, searched.standalone_seconds) == (13.0, 11.0)
    assert searched.saved_seconds == -2.0
    assert (reused.spent_seconds, reused.standalone_seconds) == (3.0, 20.0)
    assert reused.saved_seconds == 17.0


# --- models -----------------------------------------------------------------------------------


def test_a_model_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(b"weights")
    with Store(tmp_path / "store") as store:
        store.keep_model("abc", checkpoint)
        store.keep_model("abc", checkpoint)
        assert store.model_file("abc").read_bytes() == b"weights"
        assert [file.name for file in store.model_file("abc").parent.iterdir()] == [
            "abc.safetensors"
        ]


def test_a_model_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        (store.folder / "models").write_text("in the way")
        (tmp_path / "checkpoint").write_bytes(b"weights")
        with pytest.raises(StoreError, match="can't write the model") as caught:
            store.keep_model("abc", tmp_path / "checkpoint")
        one_line(caught.value)


# --- what can go wrong ------------------------------------------------------------------------


def test_open_existing_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no store in"):
        Store.open_existing(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(InputError, match="--store"):
        Store.open_existing(tmp_path)
    Store(tmp_path / "store").close()
    with Store.open_existing(tmp_path / "store") as store:
        assert store.log() == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "trautoml.db").write_text("a letter to a friend " * 100)
    for opener in (Store, Store.open_existing):
        with pytest.raises(StoreError, match="file is not a database") as caught:
            opener(tmp_path)
        assert "trautoml.db" in one_line(caught.value)


def test_a_damaged_database(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed in range(4):
            add(store, stripes(seed=seed), trials=np.full((200, 6), 1 / 3))
    file = tmp_path / "trautoml.db"
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(StoreError, match="malformed") as caught, Store(tmp_path) as store:
        store.log()
    one_line(caught.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("trials", "[[0.1, "),
        ("decision", '{"kind": "opened"}'),
        ("decision", '{"kind": "guessed", "group": 0}'),
        ("spec", "{}"),
        ("seconds", ""),
    ],
)
def test_a_damaged_record(tmp_path: Path, column: str, value: str) -> None:
    with Store(tmp_path) as store:
        add(store, stripes())
        database = sqlite3.connect(tmp_path / "trautoml.db")
        database.execute(f"UPDATE trautoml_outcomes SET {column} = ?", (value,))  # noqa: S608
        database.commit()
        database.close()
        with pytest.raises(StoreError, match="damaged record") as caught:
            store.log()
        one_line(caught.value)


def test_a_table_of_the_same_name_with_other_columns(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "trautoml.db")
    database.execute("CREATE TABLE trautoml_settings (colour TEXT)")
    database.close()
    with pytest.raises(StoreError, match="no such column") as caught:
        Store(tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "newer"])
def test_another_schema_version(tmp_path: Path, version: object) -> None:
    with Store(tmp_path) as store:
        assert store.setting("schema_version") == SCHEMA_VERSION
    database = sqlite3.connect(tmp_path / "trautoml.db")
    database.execute(
        "UPDATE trautoml_settings SET value = ? WHERE name = 'schema_version'",
        (json.dumps(version),),
    )
    database.commit()
    database.close()
    with pytest.raises(StoreError, match="schema version") as caught:
        Store(tmp_path)
    assert str(version) in one_line(caught.value)
    assert str(SCHEMA_VERSION) in str(caught.value)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="can't make the store's folder") as caught:
        Store(tmp_path / place)
    one_line(caught.value)


def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "trautoml.db").mkdir()
    with pytest.raises(StoreError, match="can't be read or written") as caught:
        Store(tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "cobol://host/x"])
def test_a_url_that_names_no_database(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match="can't open a database") as caught:
        Store(tmp_path, url)
    one_line(caught.value)


def test_another_database_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    with Store(tmp_path / "store", url) as store:
        add(store, stripes())
    with Store(tmp_path / "store", url) as store:
        assert len(store.log()) == 1
    assert not (tmp_path / "store" / "trautoml.db").exists()


def test_a_decision_on_another_state_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store, Store(tmp_path) as other:
        add(store, stripes())
        with pytest.raises(StoreError, match="another process has added a task") as caught:
            add(other, stripes("late", seed=1), position=0)
        one_line(caught.value)
        assert [entry.name for entry in other.log()] == ["stripes"]
        assert add(other, stripes("late", seed=1)).position == 1


def test_the_folder_is_the_same_place_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store("store") as store:
        add(store, stripes())
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert store.folder == tmp_path / "store"
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store.open_existing("~/store") as store:
        assert len(store.log()) == 1


def test_a_folder_that_a_url_cannot_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="question mark") as caught:
        Store(tmp_path / "what?x")
    one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_outcome_leaves_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(StoreError):
            add(store, stripes(), score=None)
        assert store.log() == []
        add(store, stripes("later"))
        assert [entry.name for entry in store.log()] == ["later"]


# --- beside it --------------------------------------------------------------------------------


def test_optunas_tables_live_beside(tmp_path: Path) -> None:
    from automl_support import ScriptedEngine

    with Store(tmp_path) as store:
        add(store, stripes())
        HyperbandSearcher(storage=store.url).search(
            stripes(), budget=SearchBudget(2, 1), engine=ScriptedEngine(lambda _, e: scored(0.5, e))
        )
        assert len(store.log()) == 1
    with Store(tmp_path) as store:
        assert len(store.log()) == 1
        database = create_engine(store.url)
        tables = set(inspect(database).get_table_names())
        database.dispose()
    assert {"trials", "studies", "trautoml_outcomes", "trautoml_trainings"} <= tables
    own = {table for table in tables if table.startswith("trautoml_")}
    assert own == {
        f"trautoml_{name}" for name in ("outcomes", "results", "trainings", "tasks", "settings")
    }


def test_nothing_in_the_package_reads_pickles() -> None:
    # A store or a data set from someone else must not be able to run code.
    forbidden = re.compile(
        r"\bimport pickle|from pickle|cloudpickle|joblib|torch\.save|"
        r"torch\.load(?!\([^()]*weights_only=True\))|"
        r"allow_pickle\s*=\s*True|\bPickleType"
    )
    package = Path(trautoml.__file__).parent
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        found = forbidden.findall(source.read_text(encoding="utf-8"))
        assert not found, f"{source.relative_to(package)}: {found}"
