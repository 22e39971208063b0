"""The database as a parent knows it from its children, without the application."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Engine
from sqlalchemy.orm import registry

from sqla_jobs.database.engines import engine_of
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import Queries
from sqla_jobs.supervisor.messages import Address
from sqla_jobs.supervisor.spec import OF_PARENT


class Database:
    """The parent's engine and statements. The first child names the tables; connections go to the latest address.

    The application's own columns are unknown here, and no statement of a parent needs them.
    """

    def __init__(self, address: Address, *, patience: float) -> None:
        self.address = address
        models = map_models(registry(), address.tables.schema, address.tables.prefix, JobMixin)
        self.channel: str = models.channel
        self.queries: Queries = Queries(models, address.tables.found_in)
        self.engine: Engine = engine_of(self._connect, patience=patience, most=OF_PARENT)

    def _connect(self) -> psycopg.Connection[Any]:
        return self.address.connect()
