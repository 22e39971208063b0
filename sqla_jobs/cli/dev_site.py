"""The process of `dev` that knows the application: it prepares the tables and serves the dashboard.

It ends when its parent does, because that closes the pipe between them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sqla_jobs.cli.dashboard import make
from sqla_jobs.cli.dev_messages import Failed, Order, Ready, Said, Unbound
from sqla_jobs.cli.naming import output_on_stderr
from sqla_jobs.cli.output import remedy
from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import bind_for_command_line, load_configured
from sqla_jobs.migrations.applying import histories, migrate
from sqla_jobs.models.version import check_version

_FLASK_MIGRATE = "migrations/alembic.ini"
_LOOK = 0.5
"""How often to check whether somebody has migrated the tables, in seconds."""


def main() -> None:
    """Carry out the order from the pipe whose file descriptor is the program's argument."""
    parent = Connection(int(sys.argv[1]))
    order: Order = parent.recv()
    sys.path[:] = order.path
    threading.Thread(target=_end_with_parent, args=[parent], daemon=True).start()
    try:
        with output_on_stderr():
            _obey(order, parent)
    except EXPLAINED as error:
        parent.send(Failed(remedy(explain(error))))
    except Exception:  # noqa: BLE001 - an error of the application, which its developer wants to see in full
        parent.send(Failed(traceback.format_exc()))


def _end_with_parent(parent: Connection) -> None:
    try:
        parent.recv()  # the parent sends nothing more, so this waits for its end
    except (EOFError, OSError):
        os._exit(0)


def _obey(order: Order, parent: Connection) -> None:
    has_url = bool(order.where.urls) or "DATABASE_URL" in os.environ
    try:
        jobs, defaults = load_configured(order.application)
    except Exception:
        if has_url or "database_url" not in traceback.format_exc().lower():
            raise
        parent.send(Unbound())
        return
    jobs = bind_for_command_line(jobs, order.where)
    if not jobs._is_bound:
        parent.send(Unbound())
        return
    _prepare(jobs, order, parent)
    server, address = make(jobs, order.port, read_only=False)
    declared = {"default", *(task._declaration.defaults["queue"] for task in jobs.tasks.values())}
    parent.send(Ready(address, defaults.get("queues") or ",".join(sorted(declared))))
    server.serve_forever()


def _prepare(jobs: Jobs[Any], order: Order, parent: Connection) -> None:
    engine = jobs._binding().engine
    history = _history(engine)
    if history is not None:
        _wait_for_tables(jobs, engine, order, parent, history)
        return
    if order.private_url is not None:
        jobs.Job.metadata.create_all(engine)
    for line in migrate(engine, jobs._models):
        parent.send(Said(line))


def _history(engine: sa.Engine) -> str | None:
    """Return the place of the application's Alembic history; None if it has none."""
    for path in ("alembic.ini", _FLASK_MIGRATE):
        if Path(path).is_file():
            return path
    project = Path("pyproject.toml")
    if project.is_file() and "[tool.alembic]" in project.read_text(encoding="utf-8"):
        return str(project)
    with engine.connect() as connection:
        found = histories(connection)
    return f"the table {found[0]}.alembic_version" if found else None


def _wait_for_tables(jobs: Jobs[Any], engine: sa.Engine, order: Order, parent: Connection, history: str) -> None:
    said = ""
    while True:
        try:
            with engine.connect() as connection:
                check_version(connection, jobs._models.tables["jobs"])
        except ConfigurationError as error:
            if str(error) != said:
                said = str(error)
                command = "flask db upgrade" if history == _FLASK_MIGRATE else "alembic upgrade heads"
                url = "" if order.private_url is None else f"DATABASE_URL={order.private_url} "
                parent.send(Said(said))
                how = f"Run in another terminal: {url}{command}"
                what = f"The application has an Alembic history ({history}), so nothing is changed here."
                parent.send(Said(f"{what} {how}"))
            time.sleep(_LOOK)
        else:
            return


if __name__ == "__main__":
    main()
