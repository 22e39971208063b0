"""The names to which fields for a task and for a queue complete."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.dashboard.visitor import Visitor
from tests.dashboard_shop import HOSTILE, create_app, jobs


@pytest.fixture
def visitor(database: Engine, session: Session) -> Visitor:
    """Of a database in which each kind of row names a queue of its own."""
    session.add(jobs.Job(task="from elsewhere", queue="of a job", args={}))
    session.add(jobs.Job(task="add", queue="of a waiting job", args={"a": 1}, state="queued"))
    session.add(jobs.Schedule(name="nightly", task="of a schedule", cron="0 2 * * *", queue="of a schedule"))
    session.add(jobs.Process(queues={"of a process": 1}))
    session.add(jobs.Queue(name="of a pause", paused_at=datetime.now(UTC)))
    session.commit()
    return Visitor(create_app())


TASKS = ["add", "fail", "from elsewhere", "login", "of a schedule", "settle", "slow", HOSTILE]
QUEUES = ["default", "of a job", "of a pause", "of a process", "of a schedule", "of a waiting job"]


def offered(page: str, field: str) -> list[str]:
    """What the field of that name completes to."""
    given = re.search(rf'<input name="{field}"[^>]*? list="(\w+)"', page)
    assert given
    listed = re.search(rf'<datalist id="{given[1]}">(.*?)</datalist>', page, re.DOTALL)
    assert listed
    return [html.unescape(value) for value in re.findall(r'<option value="([^"]*)">', listed[1])]


def test_fields_for_a_task_and_a_queue_complete(visitor: Visitor, session: Session) -> None:
    for path in ("/jobs", "/schedules/new", "/schedules/1/edit"):
        page = visitor.get(path)
        assert offered(page, "task") == sorted(TASKS)
        assert offered(page, "queue") == QUEUES
    assert offered(visitor.get("/limits/set"), "queue") == QUEUES
    assert offered(visitor.get("/jobs/2"), "to") == QUEUES
    session.add_all(jobs.Job(task="add", args={"a": n}) for n in range(1000))
    session.commit()
    assert "from elsewhere" not in offered(visitor.get("/jobs"), "task"), "jobs long past are not read"
