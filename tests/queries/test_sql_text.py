"""SQL text is filled in with tables and pieces."""

from __future__ import annotations

from sqlalchemy.orm import registry

from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.sql_text import Pieces, filled


def test_a_piece_gets_all_of_the_expression_in_its_parentheses() -> None:
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin))
    own: Pieces = {"twice": lambda about: f"{about} + {about}", "first": "min(j.id)"}
    text = filled("SELECT $twice(coalesce($first, 0)) FROM $jobs j", tables, own)
    assert text == "SELECT coalesce(min(j.id), 0) + coalesce(min(j.id), 0) FROM sqla_jobs j"


def test_the_name_of_a_table_is_not_taken_for_a_piece() -> None:
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin), "a $busy schema")
    assert filled("FROM $jobs", tables) == 'FROM "a $busy schema".sqla_jobs'


def test_the_columns_after_the_name_of_a_table_stay() -> None:
    tables = Tables(map_models(registry(), None, "sqla_", JobMixin))
    assert filled("INSERT INTO $edges(job_id, place)", tables) == "INSERT INTO sqla_edges(job_id, place)"
