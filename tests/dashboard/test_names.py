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
    """Of a database in which a job waits, and a queue is paused."""
    session.add(jobs.Job(task="add", queue="of a waiting job", args={"a": 1}, state="queued"))
    session.add(jobs.Schedule(name="nightly", task="of a schedule", cron="0 2 * * *", queue="of a schedule"))
    session.add(jobs.Queue(name="of a pause", paused_at=datetime.now(UTC)))
    session.commit()
    return Visitor(create_app())


TASKS = ["add", "fail", "login", "settle", "slow", HOSTILE]
QUEUES = ["default", "of a pause", "of a waiting job"]


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
    assert offered(visitor.get("/jobs/1"), "to") == QUEUES
