"""How a SQLite database is used: by several connections, safe against kills, and quick."""

from typing import Any

from sqlalchemy import Engine, event


def tune(database: Engine) -> None:
    """Set up every connection that a SQLite database opens from now on; others are left alone.

    Readers and the writer don't wait for each other, a writer waits up to a minute for another,
    and a killed process leaves the last whole transaction without a sync to disk after each.
    """
    if database.dialect.name != "sqlite":
        return

    @event.listens_for(database, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA busy_timeout = 60000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
