"""The losses of a job in a row, for a query of the mapped class."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.pieces import losses_in_a_row
from sqla_jobs.queries.sql_text import filled


def lost_in_a_row(models: Models[Any]) -> sa.ColumnElement[int]:
    """Return the number of lost runs of a job since its last other outcome, and since it was last retried by hand."""
    return sa.literal_column(filled(losses_in_a_row("$jobs"), Tables(models)), sa.BigInteger)
