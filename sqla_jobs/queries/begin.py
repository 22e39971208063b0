"""The first message of a task's transaction. It lets the server notice quickly that a worker's host is gone."""

from __future__ import annotations

from functools import cache

import sqlalchemy as sa

from sqla_jobs.database.driver import Driver, ask, beginning, within

_PROBES = 3


def begin(connection: Driver, *, noticed_within: float, patience: float) -> bool:
    """Begin a transaction, in one round trip. Return False if the transaction is read-only.

    During the transaction the server probes the client's host. If the host disappears, the server notices within
    `noticed_within` seconds, or a minute if that is less. tcp_user_timeout is not used: it would also end a transaction
    whose client reads a large answer slowly. The settings apply to this transaction only, since a pooler may hand the
    same session to another client afterwards.
    """
    answers = ask(connection, beginning(connection) + _question(noticed_within), patience)
    return answers[-1].get_value(0, 0) == b"off"


def begin_elsewhere(connection: sa.Connection, *, noticed_within: float, patience: float) -> bool:
    """Begin a transaction through SQLAlchemy, for asynchronous drivers other than psycopg."""
    settings = _settings(noticed_within).items()
    told = sa.select(
        sa.func.current_setting("transaction_read_only"),
        *(sa.func.set_config(name, str(value), True) for name, value in settings),
    )
    return bool(within(patience, lambda: connection.execute(told).one())[0] == "off")


def has_written(connection: sa.Connection) -> bool:
    """Return whether the connection's transaction has written or locked rows, according to the server.

    Return False, without asking, for a database other than PostgreSQL.
    """
    if connection.dialect.name != "postgresql":
        return False
    return bool(connection.scalar(sa.select(sa.func.pg_current_xact_id_if_assigned().is_not(None))))


def _settings(noticed_within: float) -> dict[str, int]:
    limit = min(noticed_within, 60.0)
    return {
        "tcp_keepalives_idle": max(1, round(limit / 2)),
        "tcp_keepalives_interval": max(1, round(limit / 2 / _PROBES)),
        "tcp_keepalives_count": _PROBES,
    }


@cache
def _question(noticed_within: float) -> str:
    set_all = "; ".join(f"SET LOCAL {name} = {value}" for name, value in _settings(noticed_within).items())
    return f"{set_all}; SHOW transaction_read_only"
