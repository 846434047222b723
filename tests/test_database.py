"""How SQLite databases are set up; other databases are left alone."""

from pathlib import Path
from types import SimpleNamespace

from sqlalchemy import create_engine

from trautoml.database import tune


def test_every_connection_to_sqlite_waits_and_keeps_a_write_ahead_log(tmp_path: Path) -> None:
    database = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    tune(database)
    with database.connect() as one, database.connect() as two:
        for connection in (one, two):
            read = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("busy_timeout", "journal_mode", "synchronous")
            }
            assert read == {"busy_timeout": 60000, "journal_mode": "wal", "synchronous": 1}
    database.dispose()


def test_other_databases_are_left_alone() -> None:
    # An event can't be listened for on this stand-in: it would raise.
    tune(SimpleNamespace(dialect=SimpleNamespace(name="postgresql")))
