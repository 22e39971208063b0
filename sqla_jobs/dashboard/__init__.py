"""The dashboard over the jobs of one application: a Flask blueprint, or a WSGI or ASGI application.

Needs Flask: `sqla-jobs[dashboard]`.
"""

from importlib.util import find_spec

from sqla_jobs.errors import ConfigurationError

if find_spec("flask") is None:
    raise ConfigurationError('the dashboard needs Flask, which is not installed: pip install "sqla-jobs[dashboard]"')

from sqla_jobs.dashboard.access import Role, allow_everyone
from sqla_jobs.dashboard.blueprint import create_blueprint
from sqla_jobs.dashboard.mounted import create_asgi, create_wsgi

__all__ = ["Role", "allow_everyone", "create_asgi", "create_blueprint", "create_wsgi"]
