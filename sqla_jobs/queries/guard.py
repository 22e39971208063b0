"""What a worker does first and last in the transaction of a task, so that its own end cannot hold up others.

All of it is set for the transaction alone: a pooler may hand the same session to somebody else afterwards.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import ColumnElement, Text, bindparam, func, literal_column, true

from sqla_jobs.deadlines import ask
from sqla_jobs.queries.parts import Tables
from sqla_jobs.queries.succeed import succeed_one

_PROBES = 3
_LARGE = 1_000_000
"""Bytes, above which finding one job by reading them all costs any planner more than an index does."""


class Begun(NamedTuple):
    """What is found when a transaction begins."""

    is_writable: bool
    is_large: bool
    """The table of jobs is so large that no plan made now would read all of it: one that is kept stays good."""


def begin(connection: psycopg.Connection[Any], jobs: str, *, noticed_within: float, patience: float) -> Begun:
    """Begin a transaction, in one round trip; `jobs` is the table's name as in SQL.

    Until it ends the server looks whether the client's host is still there, and notices within so many
    seconds, or a minute, that it is not. Not by tcp_user_timeout: that would also end a transaction whose
    client reads a large answer slowly.
    """
    question = _question(jobs, noticed_within)
    if connection.pgconn.transaction_status == TransactionStatus.IDLE:
        question = f"{_begin(connection)}; {question}"
    answer = ask(connection, question, patience)
    is_read_only, size = (answer.get_value(0, column) or b"0" for column in (0, 1))
    return Begun(is_read_only == b"off", int(size) > _LARGE)


@cache
def _question(jobs: str, noticed_within: float) -> str:
    within = min(noticed_within, 60.0)
    settings = {
        "tcp_keepalives_idle": max(1, round(within / 2)),
        "tcp_keepalives_interval": max(1, round(within / 2 / _PROBES)),
        "tcp_keepalives_count": _PROBES,
    }
    set_all = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
    return f"SELECT current_setting('transaction_read_only'), pg_relation_size('{jobs}'), {set_all}"


def _begin(connection: psycopg.Connection[Any]) -> str:
    """What psycopg would say, by what the application set."""
    level = connection.isolation_level
    said = ["BEGIN"] if level is None else [f"BEGIN ISOLATION LEVEL {level.name.replace('_', ' ')}"]
    if connection.read_only is not None:
        said.append("READ ONLY" if connection.read_only else "READ WRITE")
    if connection.deferrable is not None:
        said.append("DEFERRABLE" if connection.deferrable else "NOT DEFERRABLE")
    return " ".join(said)


def succeed_and_commit_soon(tables: Tables) -> Any:
    """That an attempt went well, waiting for the row; then the server waits `milliseconds` for the COMMIT, at most."""
    name: ColumnElement[str] = literal_column("'idle_in_transaction_session_timeout'")
    limit = func.set_config(name, bindparam("milliseconds", type_=Text), true())
    return succeed_one(tables, limit.is_not(None))
