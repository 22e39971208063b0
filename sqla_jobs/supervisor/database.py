"""The database as a parent knows it from its children, without the application."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import registry

from sqla_jobs.database.engines import engine_of
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.metrics import Cached, Figures
from sqla_jobs.supervisor.messages import Address
from sqla_jobs.supervisor.options import OF_PARENT

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

_CACHED = 10.0
"""Seconds for which figures are cached, so that scrapes cannot overload the database."""


class Database:
    """The parent's engine and statements. The first child names the tables; connections go to the latest address.

    The application's own columns are unknown here, and no statement of a parent needs them.
    """

    def __init__(
        self, address: Address, *, patience: float, most: int = OF_PARENT, patience_of_scrapes: float = 5.0
    ) -> None:
        """Prepare to connect, with at most `most` connections at once.

        A scrape waits `patience_of_scrapes` seconds for figures.
        """
        self.address = address
        models = map_models(registry(), address.tables.schema, address.tables.prefix, JobMixin)
        self.channel: str = models.channel
        self.queries: Queries = Queries(models, address.tables.found_in)
        self.engine: sa.Engine = engine_of(self._connect, patience=patience, most=most)
        self.figures: Cached[Figures] = Cached(self._read_figures, seconds=_CACHED, patience=patience_of_scrapes)
        """The figures of the database. Any thread may get them."""

    def _read_figures(self) -> Figures:
        from sqla_jobs.monitoring.figures import read_briefly

        return read_briefly(self._jobs)

    @cached_property
    def _jobs(self) -> Jobs[JobMixin]:
        from sqla_jobs.jobs import Jobs  # only where metrics are served: it is large

        jobs = Jobs(registry(), schema=self.address.tables.schema, prefix=self.address.tables.prefix)
        jobs.bind(self.engine.execution_options(isolation_level="READ COMMITTED"))
        return jobs

    def _connect(self) -> psycopg.Connection[Any]:
        return self.address.connect()
