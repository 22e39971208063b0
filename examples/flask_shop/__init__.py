"""A shop on Flask, Flask-SQLAlchemy and sqla_jobs: background jobs book paid orders and mail the receipts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask_migrate import Migrate

from examples.flask_shop.models import db, jobs
from examples.flask_shop.views import shop
from sqla_jobs.flask import FlaskJobs


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Create the application, configured by `config` or by variables such as FLASK_SQLALCHEMY_DATABASE_URI."""
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI="postgresql+psycopg://localhost/flask_shop",
        SQLA_JOBS_QUEUES={"default": 4, "mail": 2},  # the concurrency of each queue in `flask jobs worker`
        MAIL_HOST=None,  # such as "localhost"; while this is None, mails are only logged
    )
    app.config.from_prefixed_env()
    app.config.update(config or {})
    db.init_app(app)
    FlaskJobs(jobs, app)
    Migrate(app, db, directory=str(Path(__file__).parent / "migrations"))
    app.register_blueprint(shop)
    return app
