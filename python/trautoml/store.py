"""The store: the log of tasks, trainings, decisions and specs, and the folder of weights.

The log is all there is: the grouping state is replayed from it, a search goes through its
remembered trainings again. SQLite by default, any database of SQLAlchemy by URL.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    func,
    insert,
    select,
)
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError

from trautoml.database import tune
from trautoml.errors import InputError, StoreError
from trautoml.grouping import Decision
from trautoml.jobs import TrainingResult
from trautoml.spec import ModelSpec
from trautoml.task import Task

SCHEMA_VERSION = 1

_metadata = MetaData()

# Optuna keeps its own tables in the same database; the prefix keeps the names apart.
_settings = Table(
    "trautoml_settings",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
_tasks = Table(
    "trautoml_tasks",
    _metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("n_train", Integer, nullable=False),
    Column("image_shape", Text, nullable=False),
    Column("class_names", Text, nullable=False),
    Column("added", String(32), nullable=False),
)
_trainings = Table(
    "trautoml_trainings",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("test_score", Float),
    Column("epochs", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("diverged", Boolean, nullable=False),
)
_outcomes = Table(
    "trautoml_outcomes",
    _metadata,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", String(64), nullable=False, unique=True),
    Column("trials", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("searched", Boolean, nullable=False),
    Column("score", Float, nullable=False),
    Column("test_score", Float, nullable=False),
    Column("seconds", Text, nullable=False),
    Column("search_estimate", Float, nullable=False),
    Column("wall_seconds", Float, nullable=False),
)


@dataclass(frozen=True)
class LogEntry:
    """One fitted task as the store keeps it, in order of arrival.

    Attributes
    ----------
    position : int
        0 for the first task.
    fingerprint, name : str
        The task.
    n_train : int
        Its training images.
    image_shape : tuple of int
        ``(H, W, C)``.
    class_names : tuple of str
        Its classes.
    trials : ndarray of float64, shape (T, B)
        Its trials matrix.
    decision : Decision
        What the grouper decided.
    spec : ModelSpec
        The model it uses.
    searched : bool
        Whether the spec was searched for this task (else it was reused).
    score, test_score : float
        Validation and test accuracy of the final model.
    seconds : dict of str to float
        Worker seconds of ``"probes"``, ``"search"`` and ``"training"``.
    search_estimate : float
        Worker seconds of a search on this task: measured if there was one, else estimated.
    wall_seconds : float
        Elapsed time of the run that finished the task.
    """

    position: int
    fingerprint: str
    name: str
    n_train: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    trials: npt.NDArray[np.float64]
    decision: Decision
    spec: ModelSpec
    searched: bool
    score: float
    test_score: float
    seconds: dict[str, float]
    search_estimate: float
    wall_seconds: float

    @property
    def spent_seconds(self) -> float:
        """Worker seconds of everything that was done for this task."""
        return sum(self.seconds.values())

    @property
    def standalone_seconds(self) -> float:
        """Worker seconds of a search without probes: its winner comes out of it trained."""
        return self.search_estimate + (self.seconds["training"] if self.searched else 0.0)

    @property
    def saved_seconds(self) -> float:
        """What the task cost less than a search: after a search, minus the cost of the probes."""
        return self.standalone_seconds - self.spent_seconds


class Store:
    """The log and the weights. One process writes at a time; use it from one thread.

    Parameters
    ----------
    folder : Path or str
        Holds ``trautoml.db``, ``models/`` and, while work goes on, ``checkpoints/``. It is made if
        it is not there.
    url : str, optional
        Another database for the log, as SQLAlchemy names it. Default: SQLite in the folder.

    Raises
    ------
    StoreError
        If the database can't be opened, or is of another version of trautoml.
    """

    def __init__(self, folder: Path | str, url: str | None = None) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"can't make the store's folder {self.folder}: {error.strerror}; "
                "choose another place"
            ) from error
        self.url = url or f"sqlite:///{self.folder / 'trautoml.db'}"
        self._database = _open(self.url)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        with self._guard():
            _metadata.create_all(self._database)
        version = self.setting("schema_version")
        if version is None:
            self.add_setting("schema_version", SCHEMA_VERSION)
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"the store {self.folder} has schema version {version}, this trautoml reads "
                f"{SCHEMA_VERSION}: use the trautoml that wrote it, or start a new store"
            )

    @classmethod
    def open_existing(cls, folder: Path | str) -> "Store":
        """Open a store that must be there already.

        Raises
        ------
        InputError
            If there is none.
        """
        if not (Path(folder) / "trautoml.db").is_file():
            raise InputError(
                f"there is no store in {folder}: name the folder with --store, or start one with "
                "`trautoml run TASK...`"
            )
        return cls(folder)

    def close(self) -> None:
        """Close the database."""
        self._database.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def setting(self, name: str) -> Any:
        """Return a setting that was fixed when the store was made, or None."""
        with self._guard(), self._database.connect() as connection:
            query = select(_settings.c.value).where(_settings.c.name == name)
            value = connection.execute(query).scalar()
        with self._readable():
            return None if value is None else json.loads(value)

    def add_setting(self, name: str, value: Any) -> None:
        """Fix a setting for the life of the store; `value` is JSON."""
        with self._guard(), self._database.begin() as connection:
            connection.execute(insert(_settings).values(name=name, value=json.dumps(value)))

    def training(self, key: str) -> TrainingResult | None:
        """Return the result of a finished training, or None."""
        with self._guard(), self._database.connect() as connection:
            row = connection.execute(select(_trainings).where(_trainings.c.key == key)).first()
        if row is None:
            return None
        return TrainingResult(row.score, row.test_score, row.epochs, row.seconds, row.diverged)

    def add_training(
        self, key: str, fingerprint: str, spec: ModelSpec, seed: int, result: TrainingResult
    ) -> None:
        """Keep the result of a finished training."""
        values = {"key": key, "fingerprint": fingerprint, "spec": spec.to_json(), "seed": seed}
        with self._guard(), self._database.begin() as connection:
            if self._missing(connection, _trainings.c.key == key):
                connection.execute(insert(_trainings).values(values | asdict(result)))

    def n_trainings(self) -> int:
        """Count the finished trainings."""
        with self._guard(), self._database.connect() as connection:
            return int(
                connection.execute(select(func.count()).select_from(_trainings)).scalar_one()
            )

    def add_outcome(
        self,
        task: Task,
        *,
        trials: npt.NDArray[np.float64],
        decision: Decision,
        spec: ModelSpec,
        searched: bool,
        score: float,
        test_score: float,
        seconds: dict[str, float],
        search_estimate: float,
        wall_seconds: float,
    ) -> LogEntry:
        """Append a fitted task to the log: the task, its decision and its model, or nothing."""
        with self._guard(), self._database.begin() as connection:
            position = connection.execute(select(func.count()).select_from(_outcomes)).scalar_one()
            if self._missing(connection, _tasks.c.fingerprint == task.fingerprint):
                connection.execute(
                    insert(_tasks).values(
                        fingerprint=task.fingerprint,
                        # A file's name may hold bytes that are no text, which no database takes.
                        name=task.name.encode("utf-8", "replace").decode("utf-8"),
                        n_train=task.n_train,
                        image_shape=json.dumps(task.image_shape),
                        class_names=json.dumps(task.class_names),
                        added=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    )
                )
            connection.execute(
                insert(_outcomes).values(
                    position=position,
                    fingerprint=task.fingerprint,
                    trials=json.dumps(trials.tolist()),
                    decision=json.dumps(decision.to_dict()),
                    spec=spec.to_json(),
                    searched=searched,
                    score=score,
                    test_score=test_score,
                    seconds=json.dumps(seconds),
                    search_estimate=search_estimate,
                    wall_seconds=wall_seconds,
                )
            )
        return self.log()[position]

    def log(self) -> list[LogEntry]:
        """Return all fitted tasks in order of arrival."""
        joined = _outcomes.join(_tasks, _outcomes.c.fingerprint == _tasks.c.fingerprint)
        query = (
            select(
                _outcomes,
                _tasks.c.name,
                _tasks.c.n_train,
                _tasks.c.image_shape,
                _tasks.c.class_names,
            )
            .select_from(joined)
            .order_by(_outcomes.c.position)
        )
        with self._guard(), self._readable(), self._database.connect() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def model_file(self, fingerprint: str) -> Path:
        """Where the weights of a task's final model lie."""
        return self.folder / "models" / f"{fingerprint}.safetensors"

    def keep_model(self, fingerprint: str, checkpoint: Path) -> None:
        """Copy a finished checkpoint to the models, all or nothing.

        Raises
        ------
        StoreError
            If the file can't be written.
        """
        file = self.model_file(fingerprint)
        partial = file.with_suffix(".partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint, partial)
            partial.replace(file)
        except OSError as error:
            raise StoreError(
                f"can't write the model {file}: {error.strerror}; make room or mend the "
                "permissions, then run again to go on"
            ) from error

    @staticmethod
    def _missing(connection: Any, condition: Any) -> bool:
        return connection.execute(select(condition.left).where(condition)).first() is None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(
                f"the store {self.url} can't be read or written ({reason}): check that the file "
                "is a trautoml store, that its folder is writable and that the disk is not full"
            ) from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the store {self.url} holds a damaged record ({error}): restore it from a backup, "
                "or start a new store"
            ) from error


def _open(url: str) -> Database:
    try:
        database = create_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise StoreError(f"can't open the database {url!r}: {error}") from error
    tune(database)
    return database


def _entry(row: Any) -> LogEntry:
    return LogEntry(
        position=row.position,
        fingerprint=row.fingerprint,
        name=row.name,
        n_train=row.n_train,
        image_shape=tuple(json.loads(row.image_shape)),
        class_names=tuple(json.loads(row.class_names)),
        trials=np.array(json.loads(row.trials), dtype=np.float64),
        decision=Decision.from_dict(json.loads(row.decision)),
        spec=ModelSpec.from_json(row.spec),
        searched=row.searched,
        score=row.score,
        test_score=row.test_score,
        seconds=json.loads(row.seconds),
        search_estimate=row.search_estimate,
        wall_seconds=row.wall_seconds,
    )
