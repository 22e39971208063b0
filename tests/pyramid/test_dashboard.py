"""The dashboard in an application whose sessions are registered with zope.sqlalchemy."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.scripting import prepare
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from webtest import TestApp

from sqla_jobs import Jobs
from sqla_jobs.dashboard import Role, create_wsgi
from tests.pyramid_shop import jobs, main, record

pytestmark = pytest.mark.slow


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.mark.parametrize("kind", ["cookiecutter", "plain"])
def test_it_reads_and_changes_jobs_through_the_sessions_of_the_application(
    database: Engine, database_url: str, kind: str
) -> None:
    jobs._bound = None
    app = main(kind=kind, **{"sqlalchemy.url": database_url})
    with Session(database) as session:
        job = record.enqueue(session, n=1)
        session.commit()
        number = job.id
    dashboard = create_wsgi(jobs, authorize=lambda request: Role.operator, actor=lambda request: "ada")
    with prepare(registry=app.registry):
        client = TestApp(dashboard)
        client.get("/", status=200)
        forms = client.get(f"/jobs/{number}", status=200).forms.values()
        move = next(form for form in forms if form.action.endswith("/move"))
        move["to_queue"] = "mail"
        move.submit(status=303)
    app.registry["engine"].dispose()
    jobs._resolver = None
    with Session(database) as session:
        assert session.get_one(jobs.Job, number).queue == "mail"
        assert session.scalars(select(jobs.Audit.actor)).all() == ["ada"]
