"""The parent's way to the database. The application is not imported here: a child tells the address."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.orm import registry

from sqla_jobs.database.engines import own_engine
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models, map_models
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.retrying import RetryLoop
from sqla_jobs.runtime.settings import LeaseSettings
from sqla_jobs.supervisor.messages import Address


class Database(NamedTuple):
    """An engine of the parent's, and the statements over the application's tables."""

    engine: Engine
    models: Models[Any]
    queries: Queries


def connect(
    address: Callable[[], Address], settings: LeaseSettings, stop: threading.Event, *, connections: int
) -> Database | None:
    """Connect, as `address` says at the time of each connection. Waits for the server; `None`: until `stop` was set."""

    def creator() -> psycopg.Connection[Any]:
        return address().connect()

    app = create_engine("postgresql+psycopg://", creator=creator, poolclass=NullPool)
    engine = RetryLoop("connecting", stop).run(
        lambda: own_engine(app, patience=settings.patience, most=connections),
    )
    if engine is None:
        return None
    tables = address()
    models = map_models(registry(), tables.schema, tables.prefix, JobMixin)
    return Database(engine, models, Queries(models))
