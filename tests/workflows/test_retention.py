"""Graphs are kept until all of them has ended."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from sqla_jobs.cli.main import main
from sqla_jobs.queries.graphs import find_empty_batches, remove_batches
from tests import shop
from tests.helpers import states, wait_until
from tests.shop import jobs


def end(session: Session, *ended: JobMixin) -> None:
    """As long ago as retention needs."""
    for job in ended:
        session.execute(
            text(
                "UPDATE sqla_jobs SET state = 'succeeded', waits_for = NULL, finished_at = now() - interval '1 day'"
                " WHERE id = :id"
            ),
            {"id": job.id},
        )
    session.commit()
    session.expire_all()


def test_a_chain_is_kept_until_its_last_job_has_ended(session: Session) -> None:
    chain = [shop.mark.enqueue(session, n=0)]
    for n in range(1, 5):
        chain.append(shop.mark.options(after=chain[-1]).enqueue(session, n=n))
    alone = shop.mark.enqueue(session, n=9)
    session.commit()
    end(session, *chain[:-1], alone)
    assert jobs.prune(session, older_than=3600) == 1
    session.commit()
    assert states(session).keys() == {job.id for job in chain}
    end(session, chain[-1])
    assert jobs.prune(session, older_than=3600) == 5
    session.commit()
    assert session.scalar(select(func.count()).select_from(jobs.Edge)) == 0


def test_the_command_keeps_a_batch_that_a_held_job_waits_for(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    wrong = shop.fails_slowly.options(batch=batch, max_attempts=1).enqueue(session, message="no")
    report = shop.mark.options(after=batch, if_failed="hold").enqueue(session, n=1)
    session.commit()
    jobs.worker(bind=database).drain()
    session.execute(text("UPDATE sqla_jobs SET finished_at = now() - interval '1 day' WHERE finished_at IS NOT NULL"))
    session.commit()
    done = CliRunner().invoke(main, ["prune", "tests.shop:jobs", "--older-than", "1h", "--yes"])
    assert "delete: 0 jobs\n" in done.output
    assert "1 job left alone: a job of their graph has not ended, " in done.output
    jobs.worker(bind=database).drain()
    assert states(session) == {wrong.id: "failed", report.id: "blocked"}


def test_a_batch_is_kept_while_a_job_of_it_or_after_it_lives(session: Session) -> None:
    batch = jobs.batch(session)
    first, second = [shop.mark.options(batch=batch).enqueue(session, n=n) for n in (1, 2)]
    report = shop.mark.options(after=batch).enqueue(session, n=3)
    session.commit()
    end(session, first)
    assert jobs.prune(session, older_than=3600) == 0
    end(session, second)
    assert jobs.prune(session, older_than=3600) == 0
    end(session, report)
    assert jobs.prune(session, older_than=3600) == 3
    assert find_empty_batches(session, jobs.models, older_than=3600, limit=10) == []
    assert find_empty_batches(session, jobs.models, older_than=0, limit=10) == [batch.id]
    assert remove_batches(session, jobs.models, [batch.id]) == 1


def test_a_batch_that_somebody_joins_meanwhile_is_kept(session: Session, database: Engine) -> None:
    batch = jobs.batch(session)
    session.commit()
    with Session(database) as other:
        shop.mark.options(batch=other.merge(batch)).enqueue(other, n=1)
        other.flush()
        assert remove_batches(session, jobs.models, [batch.id]) == 0, "it is locked"
        session.rollback()
        assert session.connection().get_isolation_level() == "READ COMMITTED"
        remaining = find_empty_batches(session, jobs.models, older_than=0, limit=10)
        other.commit()
        assert remove_batches(session, jobs.models, remaining) == 0, "it has a job"


def test_what_a_live_job_needs_cannot_be_deleted_by_a_plain_delete(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    second = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    session.delete(first)
    with pytest.raises(IntegrityError, match="sqla_edges"):
        session.commit()
    session.rollback()
    session.execute(text("DELETE FROM sqla_jobs WHERE id IN (:one, :two)"), {"one": first.id, "two": second.id})
    session.commit()
    assert states(session) == {}


def test_a_worker_prunes_graphs(session: Session, database: Engine) -> None:
    first = shop.mark.enqueue(session, n=1)
    second = shop.mark.options(after=first).enqueue(session, n=2)
    session.commit()
    end(session, first, second)
    session.execute(text("UPDATE sqla_jobs SET finished_at = now() - interval '9 days'"))
    session.commit()
    with jobs.worker(bind=database):
        wait_until(lambda: states(session) == {})
