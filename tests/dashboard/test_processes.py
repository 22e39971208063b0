"""The dashboard's page of processes."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import func, text
from sqlalchemy.orm import Session

from sqla_jobs.rules.wording import NOTHING
from tests.dashboard.visitor import Visitor, words
from tests.dashboard_shop import jobs


def add_process(session: Session, **values: Any) -> uuid.UUID:
    process = jobs.Process(**{"host": "here", "pid": 4711, "queues": {"default": 2}, **values})
    session.add(process)
    session.flush()
    return process.id


def add_running(session: Session, process_id: uuid.UUID, number: int) -> None:
    for _ in range(number):
        lease = session.scalar(text("SELECT nextval(pg_get_serial_sequence('sqla_runs', 'id'))"))
        beside: dict[str, Any] = {"process_id": process_id, "current_run_id": lease, "started_at": func.now()}
        session.add(jobs.Job(task="add", args={"a": 1}, state="running", attempt=1, **beside))


def test_a_process_shows_its_queues_version_clock_and_jobs(visitor: Visitor, session: Session) -> None:
    process_id = add_process(session, clock_offset=-2.5, version="0.1.0", queues={"default": 2, "mail": 1})
    add_running(session, process_id, 7)
    session.commit()
    page = words(visitor.get("/processes"))
    assert re.search(r"worker here:4711 default . 2, mail . 1 alive last beat \d+ ms ago started \d+ ms ago", page)
    assert re.search(rf"ago 2 \(\+5 claimed\) add #1 for \d+ ms add #2 for \d+ ms {NOTHING} 0.1.0", page)
    assert "0.1.0 -2.5 s" in page
    assert page.count("add #") == 2
    add_running(session, add_process(session, queues={"default": 20}), 14)
    session.commit()
    page = words(visitor.get("/processes"))
    assert (page.count("add #"), "and 4 more" in page) == (2 + 10, True)


def test_a_process_tells_when_its_last_job_ended(visitor: Visitor, session: Session) -> None:
    add_process(session, last_finished_at=func.now() - timedelta(seconds=30))
    add_process(session, pid=4712, kind="clock", queues={})
    session.commit()
    page = words(visitor.get("/processes"))
    assert re.search(rf"ago 0 30 s ago {NOTHING} {NOTHING} clock here:4712 .* ago {NOTHING} {NOTHING} {NOTHING}", page)


def test_a_process_without_progress_or_heartbeat_is_told_apart(visitor: Visitor, session: Session) -> None:
    since = func.now() - timedelta(seconds=40)
    add_process(session, stalled_since=since, started_at=func.now() - timedelta(hours=3))
    add_process(session, pid=4712, heartbeat_at=func.now() - timedelta(minutes=5))
    add_running(session, uuid.uuid4(), 1)
    session.commit()
    page = words(visitor.get("/processes"))
    assert "1 running job belongs to processes that are gone" in page
    assert re.search(r"here:4711 default . 2 stalled no progress for 4\d s", page)
    assert re.search(r"here:4712 default . 2 no heartbeat last beat 5 min ago", page)
