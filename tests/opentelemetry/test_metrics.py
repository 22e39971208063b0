"""What is counted of enqueues and runs."""

from __future__ import annotations

from sqlalchemy.orm import Session

from sqla_jobs.testing import drain
from tests import traced_shop as shop
from tests.opentelemetry.conftest import Exported
from tests.traced_shop import jobs

SENT, SEND_DURATION = "messaging.client.sent.messages", "messaging.client.operation.duration"
CONSUMED, PROCESS_DURATION = "messaging.client.consumed.messages", "messaging.process.duration"


def test_jobs_are_counted_after_the_commit(session: Session, exported: Exported) -> None:
    shop.mails.enqueue(session, to="ada")
    shop.mails.enqueue_many(session, [{"to": "bob"}, {"to": "eve"}])
    shop.looks.enqueue(session)
    session.flush()
    assert exported.metric(SENT) == exported.metric(SEND_DURATION) == []
    session.commit()

    def attributes(queue: str, task: str) -> dict[str, str]:
        return {
            "messaging.system": "sqla_jobs",
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": queue,
            "sqla_jobs.task": task,
        }

    mail, default = attributes("mail", "mails"), attributes("default", "looks")
    assert exported.metric(SENT) == [(mail, 3), (default, 1)]
    assert exported.metric(SEND_DURATION) == [(mail, 2), (default, 1)]


def test_a_job_that_has_the_unique_key_already_is_not_counted_again(session: Session, exported: Exported) -> None:
    unique = shop.mails.options(unique_key="ada")
    unique.enqueue(session, to="ada")
    unique.enqueue(session, to="ada")
    session.commit()
    assert exported.total(SENT) == 1


def test_attempts_are_counted_by_outcome(session: Session, exported: Exported) -> None:
    shop.breaks.enqueue(session, password="swordfish")
    shop.mails.enqueue(session, to="ada")
    drain(session, jobs, errors="record")
    common = {
        "messaging.system": "sqla_jobs",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
    }
    default = {"messaging.destination.name": "default", "sqla_jobs.task": "breaks", "error.type": "ValueError"}
    mail = {"messaging.destination.name": "mail", "sqla_jobs.task": "mails"}
    expected = [
        ({**common, **default, "sqla_jobs.outcome": "retried"}, 1),
        ({**common, **default, "sqla_jobs.outcome": "failed"}, 1),
        ({**common, **mail, "sqla_jobs.outcome": "succeeded"}, 1),
    ]
    assert exported.metric(CONSUMED) == expected
    assert exported.metric(PROCESS_DURATION) == expected
