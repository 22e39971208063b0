"""Flask: jobs on the application's own `db.session`, inside its context, and `flask jobs`."""

from sqla_jobs.flask.cli import cli, loaded
from sqla_jobs.flask.extension import FlaskJobs

__all__ = ["FlaskJobs", "cli", "loaded"]
