"""The tables of this library, brought from one version to another in an Alembic migration."""

from sqla_jobs.migrations.running import downgrade, upgrade
from sqla_jobs.models.version import LATEST

__all__ = ["LATEST", "downgrade", "upgrade"]
