"""The names to which fields for a task and for a queue complete."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests import dashboard_shop as shop
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


@pytest.mark.parametrize("path", ["/jobs", "/schedules/new", "/schedules/1/edit"])
def test_fields_for_a_task_and_a_queue_complete(visitor: Visitor, path: str) -> None:
    page = visitor.get(path)
    assert offered(page, "task") == sorted(TASKS)
    assert offered(page, "queue") == QUEUES


def test_the_queue_of_a_limit_and_of_a_move_completes(visitor: Visitor, session: Session) -> None:
    shop.add.enqueue(session, a=1)
    session.commit()
    assert offered(visitor.get("/limits/new"), "queue") == QUEUES
    assert offered(visitor.get("/jobs/2"), "to_queue") == QUEUES
    confirmation = visitor.post("/jobs/change", {"action": "move", "all": "1"})
    assert offered(confirmation.text, "to_queue") == QUEUES


def test_names_of_jobs_long_past_are_not_read(visitor: Visitor, session: Session) -> None:
    session.add_all(jobs.Job(task="add", args={"a": n}) for n in range(1000))
    session.commit()
    assert "from elsewhere" not in offered(visitor.get("/jobs"), "task")
