"""The store: the log of tasks, trainings, decisions and specs, and the folder of weights.

The log is all there is: the grouping state is replayed from it, a search goes through its
remembered trainings again. SQLite by default, any database of SQLAlchemy by URL.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import (
    BigInteger,
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
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from trautoml.database import tune
from trautoml.errors import InputError, StoreError
from trautoml.grouping import Decision
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.records import LogEntry
from trautoml.spec import ModelSpec

SCHEMA_VERSION = 1

Result = TypeVar("Result")

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
)
_trainings = Table(
    "trautoml_trainings",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("score", Float, nullable=False),
    Column("test_score", Float),
    Column("epochs", Float, nullable=False),
    Column("schedule_epochs", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("diverged", Boolean, nullable=False),
)
_results = Table(
    "trautoml_results",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False, index=True),
    Column("value", Text, nullable=False),
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
        # Absolute, as workers and a caller who changes the directory must mean the same place.
        self.folder = Path(folder).expanduser().absolute()
        if "?" in str(self.folder):
            raise StoreError(
                f"can't keep a database in {self.folder}: a question mark ends the path in its "
                "URL; choose another folder"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"can't make the store's folder {self.folder}: {error.strerror}; "
                "choose another place"
            ) from error
        self.url = url or f"sqlite:///{self.folder / 'trautoml.db'}"
        self._database = _open(self.url)
        self._name = str(self._database.url)  # without a password
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

    @staticmethod
    def is_in(folder: Path | str) -> bool:
        """Whether a folder holds a store."""
        return (Path(folder).expanduser() / "trautoml.db").is_file()

    @classmethod
    def open_existing(cls, folder: Path | str) -> "Store":
        """Open a store that must be there already.

        Raises
        ------
        InputError
            If there is none.
        """
        if not cls.is_in(folder):
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

    def add_training(self, job: TrainingJob, result: TrainingResult) -> None:
        """Keep the result of a finished training."""
        values = {
            "key": job.key,
            "fingerprint": job.task.fingerprint,
            "spec": job.spec.to_json(),
            "seed": job.seed,
            "schedule_epochs": job.schedule_epochs or job.epochs,
        }
        with self._guard(), self._database.begin() as connection:
            if self._missing(connection, _trainings.c.key == job.key):
                connection.execute(insert(_trainings).values(values | asdict(result)))

    def result(self, key: str, read: Callable[[str], Result]) -> Result | None:
        """Return the result of finished work that is no training, made by `read`, or None."""
        with self._guard(), self._database.connect() as connection:
            query = select(_results.c.value).where(_results.c.key == key)
            value = connection.execute(query).scalar()
        with self._readable():
            return None if value is None else read(value)

    def add_result(self, key: str, fingerprint: str, value: str) -> None:
        """Keep the result of finished work on a task that is no training."""
        with self._guard(), self._database.begin() as connection:
            if self._missing(connection, _results.c.key == key):
                row = {"key": key, "fingerprint": fingerprint, "value": value}
                connection.execute(insert(_results).values(row))

    def n_trainings(self) -> int:
        """Count the finished trainings."""
        with self._guard(), self._database.connect() as connection:
            return int(
                connection.execute(select(func.count()).select_from(_trainings)).scalar_one()
            )

    def add_outcome(self, entry: LogEntry) -> None:
        """Append a fitted task to the log: the task, its decision and its model, or nothing.

        Raises
        ------
        StoreError
            If the log has grown since the entry's position was taken, by another process: its
            decision would belong to another state.
        """
        try:
            with self._guard(), self._database.begin() as connection:
                connection.execute(insert(_outcomes).values(_outcome_row(entry)))
                if self._missing(connection, _tasks.c.fingerprint == entry.fingerprint):
                    connection.execute(insert(_tasks).values(_task_row(entry)))
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise StoreError(
                    f"another process has added a task to {self.folder} meanwhile, so the decision "
                    f"on {entry.name} no longer holds: run it again, nothing finished is repeated"
                ) from error
            raise

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
                f"the store {self._name} can't be read or written ({reason}): check that the file "
                "is a trautoml store, that its folder is writable and that the disk is not full"
            ) from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the store {self._name} holds a damaged record ({error}): restore it from a "
                "backup, or start a new store"
            ) from error


def _open(url: str) -> Database:
    try:
        database = create_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise StoreError(
            f"can't open a database: {error}; expected a URL as SQLAlchemy has them, such as "
            "postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    tune(database)
    return database


def _outcome_row(entry: LogEntry) -> dict[str, Any]:
    return {
        "position": entry.position,
        "fingerprint": entry.fingerprint,
        "trials": json.dumps(entry.trials.tolist()),
        "decision": json.dumps(entry.decision.to_dict()),
        "spec": entry.spec.to_json(),
        "searched": entry.searched,
        "score": entry.score,
        "test_score": entry.test_score,
        "seconds": json.dumps(entry.seconds),
        "search_estimate": entry.search_estimate,
        "wall_seconds": entry.wall_seconds,
    }


def _task_row(entry: LogEntry) -> dict[str, Any]:
    return {
        "fingerprint": entry.fingerprint,
        # A file's name may hold bytes that are no text, which no database takes.
        "name": entry.name.encode("utf-8", "replace").decode("utf-8"),
        "n_train": entry.n_train,
        "image_shape": json.dumps(entry.image_shape),
        "class_names": json.dumps(entry.class_names),
    }


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
