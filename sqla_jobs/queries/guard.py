"""What a worker does first and last in the transaction of a task, so that its own end cannot hold up others.

All of it is set for the transaction alone: a pooler may hand the same session to somebody else afterwards.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Text, bindparam, func, select

from sqla_jobs.queries.parts import Tables
from sqla_jobs.queries.succeed import succeed_one

_PROBES = 3


def begin() -> Any:
    """Whether the server takes writes; from here on it soon notices that the other end is gone.

    Not by tcp_user_timeout: that would also end a transaction whose client reads a large answer slowly.
    """
    settings = {
        "tcp_keepalives_idle": bindparam("idle", type_=Text),
        "tcp_keepalives_interval": bindparam("interval", type_=Text),
        "tcp_keepalives_count": str(_PROBES),
    }
    return select(
        func.current_setting("transaction_read_only") == "off",
        *(func.set_config(name, value, True) for name, value in settings.items()),
    )


def begin_parameters(seconds: float) -> dict[str, str]:
    """The parameters of `begin`: the server notices within `seconds`, or a minute where that is less."""
    within = min(seconds, 60.0)
    idle, interval = max(1, round(within / 2)), max(1, round(within / 2 / _PROBES))
    return {"idle": str(idle), "interval": str(interval)}


def succeed_and_commit_soon(tables: Tables) -> Any:
    """That an attempt went well, waiting for the row; then the server waits `milliseconds` for the COMMIT, at most."""
    limit = func.set_config("idle_in_transaction_session_timeout", bindparam("milliseconds", type_=Text), True)
    return succeed_one(tables).returning(limit)
