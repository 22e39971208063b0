"""The dashboard: a Flask blueprint over the jobs of one application. Needs Flask: `sqla-jobs[dashboard]`."""

from sqla_jobs.dashboard.access import Role, allow_everyone
from sqla_jobs.dashboard.blueprint import create_blueprint

__all__ = ["Role", "allow_everyone", "create_blueprint"]
