"""Migrations of the library's tables from version to version, for use in an Alembic migration."""

from sqla_jobs.migrations.running import downgrade, upgrade
from sqla_jobs.migrations.two_phases import citus
from sqla_jobs.models.version import LATEST

__all__ = ["LATEST", "citus", "downgrade", "upgrade"]
